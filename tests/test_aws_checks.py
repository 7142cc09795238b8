"""`raypaml doctor --file clusters/aws.yaml`: what is asked of the account, and what is said of its answers."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.parsers import ResponseParserError
from botocore.stub import ANY, Stubber
from ray.autoscaler._private.util import prepare_config, validate_config

from raypaml import doctor
from raypaml.cluster import aws_checks, cluster_files
from raypaml.cluster.aws_checks import examine_account
from raypaml.cluster.aws_file import AwsFile, read_aws_file
from raypaml.cluster.aws_permissions import HEAD, WORKER, needed
from raypaml.cluster.aws_quotas import quota_of
from raypaml.cluster.checks import FATAL, FINE, WARNING, Finding
from tests.iam import ROOT

PATH = ROOT / "clusters" / "aws.yaml"
TEXT = PATH.read_text()
PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
ZONES = ["us-east-1a", "us-east-1b"]

Answer = tuple[str, str, Any, Any]
"""Service, method, what is expected of the request, and the response, or the code of an error."""


def read(text: str = TEXT, addresses: tuple[str, ...] = ("s3://bucket/runs",)) -> AwsFile:
    found = read_aws_file(PATH, text, yaml.safe_load(text), addresses)
    assert found
    return found


@cache
def client(service: str) -> Any:
    return boto3.client(service, "us-east-1", aws_access_key_id="none", aws_secret_access_key="none")


def subnet(zone: str, public: bool = True) -> dict[str, Any]:
    return {"SubnetId": f"subnet-{zone}", "State": "available", "AvailabilityZone": zone, "MapPublicIpOnLaunch": public}


def offers(*zones: str) -> dict[str, Any]:
    types = ("m7i.xlarge", "g5.12xlarge")
    return {"InstanceTypeOfferings": [{"InstanceType": one, "Location": zone} for one in types for zone in zones]}


def quota(value: float) -> dict[str, Any]:
    return {"Quota": {"Value": value}}


def profile(name: str, *, role: bool = True) -> dict[str, Any]:
    arn = f"arn:aws:iam::123456789012:role/{name}"
    dates = {"CreateDate": "2026-01-01T00:00:00Z", "Path": "/"}
    roles = [{"RoleName": name, "RoleId": "A" * 20, "Arn": arn, **dates}] if role else []
    ids = {"InstanceProfileName": name, "InstanceProfileId": "A" * 20, "Arn": arn}
    return {"InstanceProfile": {**ids, **dates, "Roles": roles}}


def image(root: str = "/dev/sda1", size: int = 60) -> dict[str, Any]:
    disks = [{"DeviceName": root, "Ebs": {"VolumeSize": size}}]
    return {"Images": [{"ImageId": "ami-1", "Name": "DLAMI", "RootDeviceName": root, "BlockDeviceMappings": disks}]}


def simulated(decision: str = "allowed") -> dict[str, Any]:
    return {"EvaluationResults": [{"EvalActionName": "any", "EvalDecision": decision}]}


def healthy() -> dict[str, Answer]:
    """What an account answers in which all is there, in the order in which it is asked."""
    vcpus = {"m7i.xlarge": 4, "g5.12xlarge": 48}
    described = [{"InstanceType": name, "VCpuInfo": {"DefaultVCpus": number}} for name, number in vcpus.items()]
    roles = {name: {"InstanceProfileName": f"raypaml-{name}"} for name in ("head", "worker")}
    answers: dict[str, Answer] = {
        "identity": ("sts", "get_caller_identity", {}, {"Arn": "arn:aws:iam::123456789012:user/me"}),
        "subnets": ("ec2", "describe_subnets", {}, {"Subnets": [subnet(zone) for zone in ZONES]}),
        "offers": ("ec2", "describe_instance_type_offerings", ANY, offers(*ZONES)),
        "types": ("ec2", "describe_instance_types", ANY, {"InstanceTypes": described}),
        "on demand": ("service-quotas", "get_service_quota", asked_quota("L-1216C47A"), quota(5)),
        "spot": ("service-quotas", "get_service_quota", asked_quota("L-3819A6DF"), quota(192)),
        "parameter": ("ssm", "get_parameters", {"Names": [PARAMETER]}, {"Parameters": [parameter()]}),
        "image": ("ec2", "describe_images", {"ImageIds": ["ami-1"]}, image()),
        "head": ("iam", "get_instance_profile", roles["head"], profile("raypaml-head")),
        "worker": ("iam", "get_instance_profile", roles["worker"], profile("raypaml-worker")),
        "spot role": (
            "iam",
            "get_role",
            {"RoleName": "AWSServiceRoleForEC2Spot"},
            {"Role": profile("x")["InstanceProfile"]["Roles"][0]},
        ),
        "head again": ("iam", "get_instance_profile", roles["head"], profile("raypaml-head")),
        "worker again": ("iam", "get_instance_profile", roles["worker"], profile("raypaml-worker")),
    }
    for who in (WORKER, HEAD):
        for n, need in enumerate(needed(who)):
            request = {
                "PolicySourceArn": f"arn:aws:iam::123456789012:role/raypaml-{who}",
                "ActionNames": [need.action],
                "ResourceArns": ANY,
                "ContextEntries": ANY,
            }
            answers[f"{who} {n} {need.action}"] = ("iam", "simulate_principal_policy", request, simulated())
    answers["bucket"] = ("s3", "head_bucket", {"Bucket": "bucket"}, {"BucketRegion": "us-east-1"})
    return answers


def asked_quota(code: str) -> dict[str, str]:
    return {"ServiceCode": "ec2", "QuotaCode": code}


def parameter() -> dict[str, str]:
    return {"Name": PARAMETER, "Value": "ami-1"}


def examined(answers: list[Answer], file: AwsFile | None = None) -> list[Finding]:
    """The findings, where the account gives these answers; each must have been asked for."""
    stubs = {service: Stubber(client(service)) for service in {service for service, *_ in answers}}
    for service, method, request, response in answers:
        expected = None if request is ANY else request
        if isinstance(response, str):
            stubs[service].add_client_error(method, response, f"{response} is said", expected_params=expected)
        else:
            stubs[service].add_response(method, response, expected)
    for stub in stubs.values():
        stub.activate()
    try:
        findings = list(examine_account(file or read(), client))
    finally:
        for stub in stubs.values():
            stub.deactivate()
    for stub in stubs.values():
        stub.assert_no_pending_responses()
    return findings


def after(**changes: Any) -> list[Answer]:
    """The answers of the account with some of them changed, by name; None takes one away."""
    answers = healthy()
    for name, response in changes.items():
        answers[name] = (*answers[name][:3], response)
    return [answer for answer in answers.values() if answer[3] is not None]


def test_an_account_in_which_all_is_there() -> None:
    findings = examined(after())
    assert {finding.level for finding in findings} == {FINE}, findings
    said = "\n".join(map(str, findings))
    for part in (
        "in us-east-1 as arn:aws:iam::123456789012:user/me",
        "gpu_spot: g5.12xlarge is offered in us-east-1a, us-east-1b",
        "quota L-3819A6DF, All G and VT Spot Instance Requests: 192 vCPUs in us-east-1; 4 x g5.12xlarge are 192",
        "image ami-1 (DLAMI) of head, gpu_spot",
        "instance profile raypaml-worker, with the role raypaml-worker",
        f"role raypaml-head: IAM allows the {len(list(needed(HEAD)))} things that a head asks for",
        "bucket bucket, in us-east-1",
    ):
        assert part in said


SSM = next(f"head {n} {need.action}" for n, need in enumerate(needed(HEAD)) if need.action == "ssm:GetParameters")
FAULTS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"image": {"Images": []}}, FATAL, "ImageId: there is no image ami-1 in us-east-1", "another one"),
    (
        {"spot": quota(0)},
        FATAL,
        "L-3819A6DF, All G and VT Spot Instance Requests: 0 vCPUs in us-east-1; 4 x g5.12xlarge are 192: not one node",
        "request 192 at https://",
    ),
    (
        {"spot": quota(96)},
        WARNING,
        "96 vCPUs in us-east-1; 4 x g5.12xlarge are 192: fewer nodes start",
        "request 192 at https://",
    ),
    (
        {"spot": "AccessDeniedException"},
        WARNING,
        "quotas: not checked, for these credentials may not call GetServiceQuota",
        "person.json",
    ),
    (
        {"subnets": {"Subnets": [subnet("us-east-1a", public=False)]}},
        FATAL,
        "gpu_spot: no subnet that gives instances public addresses in us-east-1a, us-east-1b",
        "create-default-vpc",
    ),
    ({"subnets": {"Subnets": [subnet("us-east-1f")]}}, FATAL, "head: no subnet that gives", "other zones"),
    (
        {"offers": offers("us-east-1f")},
        FATAL,
        "gpu_spot: g5.12xlarge is offered in none of us-east-1a, us-east-1b",
        "availability_zone: us-east-1f",
    ),
    ({"offers": offers()}, FATAL, "g5.12xlarge is offered in none of", "another region or type"),
    (
        {"types": "InvalidInstanceType", "on demand": None, "spot": None},
        FATAL,
        "quotas: DescribeInstanceTypes: InvalidInstanceType",
        "what it names",
    ),
    (
        {"parameter": {"InvalidParameters": [PARAMETER]}, "image": None},
        FATAL,
        f"there is no parameter {PARAMETER} in us-east-1",
        "an ami-... id",
    ),
    (
        {"image": image("/dev/xvda")},
        WARNING,
        "head: the image's disk is /dev/xvda, BlockDeviceMappings has /dev/sda1",
        "DeviceName: /dev/xvda",
    ),
    ({"image": image(size=120)}, FATAL, "gpu_spot: VolumeSize=100 GiB, the image takes 120", "VolumeSize: 120"),
    (
        {"worker": "NoSuchEntity", "worker again": "NoSuchEntity"},
        FATAL,
        "there is no instance profile raypaml-worker",
        "Once per AWS account",
    ),
    (
        {"worker": profile("raypaml-worker", role=False)},
        FATAL,
        "the instance profile raypaml-worker has no role",
        "add-role-to-instance-profile",
    ),
    (
        {"spot role": "NoSuchEntity"},
        WARNING,
        "there is no role AWSServiceRoleForEC2Spot",
        "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com",
    ),
    (
        {SSM: simulated("implicitDeny")},
        WARNING,
        f"things that a head asks for: ssm:GetParameters on arn:aws:ssm:us-east-1::parameter{PARAMETER}",
        "put-role-policy --role-name raypaml-head",
    ),
    ({"bucket": "404"}, FATAL, "there is no bucket bucket", "aws s3 mb s3://bucket"),
    ({"bucket": "403"}, WARNING, "bucket bucket: it is somebody else's, or", "person.json"),
    (
        {"bucket": {"BucketRegion": "eu-west-1"}},
        WARNING,
        "bucket bucket is in eu-west-1, the machines in us-east-1",
        "provider.region: eu-west-1",
    ),
]


@pytest.mark.parametrize(("changes", "level", "what", "remedy"), FAULTS, ids=[fault[2][:40] for fault in FAULTS])
def test_what_the_account_would_refuse_is_found(changes: dict[str, Any], level: str, what: str, remedy: str) -> None:
    answers = after(**changes)
    if changes.get("worker again"):  # whose role is then not asked about, nor handed on by the head
        answers = [one for one in answers if not about_workers(one)]
    findings = examined(answers)
    assert [one for one in findings if one.level == level and what in one.what and remedy in one.remedy], findings
    assert {one.level for one in findings} == {level, FINE}


def about_workers(answer: Answer) -> bool:
    request = answer[2] if isinstance(answer[2], dict) else {}
    return request.get("PolicySourceArn", "").endswith("worker") or request.get("ActionNames") == ["iam:PassRole"]


def test_where_the_account_never_asked_for_a_quota_the_value_that_all_have_counts() -> None:
    answers = after(spot="NoSuchResourceException")
    where = [answer[3] for answer in answers].index("NoSuchResourceException") + 1
    default = ("service-quotas", "get_aws_default_service_quota", asked_quota("L-3819A6DF"), quota(0))
    assert any("0 vCPUs" in one.what for one in examined([*answers[:where], default, *answers[where:]]))


def test_credentials_that_are_refused_end_the_questions() -> None:
    (finding,) = examined([("sts", "get_caller_identity", ANY, "ExpiredToken")])
    assert (finding.level, "ExpiredToken" in finding.what) == (FATAL, True)


def test_an_image_of_rays_own_is_told() -> None:
    text = re.sub("ImageId: &image .*", "ImageId: &image latest_dlami", TEXT)
    answers = {
        name: one for name, one in healthy().items() if name not in ("parameter", "image") and "ssm:" not in name
    }
    said = [one.what for one in examined(list(answers.values()), read(text)) if one.level == WARNING]
    assert said == [
        f"{name}: no ImageId: Ray takes an image of its own, of Ubuntu 18.04" for name in ("head", "gpu_spot")
    ]


def test_an_answer_that_is_none_is_told_and_the_other_questions_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the page of a proxy, which is no error of boto3's own kind."""
    monkeypatch.setattr(client("ssm"), "get_parameters", lambda **_: page_of_a_proxy())
    findings = examined(after(parameter=None, image=None))
    assert [one.what for one in findings if one.level == FATAL] == [
        "images: no answer that can be read: Unable to parse response"
    ]
    assert findings[-1].what.startswith("bucket bucket")


