"""What a file for AWS needs besides machines: instance profiles with roles that may do what nodes do, and the bucket.

Further checks of `raypaml.cluster.aws_checks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raypaml.cluster.aws_file import AwsFile, Client
from raypaml.cluster.aws_permissions import HEAD, SPOT_ROLE, WORKER, Permission, names, needed
from raypaml.cluster.checks import FATAL, FINE, WARNING, Finding

ONCE = "the commands of 'Once per AWS account' in clusters/README.md"


def profiles(file: AwsFile, client: Client) -> Iterator[Finding]:
    """Whether the instance profiles are there, each with a role."""
    iam = client("iam")
    for node in file.started:
        if not node.profile:
            more = (
                "Ray makes a role with full access to EC2 and S3" if node.is_head else "its nodes have no credentials"
            )
            yield Finding(WARNING, f"{node.name}: no IamInstanceProfile: {more}", "IamInstanceProfile: {Name: ...}")
    for profile in dict.fromkeys(node.profile for node in file.started if node.profile):
        roles = _roles(iam, profile)
        if roles is None:
            yield Finding(FATAL, f"there is no instance profile {profile}: no instance starts with it", ONCE)
        elif not roles:
            remedy = f"aws iam add-role-to-instance-profile --instance-profile-name {profile} --role-name ..."
            yield Finding(FATAL, f"the instance profile {profile} has no role: its nodes have no credentials", remedy)
        else:
            yield Finding(FINE, f"instance profile {profile}, with the role {roles[0]['RoleName']}")


def _roles(iam: Any, profile: str) -> list[Any] | None:
    """The roles of an instance profile, of which it has one or none; None where it is not there."""
    try:
        return list(iam.get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]["Roles"])
    except iam.exceptions.NoSuchEntityException:
        return None


def permissions(file: AwsFile, client: Client) -> Iterator[Finding]:
    """Whether IAM says that the roles may make the calls that a head and a worker make."""
    iam = client("iam")
    heads = _roles(iam, file.head.profile) if file.head and file.head.profile else None
    passed = list[str]()
    for profile in dict.fromkeys(node.profile for node in file.workers if node.profile):
        for role in _roles(iam, profile) or ():
            passed.append(role["RoleName"])
            yield _may_do(iam, WORKER, role, _asked(file, WORKER, role, [], profile))
    for role in heads or ():
        yield _may_do(iam, HEAD, role, _asked(file, HEAD, role, passed, ""))


def _asked(file: AwsFile, who: str, role: Any, passed: list[str], profile: str) -> list[Permission]:
    """What IAM is asked of a role, for every bucket, image and role to be passed; any network and any instance."""
    account = role["Arn"].split(":")[4]
    fixed = {"region": file.region, "account": account, "asked_cluster": file.cluster, "tagged_cluster": file.cluster}
    fixed |= {"owner": "amazon", "key": f"ray-autoscaler_{file.region}", "subnet": "subnet-1", "group": "sg-1"}
    fixed |= {"image": "ami-1", "instance": "i-1", "profile": profile}
    of_nodes = {node.parameter.partition(":")[0] for node in file.workers if node.parameter}  # IAM sees no version
    several = {"bucket": file.buckets, "role": passed, "parameter": sorted(of_nodes)}
    asked = list[Permission]()
    for need in needed(who):
        (name,) = names(need) & set(several) or {""}
        values = several.get(name, [""])
        asked += [need.of(fixed | {name: value}) for value in values]
    return asked


def _may_do(iam: Any, who: str, role: Any, asked: list[Permission]) -> Finding:
    refused = [f"{one.action} on {one.resource}" for one in asked if not _is_allowed(iam, role["Arn"], one)]
    name = role["RoleName"]
    if not refused:
        return Finding(FINE, f"role {name}: IAM allows the {len(asked)} things that a {who} asks for")
    remedy = f"aws iam put-role-policy --role-name {name} --policy-name raypaml --policy-document file://.../{who}.json"
    what = f"role {name}: IAM refuses {len(refused)} of the {len(asked)} things that a {who} asks for"
    return Finding(WARNING, f"{what}: {'; '.join(refused)}", f"{remedy} (clusters/policies)")


def _is_allowed(iam: Any, role: str, asked: Permission) -> bool:
    context = [
        {"ContextKeyName": key, "ContextKeyValues": [value], "ContextKeyType": "string"}
        for key, value in asked.context.items()
    ]
    answer = iam.simulate_principal_policy(
        PolicySourceArn=role, ActionNames=[asked.action], ResourceArns=[asked.resource], ContextEntries=context
    )
    return all(one["EvalDecision"] == "allowed" for one in answer["EvaluationResults"])


def spot_role(file: AwsFile, client: Client) -> Iterator[Finding]:
    """Whether the role is there with which EC2 starts spot instances; the head may not make it."""
    if not any(node.is_spot for node in file.workers):
        return
    iam = client("iam")
    try:
        iam.get_role(RoleName=SPOT_ROLE)
    except iam.exceptions.NoSuchEntityException:
        what = f"there is no role {SPOT_ROLE}: EC2 refuses the first spot instance, unless the head may make the role"
        yield Finding(WARNING, what, "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com")


def buckets(file: AwsFile, client: Client) -> Iterator[Finding]:
    """Whether the buckets are there, and in the region of the machines."""
    from botocore.exceptions import ClientError

    for bucket in file.buckets:
        try:
            answer = client("s3").head_bucket(Bucket=bucket)
        except ClientError as error:
            yield _no_bucket(bucket, str(error.response["Error"]["Code"]))
            continue
        region = answer.get("BucketRegion") or file.region
        if region == file.region:
            yield Finding(FINE, f"bucket {bucket}, in {region}")
        else:
            what = f"bucket {bucket} is in {region}, the machines in {file.region}: what they read is billed"
            yield Finding(WARNING, what, f"provider.region: {region}")
    if not file.buckets:
        yield Finding(FINE, "no bucket is named, and none was checked: --storage s3://BUCKET/runs, --data s3://...")


def _no_bucket(bucket: str, code: str) -> Finding:
    if code in ("404", "NoSuchBucket"):
        return Finding(FATAL, f"there is no bucket {bucket}", f"aws s3 mb s3://{bucket}, or another name")
    if code in ("403", "AccessDenied"):
        what = f"bucket {bucket}: it is somebody else's, or these credentials may not list it"
        return Finding(WARNING, what, "clusters/policies/person.json with its name")
    return Finding(WARNING, f"bucket {bucket}: S3 answers {code}", "its name, and the region of the file")
