"""A folder for a private Ray: for this user only, short enough for sockets, and removed even if its owner is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "raypaml-"
LOCK = "in-use"
"""File that the owner of the folder keeps locked. The kernel releases the lock when that process ends, in whatever way,
and unlike a process id the lock cannot be mistaken for another process's."""

LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Most bytes of a Unix socket's path, without the terminating zero (sun_path of sys/un.h)."""
OF_RAY = "r"
"""Ray's folder within it, because Ray makes the one that it is given writable for all."""
INSIDE = f"/{OF_RAY}/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
"""The longest path that Ray creates, with the largest process id of Linux."""
RANDOM = 8
"""Number of letters that tempfile appends."""


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder that only this user can access, with an unpredictable name; removed at the end.

    Raises:
        ValueError: no writable place has a path that is short enough.
    """
    places = _places()
    for place in places:
        sweep_deserted(place)
    folder, lock = _made(places)
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def _places() -> list[Path]:
    """Places for the folder: the user's temporary folder, the machine's, and the user's runtime folder."""
    wanted = [tempfile.gettempdir(), "/tmp", os.environ.get("XDG_RUNTIME_DIR", "")]
    return [Path(place) for place in dict.fromkeys(wanted) if place and Path(place).is_absolute()]


def _made(places: list[Path]) -> tuple[Path, int]:
    room = LONGEST_SOCKET - len(INSIDE) - len(f"/{PREFIX}") - RANDOM
    faults = []
    for place in places:
        if len(os.fsencode(place)) > room:
            faults.append(f"{place} is longer than {room} bytes")
            continue
        try:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))  # 0700
            return folder, _locked(folder)
        except OSError as error:
            faults.append(f"{place}: {error.strerror}")
    raise ValueError(
        f"Ray needs a folder for its sockets, and there is none: {'; '.join(faults)}; set TMPDIR to a short path that "
        f"this user may write"
    )


def _locked(folder: Path) -> int:
    """Create the folder's lock, which is held before others can see it; returns its file descriptor."""
    unseen = folder / "new"
    lock = os.open(unseen, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    with suppress(OSError):  # a file system without locks: the folder is never swept
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unseen.rename(folder / LOCK)
    return lock


def sweep_deserted(place: Path) -> None:
    """Remove this user's folders in `place` whose owners have ended, as far as they can be removed."""
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            status = folder.lstat()  # does not follow symbolic links
            # whether this user has created the folder, and no other user could have written into it
            is_ours = status.st_uid == os.getuid() and status.st_mode == 0o40700
            if is_ours and _is_deserted(folder):
                _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder, but its lock only after Ray's folder, for without it a later sweep would not know it as ours.

    Processes of a lost Ray may write into it for a while after the program has left them.
    """
    shutil.rmtree(folder / OF_RAY, ignore_errors=True)
    if not (folder / OF_RAY).exists():
        shutil.rmtree(folder, ignore_errors=True)


def _is_deserted(folder: Path) -> bool:
    """True where no process holds the folder's lock; OSError where one does, or there is no lock."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(lock)
    return True
