"""Bytes of shards by offset, wherever the shards lie."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

MAX_OPEN = 64
"""Shards a process keeps open."""


class Shards(Protocol):
    """A folder of shards. Picklable; every process opens files for itself."""

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
        self._found: OrderedDict[str, int] = OrderedDict()

    def read(self, name: str, shard_bytes: int, offset: int, size: int) -> bytes:  # noqa: ARG002
        """As in `Shards`."""
        return os.pread(self._open(name), size, offset)

    def where(self, name: str) -> str:
        """As in `Shards`."""
        return str(self.folder / name)

    def renew(self, name: str) -> bool:  # noqa: ARG002
        """As in `Shards`."""
        return False

    def _open(self, name: str) -> int:
        """A descriptor for reading; the one used longest ago is closed where there are too many."""
        if name not in self._found:
            self._found[name] = os.open(self.folder / name, os.O_RDONLY)
            if len(self._found) > MAX_OPEN:
                os.close(self._found.popitem(last=False)[1])
        self._found.move_to_end(name)
        return self._found[name]

    def __del__(self) -> None:
        for descriptor in self._found.values():
            os.close(descriptor)

    def __reduce__(self) -> tuple[type[LocalShards], tuple[Path]]:
        return LocalShards, (self.folder,)  # descriptors stay in their process
