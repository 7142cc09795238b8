"""Bytes of shards by offset, wherever the shards lie."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

MAX_OPEN = 64
"""Shards kept open."""


class Shards(Protocol):
    """A folder of shards, read by any number of threads at once."""

    def read(self, name: str, shard_bytes: int, offset: int, size: int) -> bytes:
        """`size` bytes of a shard of `shard_bytes` from `offset` on; fewer at its end; OSError if it fails."""

    def where(self, name: str) -> str:
        """The shard's path or address, for messages."""

    def renew(self, name: str) -> bool:
        """Give up a local copy, whose bytes are wrong; whether there was one, so that reading again may help."""


class LocalShards:
    """Shards in a folder that this machine sees; read in place."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._found: OrderedDict[str, _Open] = OrderedDict()
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
        """A shard for reading; where there are too many, the one used longest ago is given up."""
        with self._turn:
            if name not in self._found:
                self._found[name] = _Open(os.open(self.folder / name, os.O_RDONLY))
                if len(self._found) > MAX_OPEN:
                    self._found.popitem(last=False)
            self._found.move_to_end(name)
            return self._found[name]


class _Open:
    """A file, closed when nobody holds it any more: not under a thread that reads from it."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)
