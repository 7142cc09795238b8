"""`ray up clusters/aws.yaml` from end to end: moto is AWS, a host of this machine rises for every instance it runs.

Everybody has the policies of clusters/policies and nothing else: the person who calls ray, the head, and the workers;
these two get the credentials of their roles from the metadata service. IAM is asked about every call
(`tests/moto_server.py`).

What cannot exist here is laid over the file: the user of its image, one worker for four GPUs, and that the instances
are reached at their private addresses.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from botocore.exceptions import ClientError

from raypaml.cluster.aws_permissions import CALLS, CLUSTER_TAG, HEAD, PERSON, WORKER
from raypaml.cluster.cluster_files import examine_file
from raypaml.data.digits import digits_folder
from raypaml.data.storage import Location
from raypaml.recipes import recipe
from raypaml.runs.mirror import Mirror
from tests.aws_account import BUCKET, REGION, Account, Environment, account
from tests.conftest import TINY, train_here
from tests.fault_table import Row, note
from tests.hosts import BRIDGE, Hosts, hosts, sh
from tests.iam import policy
from tests.moto_server import OF_S3
from tests.slow_steps import ENOUGH, SLOW
from tests.test_cluster_local import PATIENCE, ROOT, caller
from tests.test_fault_matrix import saved
from tests.test_train import weights

GATEWAY = "172.31.255.1"
METADATA = "169.254.169.254"
LATE = 1.5
RUN = {"epochs": 30, "warmup_epochs": 1, "delta_rel": 0.5, "checkpoint_steps": 1}

PROBE = ":%24extremelyunlikelytoexist%24"
"""pyarrow asks for a bucket of this name, to see what kind of server answers; a refusal is an answer."""

pytestmark = [pytest.mark.cluster, pytest.mark.hosts, pytest.mark.timeout(1800)]


@dataclass
class Cloud:
    """moto, the hosts that stand for its instances, and whoever calls ray."""

    hosts: Hosts
    home: Path
    account: Account
    person: Environment
    """Whoever calls ray."""
    enough: Path
    """The file without which the steps of a job are slow."""
    over: threading.Event = field(default_factory=threading.Event)
    address: dict[str, str] = field(default_factory=dict)
    """Of running instances, by id."""

    @property
    def ec2(self) -> Any:
        return self.account.client("ec2")

    def instances(self, *states: str) -> list[dict[str, Any]]:
        """Instances in these states."""
        found = self.ec2.describe_instances(Filters=[{"Name": "instance-state-name", "Values": list(states)}])
        return [one for reservation in found["Reservations"] for one in reservation["Instances"]]

    def watch(self) -> None:
        """Raise a host for every running instance, take it down with it."""
        while not self.over.wait(0.5):
            running = {one["InstanceId"]: one["PrivateIpAddress"] for one in self.instances("running")}
            for gone in set(self.address) - set(running):
                self.hosts.kill(self.address.pop(gone))
            for fresh in set(running) - set(self.address):
                (pem,) = (self.home / ".ssh").glob("ray-autoscaler_*.pem")
                public = subprocess.run(["ssh-keygen", "-y", "-f", pem], capture_output=True, text=True, check=True)
                self.hosts.start(running[fresh], public.stdout)
                self.address[fresh] = running[fresh]
                self.close()

    def close(self) -> None:
        """Let in what the security groups of the instances let in, and nothing else."""
        instances = [one for one in self.instances("running") if one["InstanceId"] in self.address]
        for one in instances:
            ids = [group["GroupId"] for group in one["SecurityGroups"]]
            groups = self.ec2.describe_security_groups(GroupIds=ids)["SecurityGroups"]
            rules = [rule for group in groups for rule in group["IpPermissions"]]
            self.hosts.let_in(one["PrivateIpAddress"], [line for rule in rules for line in nft_rules(rule, instances)])

    def tagged(self, kind: str) -> list[str]:
        """Ids of running instances that Ray calls head or worker."""
        return [
            one["InstanceId"]
            for one in self.instances("running", "pending")
            if {"Key": "ray-node-type", "Value": kind} in one["Tags"]
        ]

    @property
    def caller(self) -> Environment:
        """The environment of whoever calls ray."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        ours = {"HOME": str(self.home), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
        return kept | self.person | ours

    def role(self, address: str) -> str:
        """The role of the instance at an address."""
        head = any(self.address.get(one) == address for one in self.tagged("head"))
        return "raypaml-head" if head else "raypaml-worker"

    def ray(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ray")), *arguments],
            capture_output=True,
            text=True,
            timeout=600,
            env=self.caller,
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return done.stdout


def nft_rules(rule: dict[str, Any], instances: list[dict[str, Any]]) -> list[str]:
    """A rule of a security group, in the words of nftables."""
    ports = "" if rule["IpProtocol"] == "-1" else f" tcp dport {rule['FromPort']}-{rule['ToPort']}"
    members = [
        one["PrivateIpAddress"]
        for pair in rule["UserIdGroupPairs"]
        for one in instances
        if pair["GroupId"] in [group["GroupId"] for group in one["SecurityGroups"]]
    ]
    return [f"ip saddr {source}{ports}" for source in (*(part["CidrIp"] for part in rule["IpRanges"]), *members)]


class Metadata(BaseHTTPRequestHandler):
    """What an instance can ask about itself: whether it is about to be taken away, and credentials of its role."""

    cloud: ClassVar[Cloud]
    noticed: ClassVar[set[str]] = set()
    """Addresses of those that are about to be taken away."""
    identity: ClassVar[dict[str, tuple[str, bytes]]] = {}
    """Role and credentials of those that have asked for them: an instance's answer comes at once, moto's does not."""

    def do_PUT(self) -> None:
        self._answer(b"token")

    def do_GET(self) -> None:
        here, known = self.client_address[0], self.headers["X-aws-ec2-metadata-token"] == "token"
        _, credentials, role = self.path.partition("iam/security-credentials")
        if known and self.path.endswith("/spot/instance-action") and here in self.noticed:
            self._answer(b'{"action": "terminate"}')
        elif known and credentials:
            mine, keys = self._identity(here)
            self._answer(keys if role == f"/{mine}" else mine.encode())
        else:
            self._answer(b"", 404)

    def _identity(self, here: str) -> tuple[str, bytes]:
        """Role and credentials of an instance; the first time longer than whoever asks waits as a rule, one second."""
        if here not in self.identity:
            mine = self.cloud.role(here)
            self.identity[here] = mine, json.dumps(self.cloud.account.role(mine)).encode()
            time.sleep(LATE)
        return self.identity[here]

    def _answer(self, content: bytes, code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def metadata_service(cloud: Cloud) -> Iterator[None]:
    """Answer the hosts at the address where EC2 does."""
    Metadata.cloud = cloud
    sh(f"ip addr add {METADATA}/32 dev {BRIDGE}")
    server = ThreadingHTTPServer((METADATA, 80), Metadata)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("aws")
    caller(folder / "home")
    (folder / "home" / ".ssh").mkdir()
    with (
        hosts(folder / "state", f"{GATEWAY}/16") as up,
        account(folder, GATEWAY, 5077) as aws,
        pytest.MonkeyPatch.context() as patch,
    ):
        enough = up.shared / "enough"
        (up.state / "environment").write_text(
            "".join(f"export {name}={value}\n" for name, value in (aws.endpoint | {ENOUGH: enough}).items())
        )
        for name, value in aws.admin.items():
            patch.setenv(name, value)
        aws.once_per_account()
        for path in digits_folder(num_scenes=TINY).iterdir():
            aws.client("s3").upload_file(str(path), BUCKET, f"digits/{path.name}")
        found = Cloud(up, folder / "home", aws, aws.user("YOU"), enough)
        watcher = threading.Thread(target=found.watch, daemon=True)
        watcher.start()
        with metadata_service(found):
            yield found
        found.over.set()
        watcher.join(60)


@pytest.fixture(scope="module")
def file(cloud: Cloud) -> Path:
    """The cluster file with what cannot exist here laid over it."""
    found = yaml.safe_load((ROOT / "clusters" / "aws.yaml").read_text())
    found["provider"]["use_internal_ips"] = True
    found["auth"]["ssh_user"] = "root"
    found["available_node_types"]["gpu_spot"]["resources"] = {"CPU": 1, "GPU": 1}
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        found[name][1] = f"{PATIENCE}; {found[name][1]} --object-store-memory=200000000"
    path = cloud.home / "aws.yaml"
    path.write_text(yaml.safe_dump(found))
    return path


def test_the_doctor_may_ask_all_that_it_asks(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the answers moto does not know; that the questions are allowed is tested at the end."""
    for name, value in cloud.person.items():
        monkeypatch.setenv(name, value)
    findings = list(examine_file(ROOT / "clusters" / "aws.yaml", [f"s3://{BUCKET}/runs"]))
    assert not [one for one in findings if "not checked" in one.what]
    assert findings[-1].what == f"bucket {BUCKET}, in {REGION}"


@pytest.fixture(scope="module")
def up(cloud: Cloud, file: Path) -> Cloud:
    began = time.monotonic()
    cloud.ray("up", "-y", str(file), "--no-config-cache")
    note(Row("ray up clusters/aws.yaml (moto)", time.monotonic() - began, "up"))
    return cloud


def test_what_is_asked_of_ec2_for_the_head(up: Cloud) -> None:
    (head,) = up.instances("running")
    assert head["InstanceType"] == "m7i.xlarge"
    assert head["IamInstanceProfile"]["Arn"].endswith("instance-profile/raypaml-head")
    group = up.ec2.describe_security_groups(GroupIds=[one["GroupId"] for one in head["SecurityGroups"]])
    from_outside = [
        (rule.get("FromPort"), rule.get("ToPort"))
        for found in group["SecurityGroups"]
        for rule in found["IpPermissions"]
        if rule["IpRanges"]
    ]
    assert from_outside == [(22, 22)]


def test_from_outside_the_group_ssh_alone_is_open_and_within_it_ports_ask_for_the_token(up: Cloud) -> None:
    (head,) = up.tagged("head")
    address = up.address[head]
    assert up.hosts.open_to_strangers() == {address: [22]}
    look = f"""
from raypaml.cluster.doors import Door, knock_at_all
from tests.scan import open_ports
for door, reply in knock_at_all([Door("{address}", port, "") for port in open_ports("{address}")[1:]]).items():
    print(door.port, reply)
"""
    said = up.hosts.run(address, f"cd ~/raypaml; python -c {shlex.quote(look)}").stdout
    replies = {
        int(port): reply for port, reply in (line.split(" ", 1) for line in said.splitlines() if line[:1].isdigit())
    }
    metrics = {port for port, reply in replies.items() if reply == "gives metrics"}
    others = {reply for port, reply in replies.items() if port not in metrics}
    assert others - {"is closed"} == {"asks for the token"}, said  # a scan of one's own address may connect to itself
    assert {44217, 44227} < metrics
    assert (len(metrics), 6379 in replies, 8265 in replies) == (3, True, False), said


def test_a_run_brings_spot_workers_survives_the_loss_of_one_and_ends_as_undisturbed(up: Cloud, tmp_path: Path) -> None:
    place = {"data": str(digits_folder(num_scenes=TINY)), "storage": str(tmp_path), "name": "alone", "workers": 1}
    undisturbed = weights(train_here(recipe("digits").override(RUN | place)).folder)
    (head,) = up.tagged("head")
    values = RUN | {"data": "s3://bucket/digits", "storage": "s3://bucket/runs", "name": "spot", "device": "cpu"}
    flags = " ".join([SLOW, *(f"--{name.replace('_', '-')} {value}" for name, value in values.items())])
    job = "ray job submit --address http://127.0.0.1:8265 -- python -m raypaml.train digits --workers 2 " + flags
    began = time.monotonic()
    process = subprocess.Popen(
        [*up.hosts.ssh(up.address[head]), f"bash -lic '{job}'"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    mirror = Mirror(tmp_path / "pulled", Location("s3://bucket/runs/spot"))
    wait_for(lambda: saved(mirror, 1), process)
    note(Row("first epoch on spot workers that the autoscaler added", time.monotonic() - began, "trained"))
    lost, kept = up.tagged("worker")
    assert set(map(tuple, up.hosts.open_to_strangers().values())) == {(22,)}, (
        "head and workers, in the midst of the run"
    )
    profiles: set[str] = set()
    for one in up.instances("running"):
        if one["InstanceId"] in (lost, kept):
            assert (one["InstanceType"], one["InstanceLifecycle"]) == ("g5.12xlarge", "spot")
            profiles.add(one.get("IamInstanceProfile", {}).get("Arn", "").rpartition("/")[2])
    assert profiles - {""} == {"raypaml-worker"}  # of several started at once, moto gives it to one
    volumes = up.ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [lost]}])["Volumes"]
    assert [(volume["Size"], volume["VolumeType"]) for volume in volumes] == [(100, "gp3")]
    began = time.monotonic()
    Metadata.noticed.add(up.address[lost])
    wait_for(lambda: b"about to be taken away" in (mirror.read("logs/worker-0.log") or b""), process)
    note(Row("spot notice, two minutes ahead: a checkpoint", time.monotonic() - began, "saved"))
    began = time.monotonic()
    up.ec2.terminate_instances(InstanceIds=[lost])
    wait_for(lambda: len(set(up.tagged("worker")) - {lost}) == 2, process)
    wait_for(lambda: b"continues from" in (mirror.read("logs/worker-0.log") or b""), process)
    seconds = time.monotonic() - began
    up.enough.touch()
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said[-4000:]
    assert "continues from epoch" in said
    mirror.pull_checkpoints()
    equal = weights(tmp_path / "pulled") == undisturbed
    note(Row("spot instance terminated, replaced by another", seconds, "equal" if equal else "NOT EQUAL"))
    assert equal


def test_ray_down_leaves_no_instance(up: Cloud, file: Path) -> None:
    up.ray("down", "-y", str(file))
    deadline = time.monotonic() + 60
    while up.instances("pending", "running", "stopping", "stopped"):
        assert time.monotonic() < deadline
        time.sleep(1)


def test_nothing_was_refused_and_what_is_allowed_was_needed(up: Cloud) -> None:
    """The table of calls is what really was called, but for what only a fault or another file brings."""
    called: dict[str, set[str]] = {PERSON: set(), HEAD: set(), WORKER: set()}
    names = {"user/YOU": PERSON, "assumed-role/raypaml-head/i-1": HEAD, "assumed-role/raypaml-worker/i-1": WORKER}
    for made in up.account.notes():
        assert not [one for one in made["refused"] if not one[1].endswith(PROBE)], made
        called[names[made["who"].rpartition(":")[2]]].add(OF_S3.get(made["action"], made["action"]))
    rare = {  # a file that cannot be finished; idle nodes; `raypaml doctor` on the head, which cleans up after itself
        PERSON: set[str](),
        HEAD: {"s3:AbortMultipartUpload", "ec2:TerminateInstances", "s3:DeleteObject"},
        WORKER: {"s3:AbortMultipartUpload"},
    }
    for who, actions in called.items():
        ours = {call.needs[0].action for call in CALLS if who in call.by and not call.unless}
        assert actions <= ours
        assert ours - actions <= rare[who], (who, ours - actions)


def test_what_is_not_allowed_is_refused(up: Cloud) -> None:
    """So that IAM is really asked; the first is what the head's policy lacked when it was AmazonEC2FullAccess."""
    less = policy("person") | {
        "Statement": [one for one in policy("person")["Statement"] if one["Sid"] != "ResolveImage"]
    }
    kind = yaml.safe_load((ROOT / "clusters" / "aws.yaml").read_text())["available_node_types"]["head"]["node_config"]
    tags = [{"ResourceType": "instance", "Tags": [{"Key": CLUSTER_TAG, "Value": "raypaml"}]}]
    asked = kind | {"MinCount": 1, "MaxCount": 1, "TagSpecifications": tags, "DryRun": True}
    with pytest.raises(ClientError, match="DryRunOperation"):
        up.account.client("ec2", up.person).run_instances(**asked)
    with pytest.raises(ClientError, match=r"not authorized to perform: ssm:GetParameters on .*/deeplearning/ami/"):
        up.account.client("ec2", up.account.user("LESS", less)).run_instances(**asked)
    tags[0]["Tags"] = []
    with pytest.raises(ClientError, match=r"not authorized to perform: ec2:RunInstances on .*instance/"):
        up.account.client("ec2", up.person).run_instances(**asked)
    with pytest.raises(ClientError, match="not authorized to perform: ec2:TerminateInstances"):
        up.account.client("ec2", up.account.as_role("raypaml-worker")).terminate_instances(InstanceIds=["i-1"])


def wait_for(condition: Any, process: subprocess.Popen[str], timeout: float = 900) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()[0][-6000:]
        assert time.monotonic() < deadline, process.kill() or process.communicate()[0][-6000:]
        time.sleep(0.5)
