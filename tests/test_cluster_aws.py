"""`ray up clusters/aws.yaml` from end to end: moto is AWS, a host of this machine rises for every instance it runs.

What cannot exist here is laid over the file: the image, the user of that image, one worker for four GPUs, and that the
instances are reached at their private addresses.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import boto3
import pytest
import yaml

from raypaml.data.digits import digits_folder
from raypaml.data.storage import Location
from raypaml.recipes import recipe
from raypaml.runs.mirror import Mirror
from tests.conftest import TINY, train_here
from tests.fault_table import Row, note
from tests.hosts import BRIDGE, Hosts, hosts, sh
from tests.test_cluster_local import PATIENCE, ROOT, caller
from tests.test_train import weights

GATEWAY = "172.31.255.1"
PORT = 5077
REGION = "us-east-1"
METADATA = "169.254.169.254"
RUN = {"epochs": 60, "warmup_epochs": 1, "delta_rel": 0.5, "checkpoint_steps": 1}
AWS = {
    "AWS_ENDPOINT_URL": f"http://{GATEWAY}:{PORT}",
    "AWS_ACCESS_KEY_ID": "of-this-test",
    "AWS_SECRET_ACCESS_KEY": "of-this-test",
    "AWS_DEFAULT_REGION": REGION,
}

MOTO = """
import sys
from moto.ec2.responses.instances import InstanceResponse
from moto.server import main
get = InstanceResponse._get_param
InstanceResponse._get_param = lambda self, name, *args, **options: get(
    self, "MaxCount" if name == "MinCount" else name, *args, **options
)
main(sys.argv[1:])
"""
"""moto starts the fewest instances asked for, EC2 as many as it can."""

pytestmark = [pytest.mark.cluster, pytest.mark.hosts, pytest.mark.timeout(1800)]


@dataclass
class Cloud:
    """moto, the hosts that stand for its instances, and whoever calls ray."""

    hosts: Hosts
    home: Path
    over: threading.Event = field(default_factory=threading.Event)
    address: dict[str, str] = field(default_factory=dict)
    """Of running instances, by id."""

    @property
    def ec2(self) -> Any:
        return boto3.client("ec2", REGION, endpoint_url=AWS["AWS_ENDPOINT_URL"])

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

    def tagged(self, kind: str) -> list[str]:
        """Ids of running instances that Ray calls head or worker."""
        return [
            one["InstanceId"]
            for one in self.instances("running", "pending")
            if {"Key": "ray-node-type", "Value": kind} in one["Tags"]
        ]

    def ray(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ray")), *arguments],
            capture_output=True,
            text=True,
            timeout=600,
            env=caller_of(self.home),
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return done.stdout


class Metadata(BaseHTTPRequestHandler):
    """What an instance can ask about itself: whether it is about to be taken away."""

    noticed: ClassVar[set[str]] = set()
    """Addresses of those that are."""

    def do_PUT(self) -> None:
        self._answer(200, b"token")

    def do_GET(self) -> None:
        wanted = self.path == "/latest/meta-data/spot/instance-action" and self.client_address[0] in self.noticed
        known = self.headers["X-aws-ec2-metadata-token"] == "token"
        self._answer(200 if wanted and known else 404, b'{"action": "terminate"}')

    def _answer(self, code: int, content: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def metadata_service() -> Iterator[None]:
    """Answer the hosts at the address where EC2 does."""
    sh(f"ip addr add {METADATA}/32 dev {BRIDGE}")
    server = ThreadingHTTPServer((METADATA, 80), Metadata)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def caller_of(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    return kept | AWS | {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("aws")
    caller(folder / "home")
    (folder / "home" / ".ssh").mkdir()
    patch = pytest.MonkeyPatch()
    for name, value in AWS.items():
        patch.setenv(name, value)
    with hosts(folder / "state", f"{GATEWAY}/16") as up:
        exports = "".join(f"export {name}={value}\n" for name, value in AWS.items())
        (up.state / "environment").write_text(exports)
        server = [sys.executable, "-c", MOTO, "-H", GATEWAY, "-p", str(PORT)]
        with (folder / "moto.log").open("wb") as log:
            moto = subprocess.Popen(server, stdout=log, stderr=log)
        found = Cloud(up, folder / "home")
        try:
            wait_for_moto()
            once_per_account()
            watcher = threading.Thread(target=found.watch, daemon=True)
            watcher.start()
            with metadata_service():
                yield found
            found.over.set()
            watcher.join(60)
        finally:
            moto.kill()
            moto.wait()
            patch.undo()


def wait_for_moto() -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{AWS['AWS_ENDPOINT_URL']}/moto-api/", timeout=2).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.3)


def once_per_account() -> None:
    """What clusters/README.md says must exist: the bucket, and a profile for the head and for the workers."""
    iam = boto3.client("iam", REGION)
    trust = '{"Version": "2012-10-17", "Statement": []}'
    for name in ("raypaml-head", "raypaml-worker"):
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)
        iam.create_instance_profile(InstanceProfileName=name)
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    s3 = boto3.client("s3", REGION)
    s3.create_bucket(Bucket="bucket")
    folder = digits_folder(num_scenes=TINY)
    for path in folder.iterdir():
        s3.upload_file(str(path), "bucket", f"digits/{path.name}")


@pytest.fixture(scope="module")
def file(cloud: Cloud) -> Path:
    """The cluster file with what cannot exist here laid over it."""
    found = yaml.safe_load((ROOT / "clusters" / "aws.yaml").read_text())
    image = cloud.ec2.describe_images()["Images"][0]["ImageId"]
    found["provider"]["use_internal_ips"] = True
    found["auth"]["ssh_user"] = "root"
    for kind in found["available_node_types"].values():
        kind["node_config"]["ImageId"] = image
    found["available_node_types"]["gpu_spot"]["resources"] = {"CPU": 1, "GPU": 1}
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        found[name][1] = f"{PATIENCE}; {found[name][1]} --object-store-memory=200000000"
    path = cloud.home / "aws.yaml"
    path.write_text(yaml.safe_dump(found))
    return path


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


def test_a_run_brings_spot_workers_survives_the_loss_of_one_and_ends_as_undisturbed(up: Cloud, tmp_path: Path) -> None:
    place = {"data": str(digits_folder(num_scenes=TINY)), "storage": str(tmp_path), "name": "alone", "workers": 1}
    undisturbed = weights(train_here(recipe("digits").override(RUN | place)).folder)
    (head,) = up.tagged("head")
    values = RUN | {"data": "s3://bucket/digits", "storage": "s3://bucket/runs", "name": "spot", "device": "cpu"}
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in values.items())
    job = "ray job submit --address http://127.0.0.1:8265 -- python -m raypaml.train digits --workers 2 " + flags
    began = time.monotonic()
    process = subprocess.Popen(
        [*up.hosts.ssh(up.address[head]), f"bash -lic '{job}'"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    mirror = Mirror(tmp_path / "pulled", Location("s3://bucket/runs/spot"))
    wait_for(lambda: any("0001-" in path for path in mirror.there(["checkpoints"])), process)
    note(Row("first epoch on spot workers that the autoscaler added", time.monotonic() - began, "trained"))
    lost, kept = up.tagged("worker")
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


def wait_for(condition: Any, process: subprocess.Popen[str], timeout: float = 900) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()[0][-6000:]
        assert time.monotonic() < deadline, process.kill() or process.communicate()[0][-6000:]
        time.sleep(0.5)
