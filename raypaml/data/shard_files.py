"""Reads bytes of shards by offset, from local files or through a cache."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

MAX_OPEN = 64
"""The most shards that are kept open."""


class Shards(Protocol):
    """A folder of shards that any number of threads may read at the same time."""

    def read(self, name: str, shard_bytes: int, offset: int, size: int) -> bytes:
        """Read `size` bytes from `offset` of a shard of `shard_bytes` bytes; fewer at its end. Raises OSError."""

    def where(self, name: str) -> str:
        """The shard's path or address, for messages."""

    def renew(self, name: str) -> bool:
        """Remove a local copy whose bytes are wrong; returns whether there was one, so that reading again may help."""


class LocalShards:
    """Shards in a folder of this machine's file system, read in place."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: OrderedDict[str, _Open] = OrderedDict()
        self._turn = threading.Lock()

    def read(self, name: str, shard_bytes: int, offset: int, size: int) -> bytes:  # noqa: ARG002
        """As in `Shards`."""
        file = self._open(name)
        return os.pread(file.descriptor, size, offset)

    def where(self, name: str) -> str:
        """As in `Shards`."""
        return str(self.folder / name)

    def renew(self, name: str) -> bool:  # noqa: ARG002
        """As in `Shards`."""
        return False

    def _open(self, name: str) -> _Open:
        """Open a shard for reading; if too many are open, close the one used longest ago."""
        with self._turn:
            if name not in self._files:
                self._files[name] = _Open(os.open(self.folder / name, os.O_RDONLY))
                if len(self._files) > MAX_OPEN:
                    self._files.popitem(last=False)
            self._files.move_to_end(name)
            return self._files[name]


class _Open:
    """An open file that is closed when it is no longer referenced, and so never while a thread reads from it."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)
