"""Files that hold the SHA-256 of their own bytes, which is compared before a native reader decodes anything of them.

Whoever writes a file puts `UNSEALED` among its metadata and calls `seal` on the finished file. The zeros after each
mark then become the SHA-256 of the whole file, computed with zeros in these places. This works for every format that
stores its metadata as they are: Arrow, which has them twice, and Parquet. To other programs it is one text more among
the metadata.

A digest shows accidents and not attacks, because whoever can write a file can seal it. So the contents of a file are
checked too, whatever its digest says.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from raypaml.files import user_cache

_MARK = b"raypaml-sha256:"
_LENGTH = 64
"""Number of characters of a digest."""
_ZEROS = b"0" * _LENGTH
SEAL = "sha256"
"""The name of the metadata that hold the digest."""
UNSEALED = (_MARK + _ZEROS).decode()
"""Their value until the file is sealed."""
_EDGE = 1 << 24
"""Marks are searched in so many bytes at the beginning and at the end of a file, where metadata are."""
_CHUNK = 1 << 20
_SMALL = 1 << 18
"""Smaller files are checked by every process, which takes less than a mark does."""
_SETTLED_SECONDS = 2.0
"""A file that changed less than this before it was checked might change again without getting another time."""
_FORGOTTEN_SECONDS = 30 * 86400.0
"""Marks of files that were checked longer ago are removed."""
_checked: set[str] = set()
"""The states of files that this process knows to be checked."""


def seal(path: Path) -> None:
    """Write the digest of a finished file into it.

    Raises:
        ValueError: its metadata have no place for it, or a value would be taken for one and overwritten.
    """
    file = os.open(path, os.O_RDWR)
    try:
        places = _places(file)
        if not places:
            raise ValueError(f"{path}: its metadata have no {_MARK.decode()} within {_EDGE:,} bytes of an end")
        if any(os.pread(file, _LENGTH, place) != _ZEROS for place in places):
            raise ValueError(f"{path}: its values hold {_MARK.decode()!r}, the mark of a digest; call them otherwise")
        digest = _digest(file, places)
        for place in places:
            os.pwrite(file, digest, place)
    finally:
        os.close(file)


def is_intact(file: int, path: Path, remedy: str) -> bool:
    """Check the digest of an open file; returns whether it has one, for files of earlier versions have none.

    Args:
        file: the descriptor of the file.
        path: its path, for the message.
        remedy: what to do where it is damaged, for the message.

    Raises:
        ValueError: its bytes do not have this digest.
    """
    places = _places(file)
    digest = _digest(file, places) if places else b""
    if any(os.pread(file, _LENGTH, place) != digest for place in places):
        raise ValueError(f"{path}: damaged: its bytes do not have the SHA-256 that was written into it; {remedy}")
    return bool(places)


def once_on_node(file: int, kind: str, check: Callable[[], object]) -> None:
    """Check an open file unless a process of this user has done so on this node since it last changed.

    A mark in the user's cache names what the system says of the file: device, inode, size, and when content and inode
    last changed, to the nanosecond; and since when this machine is up. Other processes that come at the same time wait
    for the first. Where the cache cannot be written, each process checks for itself.

    Args:
        file: the descriptor of the file.
        kind: what is checked, with a version; it must change where the checks become stricter.
        check: raises where something is wrong.
    """
    stat = os.fstat(file)
    state = (kind, _boot(), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    name = hashlib.sha256(repr(state).encode()).hexdigest()[:32]
    if name in _checked:
        return
    mark = _open_mark(name) if stat.st_size >= _SMALL else None
    try:
        if mark is None or not os.fstat(mark).st_size:
            check()
            if time.time() - max(stat.st_ctime, stat.st_mtime) < _SETTLED_SECONDS:
                return
            with suppress(OSError):
                os.write(mark, b"checked\n") if mark is not None else None
        _checked.add(name)
    finally:
        if mark is not None:
            os.close(mark)


def _places(file: int) -> list[int]:
    """The positions of all digests, ascending."""
    size = os.fstat(file).st_size
    starts = {0, max(size - _EDGE, 0)}
    ends = (start + match.end() for start in starts for match in re.finditer(_MARK, os.pread(file, _EDGE, start)))
    return sorted(set(ends))


def _digest(file: int, places: list[int]) -> bytes:
    """The SHA-256, in hexadecimal, of a file with zeros in place of its digests."""
    digest, position = hashlib.sha256(), 0
    for place in [*places, os.fstat(file).st_size]:
        while chunk := os.pread(file, max(0, min(_CHUNK, place - position)), position):
            digest.update(chunk)
            position += len(chunk)
        digest.update(_ZEROS)
        position += _LENGTH
    return digest.hexdigest().encode()


@cache
def _boot() -> str:
    """A text that no other machine has, nor this one after it was started again."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return os.uname().nodename


def _open_mark(name: str) -> int | None:
    """Open the mark of a state of a file, locked; it is empty until the file was checked. None: there is no cache."""
    try:
        folder = user_cache() / "checked"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except (OSError, ValueError):
        return None
    with suppress(OSError):  # without locks, several processes check at the same time
        fcntl.flock(mark, fcntl.LOCK_EX)
    if os.fstat(mark).st_uid == os.geteuid():
        _forget(folder)
        return mark
    os.close(mark)  # somebody else's: nothing is believed of it
    return None


@cache
def _forget(folder: Path) -> None:
    """Remove marks that are of no more use, once in the life of a process."""
    with suppress(OSError):  # others may remove them at the same time
        for path in folder.iterdir():
            if time.time() - path.stat().st_mtime > _FORGOTTEN_SECONDS:
                path.unlink()
