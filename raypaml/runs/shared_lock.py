"""A lock among processes of all machines that see a folder: held by one, whose name the others can read.

It is `flock`, which the system releases when the holder dies, on NFS too (Linux, since 2.6.12). The file stays: whoever
removed it might leave two holders, one of each file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path

_UNKNOWN = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system says that has no locks."""


class SharedLock:
    """A lock file; its folder exists."""

    def __init__(self, path: Path):
        self._path = path
        self._file = -1

    def take(self, name: str) -> bool:
        """Try to hold the lock under a name; whether it is held now.

        Raises:
            OSError: the file cannot be written, or its file system has no locks: see `is_missing`.
        """
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)  # NFS gives this lock to writers only
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except OSError:
            os.close(file)
            raise
        os.ftruncate(file, 0)
        os.write(file, f"{name} ({socket.gethostname()}, process {os.getpid()})".encode())
        self._file = file
        return True

    def holder(self) -> str:
        """Who holds it, where another does."""
        return self._path.read_text(errors="replace") or "another process"

    def release(self) -> None:
        """Let it go, if it is held."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def is_missing(error: OSError) -> bool:
    """Whether the file system has no locks."""
    return error.errno in _UNKNOWN
