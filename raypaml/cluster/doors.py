"""What somebody without the token gets at the ports on which the processes of Ray listen."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

_AT_ONCE = 32
_SECONDS = 3.0
"""Longest time that a port may take to answer."""
DASHBOARD = 8265
"""Port of the dashboard, which is the job server too."""
NO_METRICS = ("RAY_enable_metrics_collection=0", "AUTOSCALER_METRIC_PORT=-1", "DASHBOARD_METRIC_PORT=-1")
"""Variables with which Ray serves no metrics, which anybody may read. A port of -1 it cannot open, says its log."""
_HTTP = "/api/jobs/"
"""A path of the dashboard and of the agents; other servers of HTTP answer it as they do every path."""
_METRICS = "text/plain; version="
"""How the type of Prometheus' text begins."""
_CALLS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.RayletDriver/ClusterInfo",
)
"""A call of gRPC that changes nothing, of each server of Ray that has some. The others are unknown to it."""


class Reply(StrEnum):
    """What a port gives to somebody without the token."""

    CLOSED = "is closed"
    ASKS = "asks for the token"
    ANSWERS = "answers"
    METRICS = "gives metrics"
    SILENT = "is silent"


@dataclass(frozen=True)
class Door:
    """A port of a node."""

    address: str
    port: int
    what: str
    """What listens there."""

    def __str__(self) -> str:
        return f"{self.address}:{self.port} ({self.what})"


def doors_of_cluster() -> list[Door]:
    """The ports of Ray on those live nodes of the cluster that listen on other addresses than loopback."""
    import ray  # which a run of one worker does without

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    alive = (node for node in ray.nodes() if node["Alive"] and not node["NodeManagerAddress"].startswith("127."))
    return [door for node in alive for door in doors_of(node, (host.strip("[]"), int(port)))]


def doors_of(node: dict[str, object], head: tuple[str, int]) -> list[Door]:
    """The ports of a node of `ray.nodes()`, with those that only the head has.

    Ports of workers are left out: they change, and are those of the run itself.
    """
    address = str(node["NodeManagerAddress"])
    named = {"raylet": "NodeManagerPort", "object manager": "ObjectManagerPort", "metrics": "MetricsExportPort"}
    ports = {what: int(str(node.get(key) or 0)) for what, key in named.items()} | {"agent": 52365}
    if address == head[0]:
        ports |= {"control store": head[1], "client server": 10001, "dashboard": DASHBOARD}
        ports |= {"metrics of the autoscaler": 44217, "metrics of the dashboard": 44227}
    return [Door(address, port, what) for what, port in ports.items() if port > 0]


def knock_at_all(doors: Sequence[Door]) -> dict[Door, Reply]:
    """What each of the ports gives, asked at the same time."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip(doors, pool.map(lambda door: knock(door.address, door.port), doors), strict=True))


def knock(address: str, port: int) -> Reply:
    """What one port gives."""
    try:
        socket.create_connection((address, port), timeout=_SECONDS).close()
    except OSError:
        return Reply.CLOSED
    return _by_http(address, port) or _by_grpc(f"[{address}]:{port}" if ":" in address else f"{address}:{port}")


def _by_http(address: str, port: int) -> Reply | None:
    """The answer of a server of HTTP; None where none is there."""
    connection = http.client.HTTPConnection(address, port, timeout=_SECONDS)
    try:
        connection.request("GET", _HTTP)
        answer = connection.getresponse()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    if answer.status in (401, 403):
        return Reply.ASKS
    return Reply.METRICS if answer.headers.get("Content-Type", "").startswith(_METRICS) else Reply.ANSWERS


def _by_grpc(target: str) -> Reply:
    """The answer of a server of gRPC; SILENT where none is there, or gRPC is not installed here."""
    try:
        import grpc  # type: ignore[import-untyped]  # comes with ray[default]
    except ImportError:
        return Reply.SILENT
    with grpc.insecure_channel(target) as channel:
        futures = [channel.unary_unary(call).future(b"", timeout=_SECONDS) for call in _CALLS]
        codes = {future.code().name for future in futures}  # waits for the end of each
    if codes <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
        return Reply.SILENT
    return Reply.ASKS if "UNAUTHENTICATED" in codes and codes <= {"UNAUTHENTICATED", "UNIMPLEMENTED"} else Reply.ANSWERS
