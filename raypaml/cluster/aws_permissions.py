"""Every call to AWS that a cluster of `clusters/aws.yaml` makes, who makes it, and all that IAM is asked for it.

One call often needs more than the permission of its name: to start an instance, EC2 asks IAM about the image, the disk,
the network, the tags, the role that is passed, and the parameter that names the image. `tests/test_aws_policies.py`
holds `clusters/policies/*.json` against this table.

Ray's calls are those of ray/autoscaler/_private/aws, Ray 2.60; its head starts workers with the configuration that
`ray up` has completed, and looks nothing up again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from string import Formatter

PERSON, HEAD, WORKER = "person", "head", "worker"
"""Whoever calls `ray up` and `raypaml doctor`; the role of the head; the role of the workers."""
CLUSTER_TAG = "ray-cluster-name"
"""The tag that Ray gives to every instance and security group that it makes."""
SPOT_ROLE = "AWSServiceRoleForEC2Spot"

_GUIDE = "docs.aws.amazon.com/AWSEC2/latest/UserGuide"
_ACTIONS = "docs.aws.amazon.com/service-authorization/latest/reference"
_EC2 = f"{_ACTIONS}/list_amazonec2.html"
_S3 = f"{_ACTIONS}/list_amazons3.html"
_IAM = f"{_ACTIONS}/list_awsidentityandaccessmanagementiam.html"


@dataclass(frozen=True)
class Permission:
    """What IAM is asked: an action on a resource, in a context that conditions may look at."""

    action: str
    resource: str = "*"
    """An ARN with names in {braces}; "*" where the action knows no resources."""
    context: Mapping[str, str] = field(default_factory=dict)
    """Condition keys with their values. aws:RequestedRegion is there too where the service has regions."""

    def of(self, values: Mapping[str, str]) -> Permission:
        """This permission with the {names} filled in."""
        context = {key: value.format(**values) for key, value in self.context.items()}
        if not self.action.startswith(("iam:", "s3:")):  # IAM has no regions; a bucket's name stands for one
            context["aws:RequestedRegion"] = values["region"]
        return Permission(self.action, self.resource.format(**values), context)


@dataclass(frozen=True)
class Call:
    """A call, and all that IAM is asked for it."""

    by: tuple[str, ...]
    """PERSON, HEAD, WORKER."""
    made_in: str
    """The function that makes it: of Ray's aws/ folder, or of raypaml."""
    needs: tuple[Permission, ...]
    """The first is that of the call's own name."""
    source: str
    """Where AWS says so."""
    unless: str = ""
    """How `aws.yaml` avoids it; "" where the call is made. What is avoided is not granted."""


def _arn(kind: str) -> str:
    return f"arn:aws:ec2:{{region}}:{{account}}:{kind}"


_REQUEST_TAG = {f"aws:RequestTag/{CLUSTER_TAG}": "{asked_cluster}"}
_RESOURCE_TAG = {f"aws:ResourceTag/{CLUSTER_TAG}": "{tagged_cluster}"}
_LAUNCH = (
    Permission("ec2:RunInstances", _arn("instance/*"), _REQUEST_TAG),
    Permission("ec2:RunInstances", "arn:aws:ec2:{region}::image/{image}", {"ec2:Owner": "{owner}"}),
    Permission("ec2:RunInstances", _arn("volume/*")),
    Permission("ec2:RunInstances", _arn("network-interface/*")),
    Permission("ec2:RunInstances", _arn("subnet/{subnet}")),
    Permission("ec2:RunInstances", _arn("security-group/{group}"), _RESOURCE_TAG),
    Permission("ec2:RunInstances", _arn("key-pair/{key}")),
    Permission("ec2:CreateTags", _arn("instance/*"), {"ec2:CreateAction": "RunInstances", **_REQUEST_TAG}),
    Permission("iam:PassRole", "arn:aws:iam::{account}:role/{role}", {"iam:PassedToService": "ec2.amazonaws.com"}),
    Permission("ssm:GetParameters", "arn:aws:ssm:{region}::parameter{parameter}"),
)
_LAUNCH_SOURCE = (
    f"{_EC2}#amazonec2-RunInstances; {_GUIDE}/ExamplePolicies_EC2.html: launch, tag, work with spot instances (a spot "
    f"request that is not tagged is not checked); {_GUIDE}/supported-iam-actions-tagging.html; "
    f"{_GUIDE}/permission-to-pass-iam-roles.html; {_GUIDE}/using-systems-manager-parameter-to-find-AMI.html"
)


