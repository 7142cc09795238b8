"""`raypaml doctor --file` of a file for AWS: what the account would refuse, asked before anything is started or billed.

Nothing is changed in the account. What `clusters/policies/person.json` allows is enough for all of it; what the
credentials may not ask is said, and left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raypaml.cluster.aws_file import AwsFile, Client, NodeType
from raypaml.cluster.aws_quotas import Quota, quota_of
from raypaml.cluster.aws_roles import buckets, permissions, profiles, spot_role
from raypaml.cluster.checks import FATAL, FINE, WARNING, Finding
from raypaml.cluster.kuberay_file import parts
from raypaml.cluster.worker_errors import brief_cause

DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")


def examine_aws(file: AwsFile) -> Iterator[Finding]:
    """Yield what the account says about a file; without credentials it is not asked."""
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        what = "boto3 is not installed here: `ray up` cannot start anything, and the account was not asked"
        yield Finding(FATAL, what, "pip install 'raypaml[cluster]'")
        return
    try:
        session = boto3.Session(region_name=file.region)
        credentials = session.get_credentials()
    except BotoCoreError as error:  # such as a profile that is not there
        yield Finding(FATAL, f"credentials: {error}", "AWS_PROFILE, or `aws configure`")
        return
    regions = {one for name in session.get_available_partitions() for one in session.get_available_regions("ec2", name)}
    if file.region not in regions:
        yield Finding(FATAL, f"provider.region={file.region!r} is no region of EC2", "such as us-east-1")
    elif credentials is None:
        what = "no credentials here: `ray up` cannot start anything, and the account was not asked"
        yield Finding(FATAL, what, "AWS_PROFILE, or `aws configure`")
    else:
        config = Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 2})
        yield from examine_account(file, lambda service: session.client(service, config=config))


def examine_account(file: AwsFile, client: Client) -> Iterator[Finding]:
    """Yield the findings of every check; a question that the account does not answer is a finding too."""
    try:
        arn = client("sts").get_caller_identity()["Arn"]
    except Exception as error:  # whatever boto3 raises
        yield _unanswered("credentials", error, "AWS_PROFILE, `aws sso login`, or the network")
        return
    yield Finding(FINE, f"in {file.region} as {arn}")
    if file.has_credentials:
        what = "provider.aws_credentials: Ray uses these, and the account was asked with the others"
        yield Finding(WARNING, what, "AWS_PROFILE, and no credentials in the file")
    if untyped := [node.name for node in file.started if not node.instance_type]:
        yield Finding(FATAL, f"{', '.join(untyped)}: node_config has no InstanceType", "such as g5.12xlarge")
        return
    for check in (zones, quotas, images, profiles, spot_role, permissions, buckets):
        try:
            yield from check(file, client)
        except Exception as error:  # whatever boto3 raises; a proxy may answer with anything
            yield _unanswered(check.__name__, error, "what it names, the network, or provider.region")


def _unanswered(about: str, error: Any, remedy: str) -> Finding:
    """What is said of a question that was refused, or that nobody answered."""
    if not hasattr(error, "response"):
        return Finding(FATAL, f"{about}: no answer that can be read: {brief_cause(error)}", remedy)
    call, code = error.operation_name, error.response["Error"]["Code"]
    if code in DENIED:
        what = f"{about}: not checked, for these credentials may not call {call}"
        return Finding(WARNING, what, "clusters/policies/person.json allows it")
    said = " ".join(error.response["Error"].get("Message", "").split())
    return Finding(FATAL, f"{about}: {call}: {code}: {said[:300]}", remedy)


def zones(file: AwsFile, client: Client) -> Iterator[Finding]:
    """Whether every type is offered where there is a subnet that Ray would take."""
    ec2 = client("ec2")
    subnets = [
        subnet
        for page in ec2.get_paginator("describe_subnets").paginate()
        for subnet in page["Subnets"]
        if subnet["State"] == "available" and (file.is_internal or subnet["MapPublicIpOnLaunch"])
    ]
    types = sorted({node.instance_type for node in file.started})
    asked = {"LocationType": "availability-zone", "Filters": [{"Name": "instance-type", "Values": types}]}
    pages = ec2.get_paginator("describe_instance_type_offerings").paginate(**asked)
    offers = {(one["InstanceType"], one["Location"]) for page in pages for one in page["InstanceTypeOfferings"]}
    for node in file.started:
        yield _zones_of(node, file, subnets, offers)


def _zones_of(node: NodeType, file: AwsFile, subnets: list[Any], offers: set[tuple[str, str]]) -> Finding:
    chosen = parts(node.config, "SubnetIds")
    there = {subnet["AvailabilityZone"] for subnet in subnets if not chosen or subnet["SubnetId"] in chosen}
    there &= set(file.zones) or there
    where = ", ".join(file.zones) or file.region
    if not there:
        kind = "subnet" if file.is_internal else "subnet that gives instances public addresses"
        return Finding(FATAL, f"{node.name}: no {kind} in {where}", "`aws ec2 create-default-vpc`, or other zones")
    offered = sorted(zone for zone in there if (node.instance_type, zone) in offers)
    if not offered:
        what = f"{node.name}: {node.instance_type} is offered in none of {', '.join(sorted(there))}"
        elsewhere = sorted(zone for name, zone in offers if name == node.instance_type)
        return Finding(
            FATAL, what, f"availability_zone: {','.join(elsewhere)}" if elsewhere else "another region or type"
        )
    return Finding(FINE, f"{node.name}: {node.instance_type} is offered in {', '.join(offered)}")


def quotas(file: AwsFile, client: Client) -> Iterator[Finding]:
    """Whether the account may run as many vCPUs as the cluster can have; in new accounts none with a GPU."""
    types = sorted({node.instance_type for node in file.started})
    described = client("ec2").describe_instance_types(InstanceTypes=types)["InstanceTypes"]
    vcpus = {one["InstanceType"]: int(one["VCpuInfo"]["DefaultVCpus"]) for one in described}
    wanted: dict[Quota, list[tuple[NodeType, int]]] = {}
    for node in file.started:
        if quota := quota_of(node.instance_type, spot=node.is_spot):
            wanted.setdefault(quota, []).append((node, vcpus.get(node.instance_type, 0)))
        else:
            what = f"{node.name}: the quota of {node.instance_type} is not known here, and was not checked"
            yield Finding(WARNING, what, "https://console.aws.amazon.com/servicequotas/home/services/ec2/quotas")
    for quota, nodes in wanted.items():
        yield _quota_finding(quota, _value(client("service-quotas"), quota), nodes, file.region)


def _value(client: Any, quota: Quota) -> float:
    """What the account may run, in vCPUs; where it never asked for another value, the one that all have."""
    asked = {"ServiceCode": "ec2", "QuotaCode": quota.code}
    try:
        return float(client.get_service_quota(**asked)["Quota"]["Value"])
    except client.exceptions.NoSuchResourceException:
        return float(client.get_aws_default_service_quota(**asked)["Quota"]["Value"])


def _quota_finding(quota: Quota, value: float, nodes: list[tuple[NodeType, int]], region: str) -> Finding:
    most = sum((1 if node.is_head else node.most) * vcpus for node, vcpus in nodes)
    least = max(vcpus for _, vcpus in nodes)
    counted = " and ".join(f"{1 if node.is_head else node.most} x {node.instance_type}" for node, _ in nodes)
    what = f"quota {quota.code}, {quota.name}: {value:g} vCPUs in {region}; {counted} are {most}"
    if value >= most:
        return Finding(FINE, what)
    level = FATAL if value < least else WARNING
    short = "not one node starts" if level == FATAL else "fewer nodes start; all that runs in the account counts"
    return Finding(level, f"{what}: {short}", f"request {most} at {quota.address} (region {region}); it can take days")


def images(file: AwsFile, client: Client) -> Iterator[Finding]:
    """Whether the images are there, and their disks as the file has them."""
    names = sorted({node.parameter for node in file.started if node.parameter})
    answer = client("ssm").get_parameters(Names=names) if names else {}
    ids = {one["Name"] + one.get("Selector", ""): one["Value"] for one in answer.get("Parameters", ())}  # NAME:VERSION
    for name in answer.get("InvalidParameters", ()):
        yield Finding(FATAL, f"ImageId: there is no parameter {name} in {file.region}", "another one, or an ami-... id")
    nodes = [(node, ids.get(node.parameter, "") if node.parameter else node.image) for node in file.started]
    for node in file.started:
        if node.image in ("", "latest_dlami"):
            what = f"{node.name}: no ImageId: Ray takes an image of its own, of Ubuntu 18.04"
            yield Finding(WARNING, what, "the ImageId of clusters/aws.yaml")
    known = sorted({one for _, one in nodes if one.startswith("ami-")})
    described = client("ec2").describe_images(ImageIds=known)["Images"] if known else []
    for missing in sorted(set(known) - {one["ImageId"] for one in described}):
        yield Finding(FATAL, f"ImageId: there is no image {missing} in {file.region}", "another one")
    for one in described:
        of = [node for node, its in nodes if its == one["ImageId"]]
        yield Finding(FINE, f"image {one['ImageId']} ({one.get('Name', '')}) of {', '.join(node.name for node in of)}")
        for node in of:
            yield from _root_disk(node, one)


def _root_disk(node: NodeType, described: Any) -> Iterator[Finding]:
    """EC2 takes a disk of another name for a further one, and refuses one that is smaller than the image's."""
    root = described["RootDeviceName"]
    sizes = {disk["DeviceName"]: disk.get("Ebs", {}).get("VolumeSize", 0) for disk in described["BlockDeviceMappings"]}
    given = node.disks
    if given and root not in given:
        what = f"{node.name}: the image's disk is {root}, BlockDeviceMappings has {', '.join(given)}"
        yield Finding(WARNING, f"{what}: it keeps its {sizes.get(root, 0)} GiB", f"DeviceName: {root}")
    elif given.get(root) and given[root] < sizes.get(root, 0):
        what = f"{node.name}: VolumeSize={given[root]} GiB, the image takes {sizes[root]}"
        yield Finding(FATAL, what, f"VolumeSize: {sizes[root]}, or more")
