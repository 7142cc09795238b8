"""`ray up clusters/local.yaml` on hosts of this machine: training over them, a host lost, a link cut, `ray down`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from raypaml.cluster.doors import Door, Reply, knock_at_all
from raypaml.data.digits import digits_folder
from raypaml.recipes import recipe
from tests.conftest import TINY, train_here
from tests.fault_table import Row, note
from tests.hosts import Hosts, hosts
from tests.scan import open_ports
from tests.slow_steps import ENOUGH, SLOW
from tests.test_train import weights

ROOT = Path(__file__).parent.parent
HEAD, *WORKERS = "10.77.0.10", "10.77.0.11", "10.77.0.12"
SHORT = ("--epochs", "30", "--warmup-epochs", "1", "--delta-rel", "0.5", "--checkpoint-steps", "1")
JOBS = "http://127.0.0.1:8265/api/jobs/"
# Half of what Ray waits before it takes a host for lost, and a host its head: 33 s instead of 65, 30 instead of 60.
PATIENCE = (
    "export RAY_health_check_period_ms=1500 RAY_health_check_timeout_ms=5000 RAY_gcs_rpc_server_reconnect_timeout_s=30"
)

pytestmark = [pytest.mark.cluster, pytest.mark.hosts, pytest.mark.timeout(1200)]


@dataclass
class Cluster:
    """A cluster that `ray up` made."""

    hosts: Hosts
    file: Path
    caller: dict[str, str]
    """Environment of whoever calls ray."""

    @property
    def enough(self) -> Path:
        """The file without which the steps of a job are slow."""
        return self.hosts.shared / "enough"

    def ray(self, *arguments: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("ray")), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=self.caller, cwd=ROOT, check=False
        )

    def submit(self, data: Path, name: str, *flags: str) -> subprocess.Popen[str]:
        """A job, given on the head as the README says; what it says comes to the pipe."""
        run = ["python", "-m", "raypaml.train", "--data", str(data), "--storage", str(self.hosts.shared), *SHORT]
        self.enough.unlink(missing_ok=True)
        job = f"ray job submit --address http://127.0.0.1:8265 -- {' '.join([*run, '--name', name, SLOW, *flags])}"
        return subprocess.Popen(
            [*self.hosts.ssh(HEAD), f"bash -lic '{job}'"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def caller(home: Path) -> dict[str, str]:
    """A user with a token and nothing else."""
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("of-this-test-alone")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}


def overlay(hosts: Hosts) -> dict[str, Any]:
    """The file as it is, with the test's addresses, user and key, one CPU for each host, and less patience."""
    found = yaml.safe_load((ROOT / "clusters" / "local.yaml").read_text())
    found["provider"] |= {"head_ip": HEAD, "worker_ips": WORKERS}
    found["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.key)}
    for name, cpus in (("head_start_ray_commands", 0), ("worker_start_ray_commands", 1)):
        found[name][-1] = f"{PATIENCE}; {found[name][-1]} --num-cpus={cpus} --object-store-memory=200000000"
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("hosts")
    with hosts(folder / "state", "10.77.0.1/24") as up:
        (up.state / "environment").write_text(f"export {ENOUGH}={up.shared / 'enough'}\n")
        for address in (HEAD, *WORKERS):
            up.start(address)
        file = folder / "local.yaml"
        file.write_text(yaml.safe_dump(overlay(up)))
        found = Cluster(up, file, caller(folder / "home"))
        began = time.monotonic()
        done = found.ray("up", "-y", str(file), "--no-config-cache")
        assert done.returncode == 0, done.stdout + done.stderr
        wait_for_nodes(found, 3)
        note(Row("ray up clusters/local.yaml, three hosts", time.monotonic() - began, "up"))
        yield found
        found.ray("down", "-y", str(file))
        for path in Path("/tmp/ray").glob("cluster-raypaml-local.*"):  # the provider's notes
            path.unlink()


def wait_for_nodes(cluster: Cluster, count: int, timeout: float = 240) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        said = cluster.hosts.run(HEAD, "ray list nodes --address http://127.0.0.1:8265 2>&1 | grep -c ALIVE").stdout
        if said.strip().splitlines()[-1:] == [str(count)]:
            return
        time.sleep(2)
    raise AssertionError(
        said + cluster.hosts.run(HEAD, "ray status; tail -20 /tmp/ray/session_latest/logs/monitor.*").stdout
    )


@pytest.fixture(scope="module")
def data(cluster: Cluster) -> Path:
    return shutil.copytree(digits_folder(num_scenes=TINY), cluster.hosts.shared / "data")


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    flags = {
        flag.removeprefix("--").replace("-", "_"): float(value)
        for flag, value in zip(SHORT[::2], SHORT[1::2], strict=True)
    }
    whole = {name: int(value) if value.is_integer() else value for name, value in flags.items()}
    place = {"data": str(data), "storage": str(tmp_path_factory.mktemp("alone")), "name": "alone", "workers": 1}
    return weights(train_here(recipe("digits").override(whole | place)).folder)


def wait_for_epoch(cluster: Cluster, name: str, epoch: int, process: subprocess.Popen[str]) -> None:
    """Wait for a checkpoint of this epoch or a later one: its own may be there for a moment only."""
    deadline = time.monotonic() + 240
    checkpoints = cluster.hosts.shared / name / "checkpoints"
    while max((path.name for path in checkpoints.glob("[0-9]*")), default="") < f"{epoch:04d}":
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, process.kill() or process.communicate()[0]
        time.sleep(0.2)


def recovered(cluster: Cluster, name: str, lives: int) -> None:
    """Wait until workers have continued so many times."""
    log, deadline = cluster.hosts.shared / name / "logs" / "worker-0.log", time.monotonic() + 300
    while log.read_text().count("continues from") < lives:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def finish(cluster: Cluster, process: subprocess.Popen[str]) -> str:
    cluster.enough.touch()
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    return said


def test_every_open_port_asks_for_the_token(cluster: Cluster) -> None:
    """Also the job server, which only the head itself reaches."""
    found = cluster.hosts.open_to_strangers()
    for address, ports in found.items():
        processes = {port: process for process, _, port in cluster.hosts.listening(address)}
        doors = [Door(address, port, processes[port]) for port in ports if port != 22]
        replies = {door: reply for door, reply in knock_at_all(doors).items() if reply != Reply.CLOSED}  # since then
        assert {str(door): reply for door, reply in replies.items() if reply != Reply.ASKS} == {}
        assert {52365, 6379 if address == HEAD else 52365} <= {door.port for door in replies}, "all are looked at"
    assert 8265 not in found[HEAD]
    call = f"python -c \"from tests.test_cluster_local import knock; print(knock('{JOBS}'))\""
    assert "401" in cluster.hosts.run(HEAD, f"cd ~/raypaml; {call}").stdout


def test_ports_are_closed_to_strangers_but_for_ssh(cluster: Cluster) -> None:
    """The tests that follow are those of a cluster whose ports are closed."""
    for address in (HEAD, *WORKERS):
        done = cluster.hosts.run(address, f"~/raypaml/clusters/close_ports.sh {HEAD} {' '.join(WORKERS)}")
        assert done.returncode == 0, done.stderr
    assert cluster.hosts.open_to_strangers() == {address: [22] for address in (HEAD, *WORKERS)}
    assert cluster.hosts.run(HEAD, "~/raypaml/clusters/close_ports.sh no-address").returncode == 1
    assert open_ports(HEAD, [22, 6379]) == [22], "a mistake opens nothing"


def knock(url: str) -> int:
    """HTTP status for one without a token who submits a job."""
    wanted = urllib.request.Request(url, b'{"entrypoint": "true"}', {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(wanted, timeout=5)
    refused.value.close()
    return refused.value.code


def test_two_hosts_train_and_one_is_lost(cluster: Cluster, data: Path, undisturbed: str) -> None:
    process = cluster.submit(data, "lost", "--workers", "1:2")
    wait_for_epoch(cluster, "lost", 2, process)
    for address in WORKERS:  # a worker has a port of gRPC, which asks for the token; its process group has others
        sockets = [where for name, where, _ in cluster.hosts.listening(address) if name.startswith("ray::RayTrain")]
        assert sorted(sockets)[:1] == ["*"]
        assert set(sockets[1:]) <= {"*", address}
        assert sockets.count("*") == 1, sockets
    began = time.monotonic()
    cluster.hosts.kill(WORKERS[1])
    recovered(cluster, "lost", 1)
    seconds = time.monotonic() - began
    said = finish(cluster, process)
    assert "with 1 worker" in said
    equal = weights(cluster.hosts.shared / "lost") == undisturbed
    note(Row("host lost, goes on with the rest (--workers 1:2)", seconds, "equal" if equal else "NOT EQUAL"))
    assert equal


def test_a_host_comes_back_and_a_link_is_cut_for_a_while(cluster: Cluster, data: Path, undisturbed: str) -> None:
    cluster.hosts.start(WORKERS[1])
    assert cluster.ray("up", "-y", str(cluster.file), "--no-config-cache").returncode == 0
    wait_for_nodes(cluster, 3)
    process = cluster.submit(data, "cut", "--workers", "1:2", "--hang-seconds", "20")
    wait_for_epoch(cluster, "cut", 2, process)
    began = time.monotonic()
    cluster.hosts.cut(WORKERS[1])
    recovered(cluster, "cut", 1)
    seconds = time.monotonic() - began
    cluster.hosts.restore(WORKERS[1])
    finish(cluster, process)
    equal = weights(cluster.hosts.shared / "cut") == undisturbed
    note(Row("link cut, later restored", seconds, "equal" if equal else "NOT EQUAL"))
    assert equal


def test_ray_down_leaves_nothing(cluster: Cluster) -> None:
    assert cluster.ray("down", "-y", str(cluster.file)).returncode == 0
    deadline = time.monotonic() + 150  # a worker ends by itself a minute after its head
    for address in (HEAD, *WORKERS):
        while left := cluster.hosts.run(address, "pgrep -a 'raylet|gcs_server'").stdout.strip():
            assert time.monotonic() < deadline, left
            time.sleep(3)
