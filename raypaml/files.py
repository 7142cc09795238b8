"""Files and folders that appear whole or not at all: written beside their place under a hidden name, then renamed.

The hidden name is `.NAME.unfinished`. A process that is killed leaves it behind, and the next one to write the same
file takes it over. Where several processes may write the same file at once (`shared`), each has a hidden name of its
own, `.NAME.TOKEN.unfinished`; who opens such a folder calls `sweep`, which removes what killed processes left.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

Place = str | os.PathLike[str]
"""A file or a folder, as programs name it."""
_ABANDONED_SECONDS = 3600.0
"""A file not written to for so long is nobody's work any more."""
_INSTEAD = (
    (b"version https://git-lfs", "a Git LFS pointer: run git lfs pull"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "XML, such as a store's error"),
    (b"\x1f\x8b", "a gzip archive"),
    *((b"bzh%d1ay&sy" % level, "a bzip2 archive") for level in range(1, 10)),
    (b"\xfd7zxz\0", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"rar!\x1a\7", "a RAR archive"),
)
START_BYTES = 256
"""Bytes of a file that `came_instead` looks at."""


def as_texts(given: Place | Iterable[Place]) -> list[str]:
    """One place or name, or several, as a list of texts: a program that has only one gives no list."""
    several = [given] if isinstance(given, str | os.PathLike) else given
    return [os.fspath(one) if isinstance(one, os.PathLike) else str(one) for one in several]


def came_instead(start: bytes) -> str:
    """What lies in the place of a file of data, by its first bytes in lower case; empty: none of these."""
    if not start.strip(b"\0"):
        return "nothing but zeros" if start else "0 bytes"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((what for sign, what in _INSTEAD if text.startswith(sign)), "")


@contextmanager
def whole(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Give a path to write in the block; at its end, what was written takes the name `path`.

    Whoever looks sees the file as it was before or as it is after. Where the block raises, the file stays as it was,
    and nothing lies beside it. After a loss of power a renamed file may be empty: a marker that vouches for files is
    written after a `sync` of each of them.

    Args:
        path: the final name; its folder exists. A file of this name is replaced.
        shared: other processes, of this or another machine, may be writing the same file; the last one stays.
    """
    unfinished = _unfinished(path, shared=shared)
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to see
            unfinished.unlink()
        raise


@contextmanager
def whole_folder(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill in the block; at its end it takes the name `path`. Parents are made.

    Args:
        path: the final name, which no folder with anything in it has.
        shared: other processes may be making the same folder of the same content; the first one stays.

    Raises:
        OSError: there is such a folder already, and it is not `shared`.
    """
    unfinished = _unfinished(path, shared=shared)
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        try:
            unfinished.replace(path)
        except OSError:
            if not (shared and path.is_dir()):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _unfinished(path: Path, *, shared: bool) -> Path:
    # Not the process's number: processes of two machines, or of two containers, may have the same.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished" if shared else f".{path.name}.unfinished")


def sweep(folder: Path, name: str = "*", *, shared: bool = False) -> None:
    """Remove what killed processes left unfinished in a folder.

    Args:
        folder: where they wrote; it need not exist.
        name: pattern of the final names.
        shared: others may be writing there now, so what was written to within the hour stays.
    """
    for path in folder.glob(f".{name}.unfinished"):
        with suppress(FileNotFoundError):  # another process sweeps too, or has finished
            if shared and time.time() - path.stat().st_mtime < _ABANDONED_SECONDS:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, content: str | bytes, *, shared: bool = False) -> None:
    """Write a file, text as UTF-8, whole or not at all; `shared` as in `whole`."""
    with whole(path, shared=shared) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Any, *, indent: int = 2, ensure_ascii: bool = True) -> None:
    """Write an indented JSON file, whole or not at all."""
    write_whole(path, json.dumps(content, indent=indent, ensure_ascii=ensure_ascii) + "\n")


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name: by a hard link if it is a tar and the file system can, else by a copy.

    Tars are replaced and never changed in place; other files may be edited, so they are always copied. A file that has
    the name already stays if it is as large.
    """
    if target.is_file() and target.stat().st_size == source.stat().st_size:
        return
    if source.suffix == ".tar":
        with suppress(OSError):
            os.link(source, target)
            return
    with whole(target) as unfinished:
        shutil.copy2(source, unfinished)


def share(name: str) -> Path:
    """The folder `tune` of search spaces or `clusters` of cluster files: of the wheel, or of the checkout."""
    package = Path(__file__).parent
    installed = package / "share" / name
    return installed if installed.is_dir() else package.parent / name
