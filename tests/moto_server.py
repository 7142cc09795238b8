"""AWS of our own: moto as a server, which asks about every call what IAM asks, and notes it.

    python -m tests.moto_server LOG [moto's flags]

moto itself checks signatures and compares the names of actions. What it leaves out is put in here: whatever else IAM
asks about a call (`raypaml/cluster/aws_permissions.py`), with the resources and tags that the call is really about; and
an image named by a parameter (`resolve:ssm:`).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from moto.core.exceptions import AccessDeniedError
from moto.ec2.models import ec2_backends
from moto.ec2.responses.instances import InstanceResponse
from moto.iam.access_control import IAMPolicy, IAMRequestBase
from moto.iam.models import iam_backends
from moto.server import main
from moto.ssm.models import Parameter, ParameterDict

from raypaml.cluster.aws_permissions import CLUSTER_TAG, Permission
from tests.iam import ACCOUNT, allows, call_of, implied

ADMIN = "admin"
"""A user who may do everything: the test itself, and EC2, which takes spot instances away."""
RESOLVE = "resolve:ssm:"
OF_S3 = {"s3:HeadBucket": "s3:ListBucket"}


def numbered(data: dict[str, list[str]], name: str) -> list[str]:
    """The values NAME.1, NAME.2, ... of a request."""
    return [value[0] for key, value in data.items() if re.fullmatch(rf"{name}\.\d+", key)]


def tag_of(ec2: Any, resource: str) -> str:
    """The cluster that a resource is tagged with; "" without such a tag."""
    return str(
        next((tag["value"] for tag in ec2.describe_tags({"resource-id": [resource]}) if tag["key"] == CLUSTER_TAG), "")
    )


def tag_in(data: dict[str, list[str]]) -> str:
    """The cluster that a request puts on what it makes."""
    for key, value in data.items():
        if value == [CLUSTER_TAG]:
            return data[key.removesuffix("Key") + "Value"][0]
    return ""


def profile_role(account: str, name: str | None) -> str | None:
    return iam_backends[account]["aws"].get_instance_profile(name).roles[0].name if name else None


def values(request: Any) -> list[dict[str, str | None]]:
    """What fills the names of the permissions of a request: once for each thing that it is about."""
    data, region = request._data, request._region
    ec2 = ec2_backends[ACCOUNT][region]
    one = {key: value[0] for key, value in data.items()}
    image = one.get("ImageId", "")
    basic: dict[str, str | None] = {
        "region": region,
        "account": ACCOUNT,
        "asked_cluster": tag_in(data),
        "image": resolved(image, region) if image else None,
        "owner": "amazon",  # as all images are that moto knows
        "parameter": image.removeprefix(RESOLVE) if image.startswith(RESOLVE) else None,
        "subnet": one.get("SubnetId"),
        "vpc": one.get("VpcId"),
        "key": one.get("KeyName"),
        "role": profile_role(ACCOUNT, one.get("IamInstanceProfile.Name")),
        "profile": one.get("InstanceProfileName") or one.get("PolicySourceArn", "").rpartition("/")[2],
    }
    groups = (*numbered(data, "SecurityGroupId"), *data.get("GroupId", ()))
    instances = (*numbered(data, "InstanceId"), *numbered(data, "ResourceId"))
    things: list[dict[str, str | None]] = [{"group": one, "tagged_cluster": tag_of(ec2, one)} for one in groups]
    things += [{"instance": one, "tagged_cluster": tag_of(ec2, one)} for one in instances]
    if request._action == "ssm:GetParameters":
        things += [{"parameter": name} for name in json.loads(request._body)["Names"]]
    return [basic | thing for thing in things or [{}]]


def asked(request: Any, resource: str) -> list[Permission]:
    """All that IAM asks about a request."""
    action = OF_S3.get(request._action, request._action)
    call = call_of(action)
    if call is None:
        return [Permission(action, "a call that is not in the table")]
    if action.startswith("s3:"):
        return [Permission(action, resource)]
    several = [permission for filled in values(request) for permission in implied(call, filled)]
    return several or [Permission(action, "about nothing that could be told")]


def check(request: Any, resource: str) -> None:
    """In place of moto's own: raises where a permission is missing, and notes what was asked."""
    who = request._access_key.arn
    if request._action == "sts:GetCallerIdentity" or who.endswith(f":user/{ADMIN}"):
        return
    policies = [IAMPolicy(one)._policy_json for one in request._access_key.collect_policies()]
    refused = [one for one in asked(request, resource) if not allows(policies, one)]
    note = {"who": who, "action": request._action, "refused": [[one.action, one.resource] for one in refused]}
    with LOG.open("a") as file:
        file.write(json.dumps(note) + "\n")
    if refused:
        raise AccessDeniedError(user_arn=who, action=f"{refused[0].action} on {refused[0].resource}")


def resolved(image: str, region: str) -> str:
    """The id of an image; one that is named by a parameter is any."""
    if not image.startswith(RESOLVE):
        return image
    return str(ec2_backends[ACCOUNT][region].describe_images()[0].id)


def parameter(response: Any, name: str, *args: Any, **options: Any) -> Any:
    """As moto reads it, but EC2 starts as many instances as it can, not as few, and resolves images."""
    value = _parameter(response, "MaxCount" if name == "MinCount" else name, *args, **options)
    return resolved(value, response.region) if name == "ImageId" and value else value


def load(known: ParameterDict, name: str) -> None:
    """As moto loads Amazon's parameters, and those that name images of its own too."""
    _load(known, name)
    if str(name).startswith("/aws/service/deeplearning/ami/") and not dict.get(known, name):
        value = resolved(f"{RESOLVE}{name}", known.region_name)
        about = {"description": None, "allowed_pattern": None, "keyid": None, "last_modified_date": 0, "version": 1}
        one = Parameter(known.account_id, name, value, parameter_type="String", data_type="text", **about)
        dict.__setitem__(known, name, [one])


if __name__ == "__main__":
    _load, ParameterDict._check_loading_status = ParameterDict._check_loading_status, load
    LOG = Path(sys.argv[1])
    _parameter = InstanceResponse._get_param
    InstanceResponse._get_param = parameter
    IAMRequestBase.check_action_permitted = check
    main(sys.argv[2:])
