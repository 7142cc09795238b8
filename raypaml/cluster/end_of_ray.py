"""Ending the use of Ray in a process of which other threads may still use it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
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
        with _own_functions() if self._known else nullcontext():
            self._work()

    def leave(self) -> None:
        """Have it leave Ray, and wait until it has ended, for LEAVE_SECONDS at most."""
        self._left.set()
        self.join(LEAVE_SECONDS)

    def get(self, get: Callable[..., Any], refs: object, *, timeout: float | None = None) -> Any:
        """`ray.get` that looks again and again whether to leave."""
        while timeout is None:
            try:
                return get(refs, timeout=_LOOK_SECONDS)
            except ray.exceptions.GetTimeoutError as error:
                if self._left.is_set() or isinstance(error, ray.exceptions.RayTaskError):
                    raise
        return get(refs, timeout=timeout)


_lock, _restore, _inside = threading.Lock(), ExitStack(), 0


@contextmanager
def _own_functions() -> Iterator[None]:
    """In the block threads of this kind get their own `ray.get`, which several may share, and all others Ray's."""
    global _inside
    with _lock:
        if not _inside:
            _install()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _restore.close()


def _install() -> None:
    from ray._private import auto_init_hook

    get, initialise = ray.get, auto_init_hook.auto_init_ray
    _restore.callback(setattr, ray, "get", get)
    _restore.callback(setattr, auto_init_hook, "auto_init_ray", initialise)

    def own_get(*args: Any, **options: Any) -> Any:
        thread = threading.current_thread()
        return thread.get(get, *args, **options) if isinstance(thread, RayThread) else get(*args, **options)

    ray.get = own_get
    auto_init_hook.auto_init_ray = lambda: None if isinstance(threading.current_thread(), RayThread) else initialise()
