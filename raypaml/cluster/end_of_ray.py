"""Ending the use of Ray in a process of which other threads may still use it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray

LEAVE_SECONDS = 5.0
_LOOK_SECONDS = 0.3


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


class RayThread(threading.Thread):
    """A thread that uses Ray, and leaves it, wherever it waits for a result, when it is told to.

    Ray crashes (SIGSEGV) where it ends while a thread is within `ray.get`. And many of its functions initialise another
    Ray where there is none, with default addresses and no token (`ray._private.auto_init_hook`); not in this thread.

    Args:
        work: what the thread does.
        known: as for `shut_down`; with another Ray the thread is like any other one.
    """

    def __init__(self, work: Callable[[], None], *, known: bool) -> None:
        super().__init__(name="ray user", daemon=True)
        self._work, self._known, self._left = work, known, threading.Event()

    def run(self) -> None:
        """Do the work."""
        with self._own_functions() if self._known else nullcontext():
            self._work()

    def leave(self) -> None:
        """Have it leave Ray, and wait until it has ended, for LEAVE_SECONDS at most."""
        self._left.set()
        self.join(LEAVE_SECONDS)

    @contextmanager
    def _own_functions(self) -> Iterator[None]:
        from ray._private import auto_init_hook

        before = ray.get, auto_init_hook.auto_init_ray
        ray.get = self._if_here(self._get(ray.get), ray.get)
        auto_init_hook.auto_init_ray = self._if_here(lambda: None, auto_init_hook.auto_init_ray)
        try:
            yield
        finally:
            ray.get, auto_init_hook.auto_init_ray = before

    def _if_here(self, here: Callable[..., Any], elsewhere: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            return (here if threading.current_thread() is self else elsewhere)(*args, **options)

        return call

    def _get(self, get: Callable[..., Any]) -> Callable[..., Any]:
        """`ray.get` that looks again and again whether to leave."""

        def patient(refs: object, *, timeout: float | None = None) -> Any:
            while timeout is None:
                try:
                    return get(refs, timeout=_LOOK_SECONDS)
                except ray.exceptions.GetTimeoutError as error:
                    if self._left.is_set() or isinstance(error, ray.exceptions.RayTaskError):
                        raise
            return get(refs, timeout=timeout)

        return patient
