"""A run kept in an object store: every node works in a local folder, which is copied to and from the store by file.

A store cannot rename. A checkpoint is complete where its marker is, which is copied last and removed first; any other
file is complete by itself. The store decides: checkpoints that only a node has are removed there.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pyarrow import fs

from raypaml.data.storage import Location, read_file, with_retries
from raypaml.files import kept_in, sweep, user_cache, whole_folder, write_whole

MARKER = "COMMITTED"
"""File of a checkpoint that says that all its other files are complete."""
_PATIENCE = 60.0
"""Seconds for which requests to a failing store are repeated."""


def local_folder(storage: str, name: str) -> Path:
    """The folder of a run on this machine: in its storage or, for a store, in the user's cache."""
    if Location(storage).is_local:
        return (Path(storage) / name).absolute()
    return (kept_in(user_cache() / "runs") / hashlib.sha256(storage.encode()).hexdigest()[:12] / name).absolute()


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
        """Copy files and folders to the store; OSError where requests have failed for a minute."""
        for path, file in self._here(names).items():
            self.write(path, file.read_bytes())

    def push_new(self, name: str) -> None:
        """Copy the files of a folder that the store lacks; none is ever written again."""
        there = self.there([name])
        for path, file in self._here([name]).items():
            if there.get(path) != file.stat().st_size:
                self.write(path, file.read_bytes())

    def pull(self, *names: str) -> None:
        """Copy files and folders from the store, unless they are here with the same size."""
        there = self.there(names)
        for parent in {(self.local / path).parent for path in there}:
            sweep(parent, shared=True)
        for path, size in there.items():
            file = self.local / path
            if not file.is_file() or file.stat().st_size != size:
                self._fetch(path, file)

    def push_checkpoints(self) -> None:
        """Copy new checkpoints to the store, markers last, and remove there those not here, markers first."""
        here, there = self._here(["checkpoints"]), self.there(["checkpoints"])
        for marker in (path for path in here if path.endswith(MARKER)):
            if marker not in there or self.read(marker) != here[marker].read_bytes():
                for path in sorted((path for path in here if folder(path) == folder(marker)), key=_marker_last):
                    self.write(path, here[path].read_bytes())
        for path in sorted(set(there) - set(here), key=_marker_last, reverse=True):
            self.delete(path)

    def pull_checkpoints(self) -> None:
        """Copy complete checkpoints from the store, and remove here those that are missing or different there."""
        there = self.there(["checkpoints"])
        whole = [folder(path) for path in there if path.endswith(MARKER)]
        for old in (self.local / "checkpoints").glob("[0-9]*"):
            name = f"checkpoints/{old.name}"
            marker = old / MARKER
            is_same = name in whole and marker.is_file() and self.read(f"{name}/{MARKER}") == marker.read_bytes()
            if not is_same:
                shutil.rmtree(old, ignore_errors=True)
        for checkpoint in whole:
            if (self.local / checkpoint).is_dir():
                continue
            # whole or not at all; another process of this node may do the same
            with whole_folder(self.local / checkpoint, shared=True) as unfinished:
                for path in there:
                    if folder(path) == checkpoint:
                        self._fetch(path, unfinished / Path(path).name)

    def _here(self, names: Iterable[str]) -> dict[str, Path]:
        """The local files of these files and folders, by path below the run."""
        files: dict[str, Path] = {}
        for root in (self.local / name for name in names):
            for path in [root] if root.is_file() else root.rglob("*"):
                if path.is_file() and ".unfinished" not in str(path):
                    files[str(path.relative_to(self.local))] = path
        return files

    def there(self, names: Iterable[str]) -> dict[str, int]:
        """The sizes in bytes of the store's files of these files and folders, by path below the run."""
        filesystem, root = self.store.open()
        prefix = f"{root.rstrip('/')}/"

        def look(name: str) -> list[fs.FileInfo]:
            one = filesystem.get_file_info(prefix + name)
            if one.type == fs.FileType.File:
                return [one]
            return list(filesystem.get_file_info(fs.FileSelector(prefix + name, allow_not_found=True, recursive=True)))

        infos: list[fs.FileInfo] = []
        for name in names:
            infos += with_retries(partial(look, name), f"{self.store / name}", patience=_PATIENCE)
        sizes = {info.path.removeprefix(prefix): info.size for info in infos if info.type == fs.FileType.File}
        if outside := [path for path in sizes if path.startswith("/") or ".." in path.split("/")]:
            raise ValueError(f"{self.store}: holds {outside[0]!r}, which is outside of the run; remove it there")
        return sizes

    def read(self, path: str) -> bytes | None:
        """Read a file of the store; None where there is none. Like all requests it is repeated for a minute."""
        try:
            return with_retries(lambda: read_file(self.store / path), f"{self.store / path}", patience=_PATIENCE)
        except FileNotFoundError:
            return None

    def write(self, path: str, content: bytes) -> None:
        """Write a file of the store."""
        filesystem, _ = self.store.open()
        target = (self.store / path).open()[1]

        def write() -> None:
            with filesystem.open_output_stream(target) as file:
                file.write(content)

        with_retries(write, f"{self.store / path}", patience=_PATIENCE)

    def _fetch(self, path: str, file: Path) -> None:
        content = self.read(path)
        if content is None:
            return  # removed in the meantime
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content, shared=True)

    def delete(self, path: str) -> None:
        """Delete a file of the store."""
        filesystem, _ = self.store.open()
        target = (self.store / path).open()[1]
        with_retries(lambda: filesystem.delete_file(target), f"{self.store / path}", patience=_PATIENCE)


def _marker_last(path: str) -> bool:
    return path.endswith(MARKER)


def folder(path: str) -> str:
    """The path of the folder that a file is in."""
    return path.rpartition("/")[0]
