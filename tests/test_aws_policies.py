"""clusters/policies: they allow what a cluster asks for, no more, and nothing to strangers; and Ray asks for no more.

Under these policies a cluster comes up, trains, loses an instance and goes down in `test_cluster_aws.py`.
"""

from __future__ import annotations

import ast
import copy
import gzip
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore
import pytest
import yaml
from botocore import xform_name

from raypaml.cluster.aws_permissions import CALLS, HEAD, PERSON, WORKER, Permission, names, needed
from tests.iam import ACCOUNT, POLICIES, ROOT, allows, listed, policy

FILE: Any = yaml.safe_load((ROOT / "clusters" / "aws.yaml").read_text())
KINDS = FILE["available_node_types"]
PROFILES = {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in KINDS.values()}
VALUES = {
    "region": FILE["provider"]["region"],
    "account": ACCOUNT,
    "bucket": "bucket",
    "asked_cluster": FILE["cluster_name"],
    "tagged_cluster": FILE["cluster_name"],
    "owner": "amazon",
    "key": f"ray-autoscaler_{FILE['provider']['region']}",
    "parameter": KINDS["head"]["node_config"]["ImageId"].removeprefix("resolve:ssm:"),
    **{name: f"{name}-1" for name in ("image", "subnet", "group", "vpc", "instance")},
}
ROLES = {PERSON: "raypaml-head", HEAD: "raypaml-worker", WORKER: ""}
"""The role that each gives to the instances that it starts."""
SCOPED = ("region", "bucket", "asked_cluster", "tagged_cluster", "owner", "key", "parameter", "role", "profile")
"""What must be ours, and not a stranger's. Which image, network or instance, the tags say."""
EVERYBODY = (PERSON, HEAD, WORKER)


def asked(who: str, **other: str) -> Iterator[Permission]:
    """What somebody asks for; `other` values in place of ours."""
    for need in needed(who):
        for profile in sorted(PROFILES) if "profile" in names(need) else [""]:
            yield need.of(VALUES | {"role": ROLES[who], "profile": profile} | other)


@pytest.mark.parametrize("who", EVERYBODY)
def test_what_is_needed_is_allowed(who: str) -> None:
    assert [one for one in asked(who) if not allows([policy(who)], one)] == []


@pytest.mark.parametrize("who", EVERYBODY)
def test_what_is_not_needed_is_not_allowed(who: str) -> None:
    """Without any action, resource or value of a condition, something is refused."""
    whole = policy(who)
    for n, statement in enumerate(whole["Statement"]):
        for key in ("Action", "Resource"):
            for value in listed(statement[key]):
                less = copy.deepcopy(whole)
                less["Statement"][n][key] = [one for one in listed(statement[key]) if one != value]
                assert not all(allows([less], one) for one in asked(who)), f"{statement['Sid']}: {value} is not needed"
        for name, values in statement.get("Condition", {}).get("StringEquals", {}).items():
            for value in listed(values):
                less = copy.deepcopy(whole)
                kept = [one for one in listed(values) if one != value]
                less["Statement"][n]["Condition"]["StringEquals"][name] = kept
                assert not all(allows([less], one) for one in asked(who)), f"{statement['Sid']}: {value} is not needed"


@pytest.mark.parametrize("who", EVERYBODY)
def test_nothing_of_a_stranger_is_allowed(who: str) -> None:
    """Neither another cluster, region, role, bucket, image or key, nor a condition that is not as EC2 says."""
    own = policy(who)
    for need in needed(who):
        values = VALUES | {"role": ROLES[who], "profile": "raypaml-head"}
        ours = need.of(values)
        for name in SCOPED:
            if name in names(need) or (name == "region" and "aws:RequestedRegion" in ours.context):
                assert not allows([own], need.of(values | {name: "another"})), (need, name)
        for key in need.context:
            stranger = Permission(ours.action, ours.resource, dict(ours.context) | {key: "another"})
            assert not allows([own], stranger), (need, key)
            without = {name: value for name, value in ours.context.items() if name != key}
            assert not allows([own], Permission(ours.action, ours.resource, without)), (need, key)


@pytest.mark.parametrize("who", EVERYBODY)
def test_no_action_is_a_pattern_and_no_resource_anything_where_resources_are_known(who: str) -> None:
    blind = {need.action for need in needed(who) if need.resource == "*"}
    for statement in policy(who)["Statement"]:
        assert not any(re.search(r"[*?]", action) for action in listed(statement["Action"]))
        if "*" in listed(statement["Resource"]):
            assert set(listed(statement["Action"])) <= blind


