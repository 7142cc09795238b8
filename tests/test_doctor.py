"""The doctor: every finding with its remedy, fatal ones in the exit code."""

from __future__ import annotations

import dataclasses
import errno
import http.server
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from raypaml import doctor
from raypaml.cluster import checks, doors, nodes
from raypaml.cluster.checks import FATAL, FINE, WARNING
from raypaml.cluster.doors import Door, Reply, knock, knock_at_all
from raypaml.cluster.nodes import Node
from raypaml.config import TrainConfig
from raypaml.recipes import recipe

GB = 10**9
GOOD = Node(
    host="a",
    versions={"torch": "2.15.0", "ray": "2.60.0"},
    cpus=8,
    gpu_memory=(24 * GB,),
    memory=64 * GB,
    cache_free=100 * GB,
    storage_free=100 * GB,
    storage_fault="",
    seen=True,
    write_rate=1e8,
    token=True,
)


def like(**values: Any) -> Node:
    return dataclasses.replace(GOOD, **values)


def config(**values: Any) -> TrainConfig:
    return recipe("openimages_v3").override({"workers": 2} | values)


def test_versions_that_differ_are_named_with_their_hosts() -> None:
    other = like(host="b", versions={"torch": "2.14.0", "ray": "2.60.0"})
    assert checks.same_versions([GOOD, GOOD]).level == FINE
    found = checks.same_versions([GOOD, other])
    assert (found.level, found.remedy) == (FATAL, "install the same constraints.txt on every node")
    assert found.what == "versions differ: torch: 2.14.0 on b, 2.15.0 on a"


@pytest.mark.parametrize(
    ("gpus", "by_ray", "values", "level", "remedy"),
    [
        (2, 2, {}, FINE, ""),
        (1, 1, {"device": "cuda"}, FATAL, "--workers 1"),
        (0, 0, {"device": "cuda"}, FATAL, "--device cpu"),
        (1, 1, {"device": "cuda", "min_workers": 1}, FINE, ""),
        (1, 1, {}, WARNING, "--workers 1 would use them"),
        (0, 4, {}, WARNING, "check driver and CUDA build"),
    ],
)
def test_gpus(gpus: int, by_ray: int, values: dict[str, Any], level: str, remedy: str) -> None:
    found = checks.gpus_seen([like(gpu_memory=(24 * GB,) * gpus)], by_ray, config(**values))
    assert found.level == level
    assert remedy in found.remedy


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"storage_fault": "renames are not atomic there"}, "on b: renames are not atomic"),
        ({"seen": False}, "b does not see what a wrote there"),
    ],
)
def test_storage_that_is_not_what_a_run_needs(bad: dict[str, Any], said: str) -> None:
    found = checks.storage([GOOD, like(host="b", **bad)], config(storage="/runs"))
    assert found.level == FATAL
    assert said in found.what
    assert "--storage" in found.remedy


def test_disks_for_checkpoints_and_for_the_cache() -> None:
    assert list(checks.disks([GOOD], config(), 3 * GB, 0)) == []
    (full,) = checks.disks([like(storage_free=GB)], config(), 3 * GB, 0)
    assert (full.level, full.what) == (FATAL, "storage=runs: 1.0 GB free, the run's checkpoints take 3.0 GB")
    (small,) = checks.disks([like(cache_free=9 * GB)], config(cache_gb=50), GB, 189 * GB)
    assert (small.level, small.remedy) == (WARNING, "--cache on a larger disk, or --cache-gb 9")
    assert list(checks.disks([like(cache_free=9 * GB)], config(), GB, 5 * GB)) == []


def test_doors() -> None:
    one, another = "10.0.0.1", "10.0.0.2"
    replies = {
        Door(one, 8265, "dashboard"): Reply.ANSWERS,
        Door(another, 8265, "dashboard"): Reply.ASKS,
        Door(one, 6379, "control store"): Reply.ASKS,
        Door(one, 44217, "metrics of the autoscaler"): Reply.METRICS,
        Door(one, 10001, "client server"): Reply.CLOSED,
        Door(another, 8080, "metrics"): Reply.METRICS,
    }
    found = list(checks.doors([GOOD], replies))
    assert [one.level for one in found] == [FATAL, WARNING, WARNING, FINE]
    assert "anybody may submit jobs on 10.0.0.1:8265" in found[0].what
    assert found[2].what.endswith("on 10.0.0.1:44217 (metrics of the autoscaler), 10.0.0.2:8080 (metrics)")
    assert "RAY_enable_metrics_collection=0 AUTOSCALER_METRIC_PORT=-1 " in found[2].remedy
    assert found[3].what.startswith("2 ports of Ray asked for a token")
    (open_node,) = checks.doors([like(token=False)], {})
    assert (open_node.level, "get-auth-token" in open_node.remedy) == (WARNING, True)
    (silent,) = checks.doors([GOOD], {Door(one, 6379, "control store"): Reply.SILENT})
    assert "on 10.0.0.1:6379 (control store) is not known" in silent.what
    (open_door,) = checks.doors([GOOD], {Door(one, 6379, "control store"): Reply.ANSWERS})
    assert open_door.what.startswith("no token is asked for on 10.0.0.1:6379 (control store): whoever")


class Server(http.server.BaseHTTPRequestHandler):
    """Answers as one of Ray's servers of HTTP: one that wants a token, one that does not, and one of metrics."""

    def do_GET(self) -> None:
        self.send_response({"asks": 401, "refuses": 403}.get(self.server.kind, 200))
        self.send_header("Content-Type", "text/plain; version=0.0.4" if self.server.kind == "metrics" else "text/html")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.mark.parametrize(
    ("kind", "reply"),
    [("asks", Reply.ASKS), ("refuses", Reply.ASKS), ("open", Reply.ANSWERS), ("metrics", Reply.METRICS)],
)
def test_a_server_of_http_is_told_by_its_answer(kind: str, reply: Reply) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.kind = kind  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        door = Door("127.0.0.1", server.server_address[1], "it")
        assert knock_at_all([door]) == {door: reply}
        server.shutdown()
    assert knock("127.0.0.1", door.port) == Reply.CLOSED


