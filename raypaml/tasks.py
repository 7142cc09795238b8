"""Calls mapped over this process alone, or over Ray workers: the same results either way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

Mapper = Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], Iterator[Any]]
"""(function, tuples of arguments) -> results as they come, in any order."""


@contextmanager
def mapper(workers: int, address: str = "") -> Iterator[Mapper]:
    """A way to call functions on `workers` processes, of the cluster at `address` or of this machine.

    One worker without an address is this process, without Ray.

    Raises:
        ValueError: no workers, more than the cluster has CPUs, or no cluster answers at the address.
    """
    with device_mapper(workers, address, "cpu") as (run, _):
        yield run


@contextmanager
def device_mapper(workers: int, address: str, device: str) -> Iterator[tuple[Mapper, bool]]:
    """As `mapper`, and whether Ray gives each call a GPU; in this process the caller knows of its own.

    Args:
        device: auto: GPUs where the cluster has one for each worker; cuda: nothing else will do; cpu.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}: must be at least 1")
    if workers == 1 and not address:
        yield (lambda function, calls: (function(*call) for call in calls)), False
        return
    from raypaml import cluster

    with cluster.join(address, workers):
        if cluster.cpus() < workers:
            raise ValueError(f"workers={workers}: the cluster has {cluster.cpus()} CPUs; use fewer or add nodes")
        gpu = device != "cpu" and cluster.gpus() >= workers
        if device == "cuda" and not gpu:
            raise ValueError(f"device=cuda: {workers} workers need a GPU each, the cluster has {cluster.gpus()}")
        yield partial(cluster.map_tasks, at_once=workers, gpu=gpu), gpu
