"""The errors of raypaml's Python interface, which never raises SystemExit.

A request that cannot be carried out raises `UserError`, a failing callback `CallbackError`. What the operating system
refuses stays an OSError, and a failure that no request caused, such as a lost worker, is a RuntimeError. A run that a
signal stops raises nothing; a second signal ends it at once with `StoppedAtOnce`.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A request cannot be carried out; the message says what was asked, the limit, and the remedy."""


class RemediableError(ValueError):
    """Another try succeeds after the message's remedy, such as room on a disk; the settings need not be others."""


class CallbackError(UserError):
    """A callback raised an error; the message names the callback, its method, the epoch and step, and that error."""


class HalvedError(RuntimeError):
    """Memory ran out, and `memory.json` now asks for half as many images at once; another try may succeed."""


class StoppedAtOnce(KeyboardInterrupt):
    """A second Ctrl-C or SIGTERM has ended a run at once; its progress since the last checkpoint is lost."""

    def __init__(self, number: int):
        super().__init__(f"stopped at once by {signal.Signals(number).name}")
        self.signal = number


@contextmanager
def told_as_user_errors() -> Iterator[None]:
    """Turn a ValueError of the block into a UserError with the same message; also usable as a decorator."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


_REMEDIES = {
    errno.ENOSPC: "make room on the disk, or name a place on another one",
    errno.EDQUOT: "make room, or name a place on another disk",
    errno.EFBIG: "name a place on another disk, or raise the limit (ulimit -f)",
    errno.EROFS: "name a place that can be written to",
    errno.EISDIR: "give the name of a file",
    errno.ENOTDIR: "a file or a broken link is in the place of a folder; give another path",
    errno.EEXIST: "remove it, or give another name",
    errno.ENOTEMPTY: "give a new or empty folder",
    errno.ENAMETOOLONG: "give a name of at most 200 bytes, and a path of at most 4,000",
    errno.ELOOP: "a link leads back to itself; remove it, or give another path",
    errno.EACCES: "ask for the permission, or name another place",
    errno.EPERM: "ask for the permission, or name another place",
    errno.ENOENT: "check the path",
    errno.EMFILE: "raise the limit, such as by ulimit -n 4096",
}
"""What to do about errors of the operating system, by their number."""
_PASSING = {errno.ENOENT, errno.EMFILE}
_HIDDEN = re.compile(r"(^|/)\.([^/]+?)(\.[0-9a-f]{8})?\.unfinished(?=/|$)")
_SHOWN_PATH = 200
"""Characters of a path that are shown; of a longer one the beginning and the end are."""


def is_lasting(error: BaseException) -> bool:
    """Whether the operating system refused what it will refuse again until somebody changes something."""
    return isinstance(error, OSError) and error.errno in _REMEDIES.keys() - _PASSING


def told_refusal(error: OSError) -> str:
    """One line about an error of the operating system: the path, what is wrong with it, and the remedy."""
    number = error.errno or 0
    said = os.strerror(number) if number in _REMEDIES else " ".join((error.strerror or str(error)).split())
    if number in (errno.EACCES, errno.EPERM):
        said += f" for the user with id {os.getuid()}"
    path = error.filename2 or error.filename
    where = f"{_shown_path(os.fsdecode(path))}: " if isinstance(path, str | bytes) else ""
    return f"{where}{said}" + (f"; {_REMEDIES[number]}" if number in _REMEDIES else "")


def _shown_path(path: str) -> str:
    """A path under its final name, and shortened where it is long."""
    final = _HIDDEN.sub(r"\1\2", path)
    half = _SHOWN_PATH // 2
    return final if len(final) <= _SHOWN_PATH else f"{final[:half]}...{final[-half:]} ({len(final):,} characters)"
