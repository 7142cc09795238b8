"""Gives memory that is no longer used back to the system, which the allocators of Arrow and of C keep."""

from __future__ import annotations

import ctypes

import pyarrow as pa


def give_back_memory() -> None:
    """Gives free memory back: after the 20.9 million labels of Open Images V3 it is more than half of the process."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)
