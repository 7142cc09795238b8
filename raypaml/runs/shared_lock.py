"""A lock among the processes of all machines that see a folder: one holds it, and the others can read its name.

It is `flock`, which the system releases when the holder dies, also on NFS (Linux, since 2.6.12). Only the holder may
remove the lock file, and a process that then locks the removed file takes the one of that name instead: otherwise two
processes could hold locks on two files of the same name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path

_UNKNOWN = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Error numbers of file systems that have no locks."""


class SharedLock:
    """A lock by a file in an existing folder."""

    def __init__(self, path: Path):
        self._path = path
        self._file = -1

    def take(self, name: str) -> bool:
        """Try to take the lock, without waiting; `name` is what others read. Returns whether it is held now.

        Raises:
            OSError: the file cannot be written, or its file system has no locks (`is_missing`).
        """
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)  # NFS locks only files opened for writing
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except OSError:
            os.close(file)
            raise
        if not os.fstat(file).st_nlink:  # its holder has removed it
            os.close(file)
            return self.take(name)
        os.ftruncate(file, 0)
        os.write(file, f"{name} ({socket.gethostname()}, process {os.getpid()})".encode())
        self._file = file
        return True

    def holder(self) -> str:
        """The name of the holder, where that is another process."""
        try:
            return self._path.read_text(errors="replace") or "another process"
        except FileNotFoundError:  # it has ended, and removed the file
            return "another process"

    def release(self, *, remove: bool = False) -> None:
        """Release the lock, if it is held, after removing its file where that is asked for."""
        if remove:
            self._path.unlink(missing_ok=True)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def is_missing(error: OSError) -> bool:
    """Whether an error says that the file system has no locks."""
    return error.errno in _UNKNOWN
