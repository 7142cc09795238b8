"""A folder for a private Ray: ours alone, short enough for its sockets, and swept when its owner was killed."""

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
"""Held locked by the process that owns the folder: the kernel lets go of it when that process is gone, however it
ended, and no other process can be taken for it."""

LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Bytes of the path of a Unix socket, without the zero at its end (sun_path of sys/un.h)."""
OF_RAY = "r"
"""Ray's own folder within: Ray lets everybody write into the one that it is given."""
INSIDE = f"/{OF_RAY}/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
"""The longest path that Ray makes, with the largest process id of Linux."""
RANDOM = 8
"""Letters that tempfile appends."""


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder that only this user may enter, with a name that nobody can foretell; removed at the end.

    Raises:
        ValueError: no place is short enough and may be written.
    """
    places = _places()
    for place in places:
        sweep_deserted(place)
    folder, lock = _made(places)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _places() -> list[Path]:
    """Where it may lie: the user's temporary folder, that of the machine, the user's run-time folder."""
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
    """Hold the folder's lock, which nobody sees before it is held; its file descriptor."""
    unseen = folder / "new"
    lock = os.open(unseen, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    with suppress(OSError):  # no locks on that file system: nobody else gets one either, so it is never swept
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unseen.rename(folder / LOCK)
    return lock


def sweep_deserted(place: Path) -> None:
    """Remove the folders of this user in `place` whose owners are gone; others are left, and what cannot be removed."""
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if _is_ours(folder) and _is_deserted(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    """Whether this user made the folder and nobody else could have put anything into it."""
    status = folder.lstat()  # of a link to somewhere else it says that it is a link
    return status.st_uid == os.getuid() and status.st_mode == 0o40700


def _is_deserted(folder: Path) -> bool:
    """Whether the folder has a lock that nobody holds. OSError where it has none, or it cannot be asked for."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(lock)
    return True