@pytest.mark.parametrize(
    ("code", "reply"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, Reply.ASKS),
        (grpc.StatusCode.INTERNAL, Reply.ANSWERS),
        (grpc.StatusCode.OK, Reply.ANSWERS),
        (None, Reply.ANSWERS),
    ],
)
def test_a_server_of_grpc_is_told_by_its_answer(code: grpc.StatusCode | None, reply: Reply) -> None:
    """One that knows no call of Ray's is not Ray's, so that nothing is known of it."""

    def answer(_request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_code(code)
        return b""

    handler = grpc.unary_unary_rpc_method_handler(answer)
    server = grpc.server(ThreadPoolExecutor(1))
    if code:
        handlers = grpc.method_handlers_generic_handler("ray.rpc.NodeManagerService", {"GetNodeStats": handler})
        server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert knock("127.0.0.1", port) == reply
    server.stop(None).wait()


def test_a_port_that_says_nothing_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a run's process group."""
    monkeypatch.setattr(doors, "_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert knock("127.0.0.1", listening.getsockname()[1]) == Reply.SILENT


def test_ports_of_a_node_are_those_that_ray_names_and_on_the_head_the_fixed_ones() -> None:
    node = {"NodeManagerAddress": "10.0.0.1", "NodeManagerPort": 1, "ObjectManagerPort": 2, "MetricsExportPort": -1}
    assert [door.port for door in doors.doors_of(node, ("10.0.0.9", 6379))] == [1, 2, 52365]
    assert [door.port for door in doors.doors_of(node, ("10.0.0.1", 6379))][3:] == [6379, 10001, 8265, 44217, 44227]


def test_interval_is_young_and_daly() -> None:
    from types import SimpleNamespace

    found: Any = SimpleNamespace(flops=10**12, images=10**6, steps=4000)  # a worker of 100 TFLOP/s: 100 images/s
    said = checks.checkpoint_interval(found, config(epochs=10), 10 * GB, 1e9, 100, 5.0)
    # 10 s a checkpoint, a loss every 18,000 s: sqrt(2 x 10 x 18,000) = 600 s of 200 images/s in steps of 256
    assert said.remedy == "--checkpoint-steps 469 saves every 10 minutes (Young-Daly)"
    assert said.what.startswith("13.9 h at 200 images/s")
    assert said.what.endswith("3.3%")  # 300 / 18,000 + 10 / 600
    assert (
        checks.checkpoint_interval(found, config(epochs=10, checkpoint_steps=400), 10 * GB, 1e9, 100, 5.0).remedy == ""
    )


def test_what_a_disk_must_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = nodes.leave(str(tmp_path / "runs"))
    seen = nodes.look(str(tmp_path / "runs"), "", left)
    assert (seen.storage_fault, seen.seen) == ("", True)
    assert min(seen.write_rate, seen.memory, seen.cache_free, seen.storage_free) > 0
    nodes.remove(str(tmp_path / "runs"), left)
    assert not list((tmp_path / "runs").iterdir())
    assert not nodes.look(str(tmp_path / "runs"), "", left).seen
    monkeypatch.setattr(Path, "replace", lambda self, to: to.write_bytes(b"") if self.is_file() else self.rename(to))
    assert nodes.look(str(tmp_path / "runs"), "", left).storage_fault == "renames are not atomic there"


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raypaml.doctor", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_the_command_on_a_laptop(tiny_digits: Path, tmp_path: Path) -> None:
    flags = ["--data", str(tiny_digits), "--storage", str(tmp_path / "runs"), "--delta-rel", "0", "--workers", "1"]
    done = run("digits", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "renames are atomic" in done.stdout
    assert "1 training shard, all there, for 1 worker" in done.stdout
    assert "warning  ll_r rejects nothing in this whole run: delta_rel=0" in done.stdout
    assert done.stdout.endswith("nothing that would stop the run\n")


def test_fatal_findings_are_the_exit_code(tiny_digits: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("digits", "--data", str(tiny_digits), "--storage", str(tmp_path / "file"))
    assert done.returncode == 1
    assert "fatal    storage=" in done.stdout
    missing = run(
        "digits", "--data", str(tmp_path / "none"), "--storage", str(tmp_path), "--device", "cpu", "--workers", "1"
    )
    assert (missing.returncode, "fatal" in missing.stdout) == (1, True)
    assert run("--no-such-flag").returncode == 2


def test_a_full_disk_is_a_finding(
    tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: Path) -> float:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(nodes, "_write_rate", full)
    flags = ["--data", str(tiny_digits), "--storage", str(tmp_path), "--workers", "1", "--device", "cpu"]
    assert doctor.main(flags) == 1
    assert "cannot be written: No space left on device" in capsys.readouterr().out


def test_what_a_node_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from raypaml.cluster import session

    def fails(calls: list[object]) -> None:
        raise ray.exceptions.RayTaskError("look", "Traceback of the node", ValueError("no home")).as_instanceof_cause()

    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "a"))
    monkeypatch.setattr(ray, "nodes", list)
    monkeypatch.setattr(ray, "wait", lambda calls, **_: (calls, []))  # the true one would start a Ray
    monkeypatch.setattr(ray, "get", fails)
    with pytest.raises(ValueError, match=r"^no home$"):
        session.on_every_node(nodes.look)
