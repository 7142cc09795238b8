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
        ValueError: no workers, or no cluster answers at the address.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}: must be at least 1")
    if workers == 1 and not address:
        yield lambda function, calls: (function(*call) for call in calls)
        return
    from raypaml import cluster

    with cluster.join(address, workers):
        yield partial(cluster.map_tasks, at_once=workers, gpu=False)