def _seen(action: str, by: tuple[str, ...], made_in: str, source: str = _EC2, unless: str = "") -> Call:
    """A call whose action knows no resources."""
    return Call(by, made_in, (Permission(action),), source, unless)


def _bucket(action: str, resource: str, by: tuple[str, ...], made_in: str) -> Call:
    return Call(by, made_in, (Permission(action, f"arn:aws:s3:::{{bucket}}{resource}"),), _S3)


_NODES = (HEAD, WORKER)
CALLS = (
    # Ray, as it reads clusters/aws.yaml: `ray up`, `ray exec`, `ray down`, and the autoscaler on the head.
    _seen("ec2:DescribeInstanceTypes", (PERSON,), "node_provider.py, list_ec2_instances"),
    _seen("ec2:DescribeKeyPairs", (PERSON,), "config.py, _get_key"),
    _seen("ec2:DescribeSubnets", (PERSON,), "config.py, _configure_subnet, _get_subnets_or_die"),
    _seen("ec2:DescribeSecurityGroups", (PERSON,), "config.py, _get_security_groups, _get_vpc_id_of_sg"),
    _seen("ec2:DescribeInstances", (PERSON, HEAD), "node_provider.py, non_terminated_nodes, _get_node"),
    Call(
        (PERSON,),
        "config.py, _configure_key_pair",
        (Permission("ec2:CreateKeyPair", _arn("key-pair/{key}")),),
        f"{_EC2}#amazonec2-CreateKeyPair",
    ),
    Call(
        (PERSON,),
        "config.py, _create_security_group",
        (
            Permission("ec2:CreateSecurityGroup", _arn("security-group/*"), _REQUEST_TAG),
            Permission("ec2:CreateSecurityGroup", _arn("vpc/{vpc}")),
            Permission(
                "ec2:CreateTags", _arn("security-group/*"), {"ec2:CreateAction": "CreateSecurityGroup", **_REQUEST_TAG}
            ),
        ),
        f"{_EC2}#amazonec2-CreateSecurityGroup; {_GUIDE}/supported-iam-actions-tagging.html",
    ),
    Call(
        (PERSON,),
        "config.py, _update_inbound_rules",
        (Permission("ec2:AuthorizeSecurityGroupIngress", _arn("security-group/{group}"), _RESOURCE_TAG),),
        f"{_EC2}#amazonec2-AuthorizeSecurityGroupIngress (security-group-rule only where rules are tagged)",
    ),
    Call((PERSON, HEAD), "node_provider.py, _create_node", _LAUNCH, _LAUNCH_SOURCE),
    Call(
        (PERSON, HEAD),
        "node_provider.py, _create_tags",
        (Permission("ec2:CreateTags", _arn("instance/{instance}"), _RESOURCE_TAG),),
        f"{_EC2}#amazonec2-CreateTags",
    ),
    Call(
        (PERSON, HEAD),
        "node_provider.py, terminate_node, terminate_nodes",
        (Permission("ec2:TerminateInstances", _arn("instance/{instance}"), _RESOURCE_TAG),),
        f"{_EC2}#amazonec2-TerminateInstances",
    ),
    # raypaml: shards, checkpoints and reports in the bucket, by pyarrow.
    _bucket("s3:ListBucket", "", _NODES, "raypaml/data/storage.py, raypaml/runs/mirror.py"),
    _bucket("s3:GetObject", "/*", _NODES, "raypaml/data/storage.py, raypaml/data/cache.py"),
    _bucket("s3:PutObject", "/*", _NODES, "raypaml/runs/mirror.py"),
    _bucket("s3:DeleteObject", "/*", _NODES, "raypaml/runs/mirror.py (older checkpoints), raypaml/cluster/nodes.py"),
    _bucket("s3:AbortMultipartUpload", "/*", _NODES, "pyarrow, of a large file that cannot be finished"),
    # `raypaml doctor --file` (raypaml/cluster/aws_checks.py, aws_roles.py). sts:GetCallerIdentity needs no permission.
    _seen("ec2:DescribeInstanceTypeOfferings", (PERSON,), "aws_checks.py, zones"),
    _seen("ec2:DescribeImages", (PERSON,), "aws_checks.py, images"),
    _seen("servicequotas:GetServiceQuota", (PERSON,), "aws_checks.py, quotas", f"{_ACTIONS}/list_servicequotas.html"),
    _seen(
        "servicequotas:GetAWSDefaultServiceQuota",
        (PERSON,),
        "aws_checks.py, quotas, where the account never asked for another one",
        f"{_ACTIONS}/list_servicequotas.html",
    ),
    Call(
        (PERSON,),
        "aws_checks.py, images",
        (Permission("ssm:GetParameters", "arn:aws:ssm:{region}::parameter{parameter}"),),
        f"{_ACTIONS}/list_awssystemsmanager.html",
    ),
    Call(
        (PERSON,),
        "aws_roles.py, profiles",
        (Permission("iam:GetInstanceProfile", "arn:aws:iam::{account}:instance-profile/{profile}"),),
        _IAM,
    ),
    Call(
        (PERSON,),
        "aws_roles.py, permissions",
        (Permission("iam:SimulatePrincipalPolicy", "arn:aws:iam::{account}:role/{profile}"),),
        _IAM,
    ),
    Call(
        (PERSON,),
        "aws_roles.py, spot_role",
        (Permission("iam:GetRole", f"arn:aws:iam::{{account}}:role/aws-service-role/spot.amazonaws.com/{SPOT_ROLE}"),),
        _IAM,
    ),
    _bucket("s3:ListBucket", "", (PERSON,), "aws_roles.py, buckets, by HeadBucket"),
    # What the same code of Ray does with other files.
    _seen("ec2:StartInstances", (PERSON, HEAD), "node_provider.py, create_node", unless="cache_stopped_nodes: false"),
    _seen(
        "ec2:StopInstances", (PERSON, HEAD), "node_provider.py, terminate_nodes", unless="cache_stopped_nodes: false"
    ),
    _seen("ec2:DescribeLaunchTemplateVersions", (PERSON,), "config.py", unless="no LaunchTemplate"),
    *(
        _seen(f"iam:{action}", (PERSON,), "config.py, _configure_iam_role", _IAM, "IamInstanceProfile is set")
        for action in (
            *("GetInstanceProfile", "CreateInstanceProfile", "AddRoleToInstanceProfile"),
            *("GetRole", "CreateRole", "AttachRolePolicy"),
        )
    ),
    *(
        _seen(action, (PERSON, HEAD), "node_provider.py, cloudwatch_helper.py", _ACTIONS, "no provider.cloudwatch")
        for action in (
            *("ec2:DescribeImages", "ec2:DescribeInstanceStatus", "iam:CreatePolicy", "iam:GetPolicy"),
            *("cloudwatch:PutDashboard", "cloudwatch:PutMetricAlarm", "sts:GetCallerIdentity"),
            *("ssm:SendCommand", "ssm:ListCommandInvocations", "ssm:GetParameter", "ssm:PutParameter"),
        )
    ),
    # What EC2 asks for at a launch in some accounts.
    _seen(
        "iam:CreateServiceLinkedRole",
        (HEAD,),
        "node_provider.py, _create_node: the account's first spot instance",
        f"{_GUIDE}/service-linked-roles-spot-instance-requests.html",
        f"{SPOT_ROLE} is made once per account (clusters/README.md)",
    ),
    *(
        _seen(
            f"kms:{action}",
            (PERSON, HEAD),
            "node_provider.py, _create_node: disks encrypted with a key of your own",
            "docs.aws.amazon.com/ebs/latest/userguide/ebs-encryption-requirements.html",
            "no KmsKeyId, and the account's default key is Amazon's",
        )
        for action in ("CreateGrant", "Decrypt", "DescribeKey", "GenerateDataKeyWithoutPlaintext", "ReEncrypt*")
    ),
)


def needed(who: str) -> Iterator[Permission]:
    """What PERSON, HEAD or WORKER must be allowed for the calls of `clusters/aws.yaml`, names still in {braces}."""
    for call in CALLS:
        if who in call.by and not call.unless:
            yield from call.needs


def names(permission: Permission) -> set[str]:
    """The names in {braces} of a permission."""
    texts = (permission.resource, *permission.context.values())
    return {name for text in texts for _, name, _, _ in Formatter().parse(text) if name}
