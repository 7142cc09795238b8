"""Start a private Ray on this machine, or join a cluster, and ask what it has."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

OBJECT_STORE_BYTES = 200 * 2**20
"""Object store of a private cluster: only progress numbers travel through it."""


@contextmanager
def join(address: str = "", workers: int = 1) -> Iterator[None]:
    """Join the cluster at `address` (or RAY_ADDRESS), or start a private one on this machine for `workers` workers.

    Raises:
        ValueError: no cluster answers at the address.
    """
    address = address or os.environ.get("RAY_ADDRESS", "")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address and address != "local":
        try:
            _knock(address)  # Ray would try for minutes
            ray.init(address=address, **quiet)
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"address={address}: no Ray cluster answers there ({reason})") from None
        try:
            yield
        finally:
            ray.shutdown()
        return
    # A temp dir of its own: with the default one, ray.init() could join a stranger's cluster. Short, for its sockets.
    temp = tempfile.mkdtemp(prefix="raypaml-ray-")
    try:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, workers),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=temp,
            **quiet,
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(temp, ignore_errors=True)


def _knock(address: str) -> None:
    """OSError where nobody listens at host:port; other forms of address are Ray's to judge."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def gpus() -> int:
    """GPUs of the joined cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


def cpus() -> int:
    """CPUs of the joined cluster."""
    return int(ray.cluster_resources().get("CPU", 0))


def may_grow() -> bool:
    """Whether nodes may be added, so that what is missing is waited for; Ray does not tell, the cluster files do."""
    return bool(os.environ.get("RAYPAML_MAY_GROW"))


def on_every_node(function: Callable[..., Any], *args: Any) -> list[Any]:
    """Call a function once on every live node, the driver's own first; it takes no CPU."""
    mine = ray.get_runtime_context().get_node_id()
    nodes = sorted((node["NodeID"] for node in ray.nodes() if node["Alive"]), key=lambda node: (node != mine, node))
    there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    task = ray.remote(function)
    return list(
        ray.get([task.options(num_cpus=0, scheduling_strategy=there(node, soft=False)).remote(*args) for node in nodes])
    )


def addresses() -> list[str]:
    """The address of every live node."""
    return [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]


def shrink_soon() -> None:
    """A lost node counts as there for a while: let Ray Train ask in vain for its CPUs for ten seconds, not for minutes.

    Then it looks again at what there is. It waits for the reservation alone (Ray 2.60, `WorkerGroup._start_impl`),
    which takes no time where there is room; the start of the workers' processes comes later, and has no limit.
    """
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "10"
