"""What a process has once, used by one thread at a time: torch's random numbers and threads, Python's log, and Ray."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_USED = threading.RLock()  # its thread may enter again: a callback may train, and what has Ray may ask for it


def is_used_elsewhere() -> bool:
    """Whether another thread of this process is within `sole_use`."""
    if not _USED.acquire(blocking=False):
        return True
    _USED.release()
    return False


@contextmanager
def sole_use() -> Iterator[None]:
    """In the block this thread trains in this process, or has a Ray of ours; ValueError where another one does."""
    if not _USED.acquire(blocking=False):
        raise ValueError(
            "another thread of this process trains already, or has a private Ray, and both would share random numbers, "
            "a log and Ray; wait for that one, use another process, or call ray.init() first, for workers=2 or more"
        )
    try:
        yield
    finally:
        _USED.release()