def page_of_a_proxy() -> None:
    raise ResponseParserError("Unable to parse response\n<!doctype html>")


def test_what_the_account_is_not_asked_about() -> None:
    """A kind of node without a type ends it; credentials in the file are not used, and a kind without nodes neither."""
    file = read(TEXT.replace("InstanceType: g5.12xlarge", "Type: g5.12xlarge"))
    *_, finding = examined(after()[:1], file)
    assert (finding.level, finding.what) == (FATAL, "gpu_spot: node_config has no InstanceType")
    text = TEXT.replace("  region:", "  aws_credentials: {aws_access_key_id: x}\n  region:")
    file = read(text.replace("    max_workers: 4", "    max_workers: 0"))
    workers = ("spot", "spot role", "worker", "worker again")
    answers = {name: one for name, one in healthy().items() if name not in workers and not about_workers(one)}
    findings = examined([one for name, one in answers.items() if "ssm:" not in name], file)
    assert [one.what for one in findings if one.level != FINE] == [
        "provider.aws_credentials: Ray uses these, and the account was asked with the others"
    ]


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Without credentials, and without a network."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(aws_checks, "examine_account", lambda *_: pytest.fail("the account was asked"))
    return monkeypatch


def test_without_credentials_the_account_is_not_asked(
    nobody: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main(["--file", str(PATH), "--storage", "s3://bucket/runs"]) == 1
    said = capsys.readouterr().out
    assert "Ray's schema takes it" in said
    assert "no credentials here: `ray up` cannot start anything, and the account was not asked" in said


@pytest.mark.parametrize("name", ["local.yaml", "kuberay.yaml", "kuberay_access.yaml"])
def test_buckets_are_asked_about_for_a_file_of_aws_alone(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: --data and --storage go with a file for AWS alone"):
        doctor.main(["--file", str(ROOT / "clusters" / name), "--storage", "s3://bucket/runs"])


@pytest.mark.parametrize(
    ("old", "new", "profile", "what"),
    [
        ("region: us-east-1 ", "region: us-est-1 ", "", "provider.region='us-est-1' is no region of EC2"),
        ("region", "region", "mine", "The config profile (mine) could not be found"),
    ],
)
def test_a_region_or_a_profile_that_is_not_there(
    nobody: pytest.MonkeyPatch, old: str, new: str, profile: str, what: str
) -> None:
    if profile:
        nobody.setenv("AWS_PROFILE", profile)
    (finding,) = aws_checks.examine_aws(read(TEXT.replace(old, new, 1)))
    assert finding.level == FATAL
    assert what in finding.what


def test_without_boto3_a_line_says_so(nobody: pytest.MonkeyPatch) -> None:
    nobody.setitem(sys.modules, "boto3", None)
    (finding,) = aws_checks.examine_aws(read())
    assert "boto3 is not installed here" in finding.what
    assert "pip install 'raypaml[cluster]'" in finding.remedy


@pytest.mark.parametrize(
    ("name", "on_demand", "spot"),
    [
        ("m7i.xlarge", "L-1216C47A", "L-34B43A08"),
        ("c7gn.large", "L-1216C47A", "L-34B43A08"),
        ("im4gn.large", "L-1216C47A", "L-34B43A08"),
        ("g5.12xlarge", "L-DB2E81BA", "L-3819A6DF"),
        ("g6e.12xlarge", "L-DB2E81BA", "L-3819A6DF"),
        ("vt1.3xlarge", "L-DB2E81BA", "L-3819A6DF"),
        ("p4d.24xlarge", "L-417A185B", "L-7212CCBC"),
        ("p5.48xlarge", "L-417A185B", "L-C4BD4855"),
        ("p6-b200.48xlarge", "L-417A185B", ""),
        ("trn1.32xlarge", "L-2C3B7624", "L-6B0D517C"),
        ("hpc7g.4xlarge", "", ""),
        ("dl1.24xlarge", "L-6E869C2A", "L-85EED4F7"),
        ("", "", ""),
    ],
)
def test_every_instance_type_counts_for_its_quota(name: str, on_demand: str, spot: str) -> None:
    found = [quota_of(name, spot=is_spot) for is_spot in (False, True)]
    assert [one.code if one else "" for one in found] == [on_demand, spot]


def test_the_other_gpus_of_the_file_are_whole_node_types() -> None:
    blocks = TEXT.replace("  # gpu_g6e:", "  gpu_g6e:").replace("  # gpu_p5:", "  gpu_p5:").replace("  #   ", "    ")
    file = yaml.safe_load(blocks)
    validate_config(prepare_config(file))
    kinds = file["available_node_types"]
    assert [kinds[name]["node_config"]["InstanceType"] for name in ("gpu_g6e", "gpu_p5")] == [
        "g6e.12xlarge",
        "p5.48xlarge",
    ]
    for name in ("gpu_g6e", "gpu_p5"):
        changed = {"InstanceType"}
        assert {
            key
            for key in kinds["gpu_spot"]["node_config"]
            if kinds[name]["node_config"][key] != kinds["gpu_spot"]["node_config"][key]
        } == changed
    assert {node.name: quota_of(node.instance_type, spot=node.is_spot) for node in read(blocks).workers}.keys() == {
        "gpu_spot",
        "gpu_g6e",
        "gpu_p5",
    }


def test_buckets_are_those_of_the_file_and_of_the_flags() -> None:
    file = read(TEXT + "# s3://not-this\n", ("s3://me@other/runs?region=x", "s3://bucket", "/tmp/runs"))
    assert file.buckets == ("other", "bucket")


def test_what_ray_fills_in_is_asked_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Such as in Ray's example-minimal.yaml, which names no kind of node, and a file without max_workers."""
    asked = list[AwsFile]()

    def ask(file: AwsFile) -> list[Finding]:
        asked.append(file)
        return []

    monkeypatch.setattr(cluster_files, "examine_aws", ask)
    minimal = "cluster_name: minimal\nprovider: {type: aws, region: us-west-2}\n"
    for text in (minimal, re.sub(r"(?m)^max_workers:.*", "", TEXT)):
        (tmp_path / "a.yaml").write_text(text)
        assert [finding.level for finding in cluster_files.examine_file(tmp_path / "a.yaml")][-1] == FINE
        assert asked[-1].workers
        assert all(node.instance_type for node in asked[-1].started)


def test_a_version_of_the_parameter_that_names_the_image_is_asked_for() -> None:
    text = TEXT.replace("latest/ami-id", "latest/ami-id:7", 1)
    answer = {"Parameters": [{"Name": PARAMETER, "Selector": ":7", "Value": "ami-1"}]}
    with Stubber(client("ssm")) as ssm, Stubber(client("ec2")) as ec2:
        ssm.add_response("get_parameters", answer, {"Names": [f"{PARAMETER}:7"]})
        ec2.add_response("describe_images", image(), {"ImageIds": ["ami-1"]})
        assert "image ami-1" in next(iter(aws_checks.images(read(text), client))).what