def test_they_fit_where_the_readme_puts_them_and_name_what_the_cluster_file_names() -> None:
    """Characters without white space: docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html."""
    limits = {PERSON: 6144, HEAD: 10_240, WORKER: 10_240}  # a managed policy; all inline policies of a role
    for who, limit in limits.items():
        text = (POLICIES / f"{who}.json").read_text()
        assert len("".join(text.split())) < limit
        assert set(re.findall(r"YOUR-[A-Z-]+", text)) == {"YOUR-BUCKET"}
        assert set(re.findall(r"[a-z]+-[a-z]+-\d", text)) <= {FILE["provider"]["region"]}
        assert set(re.findall(r"raypaml-\w+", text)) <= PROFILES
    assert json.loads((POLICIES / "trust.json").read_text())["Statement"][0]["Action"] == "sts:AssumeRole"


def test_full_access_to_ec2_was_not_enough_for_the_head() -> None:
    """What this page said before: EC2 refuses workers whose image is named by a parameter."""
    allowed = [("ec2:*", "*"), ("iam:PassRole", "*"), ("s3:*", "*")]
    statements = [{"Effect": "Allow", "Action": action, "Resource": resource} for action, resource in allowed]
    refused = [one.action for one in asked(HEAD) if not allows([{"Statement": statements}], one)]
    assert refused == ["ssm:GetParameters"]


# --- Ray's source -----------------------------------------------------------------------------------------------------


def ray_files() -> list[Path]:
    folder = Path(str(importlib.util.find_spec("ray").origin)).parent / "autoscaler" / "_private" / "aws"  # type: ignore[union-attr]
    return list(folder.rglob("*.py"))


def test_the_table_has_every_call_of_rays_provider_and_no_other() -> None:
    """Read in its source, by the names that boto3 gives to calls. Another Ray may make others."""
    there = {action for path in ray_files() for action in calls_in(ast.parse(path.read_text()))}
    in_table = {call.needs[0].action for call in CALLS}
    assert there <= in_table, there - in_table
    assert {
        "ec2:RunInstances",
        "ec2:CreateTags",
        "ec2:AuthorizeSecurityGroupIngress",
        "iam:AddRoleToInstanceProfile",
    } <= there
    texts = {path.name: path.read_text() for path in ray_files()}
    for call in CALLS:
        file, _, functions = call.made_in.partition(":")[0].partition(", ")
        for function in re.findall(r"\w+", functions) if file in texts and ".py" not in functions else ():
            assert f"def {function}(" in texts[file], call.made_in
        if file in texts and call.needs[0].action.startswith("ec2:") and not call.unless:
            assert call.needs[0].action in there


def calls_in(tree: ast.AST) -> Iterator[str]:
    methods = boto_methods()
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name, on = node.func.attr, node.func.value
        if name in ("filter", "all") and isinstance(on, ast.Attribute):
            yield from methods.get(on.attr, ())
        elif name == "get_waiter":
            yield from methods.get(f"waiter {ast.literal_eval(node.args[0])}", ())
        elif name != "load" or not node.args:  # else it is json.load
            yield from methods.get(name, ())


def boto_methods() -> dict[str, set[str]]:
    """The calls that are behind a method of a client or of a resource, or behind a collection of a resource."""
    found: dict[str, set[str]] = {}
    for service in ("ec2", "iam", "ssm", "sts", "cloudwatch"):
        for operation in model(botocore, service, "service-2")["operations"]:
            found.setdefault(xform_name(operation), set()).add(f"{service}:{operation}")
        for waiter, one in model(botocore, service, "waiters-2")["waiters"].items():
            found.setdefault(f"waiter {xform_name(waiter)}", set()).add(f"{service}:{one['operation']}")
    for service, kinds in (("ec2", ("Instance", "SecurityGroup")), ("iam", ("Role", "InstanceProfile"))):
        resources = model(boto3, service, "resources-1")
        for owner in (resources["service"], *(resources["resources"][kind] for kind in kinds)):
            made = {**owner.get("actions", {}), **owner.get("hasMany", {}), "Load": owner.get("load")}
            for name, action in made.items():
                if action:
                    found.setdefault(xform_name(name), set()).add(f"{service}:{action['request']['operation']}")
    return found


def model(package: Any, service: str, name: str) -> Any:
    """A newest description of a service in boto3 or botocore, which their own loader takes seconds to read."""
    folder = max((Path(package.__file__).parent / "data" / service).iterdir())
    for path in folder.glob(f"{name}.json*"):
        return json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    return {"waiters": {}}
