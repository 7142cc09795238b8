"""A run under a private Ray and those who are not its user: another user, and another machine. Needs root for both."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray  # noqa: F401  # brings psutil
from psutil import Process

from tests import scan
from tests.hosts import sh
from tests.slow_steps import SLOW, until

pytestmark = [pytest.mark.cluster, pytest.mark.ray]
LOOPBACK = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
OURS, THEIRS = "10.231.77.1", "10.231.77.2"
ASK = """
import json, sys
import grpc
port, *tokens = sys.argv[1:]
answers = []
for token in tokens:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
        try:
            call(b"", timeout=30, metadata=(("authorization", f"Bearer {token}"),) if token else ())
            answers.append("answered")
        except grpc.RpcError as error:
            answers.append(error.code().name)
print(json.dumps(answers))
"""
"""Asks Ray's GCS for the nodes, once with each token; an empty one stands for none."""
CONNECT = """
import json, socket, sys
address, *ports = sys.argv[1:]
reached = []
for port in ports:
    try:
        socket.create_connection((address, int(port)), 5).close()
        reached.append(port)
    except OSError:
        pass
print(json.dumps(reached))
"""
"""Names the ports that can be reached at an address."""

SCAN = Path(scan.__file__).read_text()
"""Names all ports that can be reached at an address."""


@pytest.fixture(scope="module")
def run(tiny_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Process]]:
    """The processes of a run of two workers, in the midst of its training."""
    storage = tmp_path_factory.mktemp("runs")
    flags = ["--workers", "2", "--epochs", "500", "--storage", str(storage), "--name", "r", "--data", str(tiny_digits)]
    command = [sys.executable, "-m", "raypaml.train", "digits", "--delta-rel", "0.1", SLOW, *flags]
    told, deadline = os.environ | until(storage / "never"), time.monotonic() + 200
    started = subprocess.Popen(command, env=told, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (storage / "r" / "metrics.jsonl").exists() and time.monotonic() < deadline and started.poll() is None:
        time.sleep(0.2)
    assert started.poll() is None, started.communicate()[1]
    yield [Process(started.pid), *Process(started.pid).children(recursive=True)]
    started.send_signal(signal.SIGTERM)
    _, said = started.communicate(timeout=100)
    assert started.returncode == 128 + signal.SIGTERM, said


def listening(run: list[Process]) -> list[tuple[str, str, int]]:
    """Process, address and port of every socket that takes connections, as `ss -tlnp` lists them."""
    return [
        (process.name(), socket.laddr.ip, socket.laddr.port)
        for process in run
        for socket in process.net_connections("tcp")
        if socket.status == "LISTEN"
    ]


def answered(program: str, *arguments: object, before: tuple[str, ...] = ()) -> list[str]:
    """What a program in Python prints, as JSON."""
    done = subprocess.run(
        [*before, sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[str] = json.loads(done.stdout)
    return answers


def test_a_run_of_two_workers_listens_on_loopback_alone(run: list[Process]) -> None:
    sockets = listening(run)
    assert {"gcs_server", "raylet"} < {name for name, _, _ in sockets}, "all of Ray's processes are looked at"
    assert sum("RayTrainWorker" in " ".join(process.cmdline()) for process in run) == 2
    assert [entry for entry in sockets if entry[1] not in LOOPBACK] == []


def test_the_dashboard_is_not_started(run: list[Process]) -> None:
    assert [process for process in run if "dashboard/dashboard.py" in " ".join(process.cmdline())] == []


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root becomes another user")
def test_another_user_is_refused_by_rays_control_store(run: list[Process]) -> None:
    (server,) = (process for process in run if process.name() == "gcs_server")
    (port,) = {port for name, _, port in listening(run) if name == "gcs_server"}
    file = server.environ()["RAY_AUTH_TOKEN_PATH"]
    token = Path(file).read_text()
    assert answered(ASK, port, token) == ["answered"]
    as_nobody = tuple(NOBODY)
    assert answered(ASK, port, "", "0" * len(token), before=as_nobody) == ["UNAUTHENTICATED", "UNAUTHENTICATED"]
    read = subprocess.run([*NOBODY, "cat", file], capture_output=True, text=True, check=False)
    assert (read.returncode, read.stdout) == (1, "")
    assert "Permission denied" in read.stderr


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, ...]]:
    """The beginning of a command that runs it in another network namespace, joined to this one as a machine is."""
    if not shutil.which("ip") or subprocess.run(["ip", "netns", "add", "raypaml-els"], check=False).returncode:
        pytest.skip("no rights for network namespaces")
    try:
        sh("ip link add raypaml-a type veth peer name raypaml-b netns raypaml-els")
        sh(f"ip addr add {OURS}/24 dev raypaml-a && ip link set raypaml-a up")
        sh(f"ip -n raypaml-els addr add {THEIRS}/24 dev raypaml-b && ip -n raypaml-els link set raypaml-b up")
        sh("ip -n raypaml-els link set lo up")
        yield ("ip", "netns", "exec", "raypaml-els")
    finally:
        sh("ip netns del raypaml-els")


def test_another_machine_reaches_none_of_its_ports(run: list[Process], elsewhere: tuple[str, ...]) -> None:
    """Of all ports of this machine that another one can connect to, none belongs to the run."""
    ports = sorted({port for _, _, port in listening(run)})
    with socket.create_server(("", 0)) as open_to_all:
        reachable = open_to_all.getsockname()[1]
        owners = owners_of_ports()
        open_ports = set(map(int, answered(SCAN, OURS, before=elsewhere)))
        assert owners[reachable] == {os.getpid()}
        assert reachable in open_ports
    ours = {process.pid for process in run}
    assert [port for port in open_ports if owners.get(port, set()) & ours] == []
    assert answered(CONNECT, "127.0.0.1", *ports, before=elsewhere) == []
    assert len(answered(CONNECT, "127.0.0.1", *ports)) == len(ports)


def owners_of_ports() -> dict[int, set[int]]:
    """The processes that listen on each port, on whatever address."""
    found = dict[int, set[int]]()
    for line in sh("ss -Hltnp").splitlines():
        port = int(line.split()[3].rpartition(":")[2])
        found.setdefault(port, set()).update(int(pid) for pid in re.findall(r"pid=(\d+)", line))
    return found
