"""One process at a time writes into the folder of a run or a search: two would remove each other's checkpoints.

It is a lock of the system (`SharedLock`), held by the process that started the work and not by Ray's workers, so that a
run that lost some of them does not block itself; it ends with that process, also by kill -9. Reading needs no lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from raypaml.errors import RemediableError
from raypaml.files import made
from raypaml.runs.shared_lock import SharedLock, is_missing

LOCK_FILE = ".lock"
"""File in the folder, which stays there beside what is written; in it are the holder and since when it has it."""
RESTART_SECONDS = 60.0
"""Time for which a process that Ray started again waits for the one before, which Ray may still be ending."""
_POLL_SECONDS = 0.2


@contextmanager
def sole_writer(
    folder: Path, command: str, say: Callable[[str], None], patience: float = 0.0, *, flag: str = "--name"
) -> Iterator[None]:
    """Keep other processes from writing into a folder during the block.

    For a run in a store the folder is this machine's copy of it, so that other machines are not kept out.

    Args:
        folder: of the run or the search. It is made where it is missing, and removed again with what was made for it
            where the block leaves nothing in it, as for a run that is refused before it begins.
        command: what others read as the name of the holder, such as "raypaml train".
        say: is called with a line where the file system has no locks, which keeps nobody out.
        patience: seconds to wait for another process to end.
        flag: the flag that gives this process another folder.

    Raises:
        RemediableError: another process is writing there; the message says which, where and since when.
    """
    with made(folder, stays=False) as is_new:
        lock = SharedLock(folder / LOCK_FILE)
        deadline = time.monotonic() + patience
        name = f"{command}, since {datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}"
        while not _taken(lock, name, folder, say):
            if time.monotonic() >= deadline:
                raise RemediableError(
                    f"{folder}: is being written by {lock.holder()}; wait for it, end it, or give this one another "
                    f"{flag}"
                )
            time.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            lock.release(remove=is_new and list(folder.glob("*")) == [folder / LOCK_FILE])


def _taken(lock: SharedLock, name: str, folder: Path, say: Callable[[str], None]) -> bool:
    try:
        return lock.take(name)
    except FileNotFoundError:  # a process that was refused has just removed the folder that it had made
        folder.mkdir(parents=True, exist_ok=True)
        return lock.take(name)
    except OSError as error:
        if not is_missing(error):
            raise
        say(f"{folder}: its file system has no locks ({error.strerror}): start no other command that writes there")
        return True
