"""A run kept in an object store: worked on in a folder of each node, and copied file by file.

A store has no rename. What is whole there is told as on a disk: a checkpoint by its marker, which goes last and is the
first to be removed; any other file by itself. The store is the truth: what a node has beyond it was not agreed upon.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pyarrow import fs

from raypaml.data.storage import Location, read_file, with_retries
from raypaml.files import sweep, whole_folder, write_whole

MARKER = "COMMITTED"
"""File of a checkpoint that says that all others are whole."""
_PATIENCE = 60.0
"""Seconds that a store may be out of order."""


def local_folder(storage: str, name: str) -> Path:
    """Where a run is worked on: in its storage, or in the cache of this node for a store."""
    if Location(storage).is_local:
        return (Path(storage) / name).absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "raypaml" / "runs"
    return (cache / hashlib.sha256(storage.encode()).hexdigest()[:12] / name).absolute()


@dataclass(frozen=True)
class Mirror:
    """A local folder and its counterpart in a store."""

    local: Path
    store: Location

    @classmethod
    def of(cls, storage: str, local: Path) -> Mirror | None:
        """The mirror of a run's folder; None where the storage is a path."""
        where = Location(storage)
        return None if where.is_local else cls(local, where / local.name)

    def push(self, *names: str) -> None:
        """Copy files and folders to the store; OSError where it was out of order for a minute."""
        for path, file in self._here(names).items():
            self.write(path, file.read_bytes())

    def push_new(self, name: str) -> None:
        """Copy those files of a folder, each written once, that the store lacks."""
        there = self.there([name])
        for path, file in self._here([name]).items():
            if there.get(path) != file.stat().st_size:
                self.write(path, file.read_bytes())

    def pull(self, *names: str) -> None:
        """Copy files and folders from the store, those that are not here in that size."""
        there = self.there(names)
        for parent in {(self.local / path).parent for path in there}:
            sweep(parent, shared=True)
        for path, size in there.items():
            file = self.local / path
            if not file.is_file() or file.stat().st_size != size:
                self._fetch(path, file)

    def push_checkpoints(self) -> None:
        """Copy what is new to the store, markers last, and remove there what is not here, markers first."""
        here, there = self._here(["checkpoints"]), self.there(["checkpoints"])
        for marker in (path for path in here if path.endswith(MARKER)):
            if marker not in there or self.read(marker) != here[marker].read_bytes():
                for path in sorted((path for path in here if folder(path) == folder(marker)), key=_marker_last):
                    self.write(path, here[path].read_bytes())
        for path in sorted(set(there) - set(here), key=_marker_last, reverse=True):
            self.delete(path)

    def pull_checkpoints(self) -> None:
        """Copy those that are whole in the store, and remove here what is not, or is another, there."""
        there = self.there(["checkpoints"])
        whole = [folder(path) for path in there if path.endswith(MARKER)]
        for old in (self.local / "checkpoints").glob("[0-9]*"):
            name = f"checkpoints/{old.name}"
            if name not in whole or self._differs(name):
                shutil.rmtree(old, ignore_errors=True)
        for checkpoint in whole:
            if not (self.local / checkpoint).is_dir():
                self._fetch_checkpoint(checkpoint, [path for path in there if folder(path) == checkpoint])

    def _differs(self, checkpoint: str) -> bool:
        marker = self.local / checkpoint / MARKER
        return not marker.is_file() or self.read(f"{checkpoint}/{MARKER}") != marker.read_bytes()

    def _fetch_checkpoint(self, checkpoint: str, paths: list[str]) -> None:
        """Whole, under its name; another process of this node may be doing the same."""
        final = self.local / checkpoint
        with whole_folder(final, shared=True) as unfinished:
            for path in paths:
                self._fetch(path, unfinished / Path(path).name)

    def _here(self, names: Iterable[str]) -> dict[str, Path]:
        """Files by path below the run, of files and of folders."""
        found: dict[str, Path] = {}
        for root in (self.local / name for name in names):
            for path in [root] if root.is_file() else root.rglob("*"):
                if path.is_file() and ".unfinished" not in str(path):
                    found[str(path.relative_to(self.local))] = path
        return found

    def there(self, names: Iterable[str]) -> dict[str, int]:
        """Bytes by path below the run."""
        filesystem, root = self.store.open()
        prefix = f"{root.rstrip('/')}/"

        def look(name: str) -> list[fs.FileInfo]:
            one = filesystem.get_file_info(prefix + name)
            if one.type == fs.FileType.File:
                return [one]
            return list(filesystem.get_file_info(fs.FileSelector(prefix + name, allow_not_found=True, recursive=True)))

        found: list[fs.FileInfo] = []
        for name in names:
            found += with_retries(partial(look, name), f"{self.store / name}", patience=_PATIENCE)
        return {info.path.removeprefix(prefix): info.size for info in found if info.type == fs.FileType.File}

    def read(self, path: str) -> bytes | None:
        """A file of the store, None if there is none; as all requests, repeated for a minute, then OSError."""
        try:
            return with_retries(lambda: read_file(self.store / path), f"{self.store / path}", patience=_PATIENCE)
        except FileNotFoundError:
            return None

    def write(self, path: str, content: bytes) -> None:
        """A file to the store."""
        filesystem, _ = self.store.open()
        target = (self.store / path).open()[1]

        def write() -> None:
            with filesystem.open_output_stream(target) as file:
                file.write(content)

        with_retries(write, f"{self.store / path}", patience=_PATIENCE)

    def _fetch(self, path: str, file: Path) -> None:
        content = self.read(path)
        if content is None:
            return  # removed meanwhile
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content, shared=True)

    def delete(self, path: str) -> None:
        """A file from the store."""
        filesystem, _ = self.store.open()
        target = (self.store / path).open()[1]
        with_retries(lambda: filesystem.delete_file(target), f"{self.store / path}", patience=_PATIENCE)


def _marker_last(path: str) -> bool:
    return path.endswith(MARKER)


def folder(path: str) -> str:
    """The folder that a file lies in."""
    return path.rpartition("/")[0]
