"""Ending the use of Ray in a process of which other threads may still use it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray


class _UntilItEnds:
    """Ray's core worker until it begins to end; then it has nothing any more that another thread could call."""

    def __init__(self, core_worker: Any) -> None:  # ray._raylet.CoreWorker
        self._core_worker, self._ends = core_worker, False

    def __getattr__(self, name: str) -> object:
        if self._ends:
            raise AttributeError(f"Ray has ended, and with it {name}")
        return getattr(self._core_worker, name)

    def shutdown_driver(self) -> None:
        """End it."""
        self._ends = True
        self._core_worker.shutdown_driver()


def shut_down(*, known: bool) -> None:
    """Call ray.shutdown, while other threads may use or drop what is Ray's, such as one that waits for a result.

    Ray ends the process with code 1 where its core worker is called once that has ended. It ends before Ray forgets it,
    by seconds where the head or the raylet is lost, and every ObjectRef that a thread drops meanwhile calls it, where
    Ray ignores whatever error comes. (Ray 2.60, `ObjectRef.__dealloc__`, `CoreWorkerProcess::GetCoreWorker`.)

    Args:
        known: whether it is the Ray whose internals are known (`private_ray.is_known`).
    """
    from ray._private.worker import global_worker

    if known and hasattr(global_worker, "core_worker"):  # not through a Ray Client
        global_worker.core_worker = _UntilItEnds(global_worker.core_worker)
    ray.shutdown()


@contextmanager
def no_other_ray(*, known: bool) -> Iterator[None]:
    """In the block no function of Ray that this thread calls initialises another Ray once the one in use has ended.

    Many do where there is none (Ray 2.60, `auto_init_hook`): with default addresses, without a token.

    Args:
        known: as for `shut_down`.
    """
    if not known:
        yield
        return
    from ray._private import auto_init_hook

    before, here = auto_init_hook.auto_init_ray, threading.current_thread()
    auto_init_hook.auto_init_ray = lambda: None if threading.current_thread() is here else before()
    try:
        yield
    finally:
        auto_init_hook.auto_init_ray = before
