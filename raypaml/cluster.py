"""Ray at arm's length: start or join a cluster, tasks over it, and a channel between its workers and the driver."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol

# Ray reads these when it is imported or started.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")  # a cold disk can need minutes to import torch
os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "180")  # of 600: a lone worker that was stopped

import ray

OBJECT_STORE_BYTES = 200 * 2**20
"""Of a private cluster: only progress numbers travel through it."""


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
    """Of every live node."""
    return [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]


def map_tasks(
    function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *, at_once: int, gpu: bool
) -> Iterator[Any]:
    """Call a function once per tuple of arguments, on the cluster; results as they come, in any order.

    Args:
        function: importable by the workers; a call that dies with its process is made again.
        calls: the arguments, taken one after the other as tasks end.
        at_once: tasks that run beside each other, one CPU each.
        gpu: give each a GPU too.

    Raises:
        ValueError: what a call raised; RuntimeError where it raised something else.
    """
    task = ray.remote(function).options(num_cpus=1, num_gpus=int(gpu))
    left = iter(calls)
    running = [task.remote(*call) for call in islice(left, at_once)]
    while running:
        done, running = ray.wait(running)
        running += [task.remote(*call) for call in islice(left, 1)]
        try:
            yield ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            kind = ValueError if isinstance(error.cause, ValueError) else RuntimeError
            raise kind(str(error.cause)) from None


def shrink_soon() -> None:
    """A lost node counts as there for a while: let Ray Train ask for its workers in vain for a minute, not for five."""
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "60"


class Watch(Protocol):
    """What a mailbox asks about beats: see `training.watchdog`, which this module need not know."""

    def hear(self, beat: Any) -> bool:
        """Whether the process that beats is to end."""

    def hung(self) -> list[str]:
        """A line for each worker to blame."""


class _Mailbox:
    """Lives in the cluster: keeps what workers say until the driver takes it."""

    def __init__(self, watch: Watch) -> None:
        self._events: list[dict[str, Any]] = []
        self._stop = False
        self._watch = watch

    def put(self, event: dict[str, Any]) -> bool:
        self._events.append(event)
        return self._stop

    def beat(self, beat: Any) -> bool:
        return self._watch.hear(beat)

    def take(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events + [{"event": line} for line in self._watch.hung()]

    def stop(self) -> None:
        self._stop = True


class Channel:
    """Events and beats from the workers to the driver; the wish to stop from the driver to the workers."""

    def __init__(self, watch: Watch) -> None:
        # on the driver's node: should another node be lost, its progress is not
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._mailbox = ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here).remote(watch)

    def put(self, event: dict[str, Any]) -> bool:
        """Send an event; whether the driver wants the workers to stop."""
        return bool(ray.get(self._mailbox.put.remote(event)))

    def beat(self, beat: Any) -> bool:
        """Send a beat; whether this process is to end at once."""
        return bool(ray.get(self._mailbox.beat.remote(beat)))

    def take(self) -> list[dict[str, Any]]:
        """All events since the last call."""
        return list(ray.get(self._mailbox.take.remote()))

    def stop(self) -> None:
        """Ask the workers to save and stop."""
        ray.get(self._mailbox.stop.remote())
