"""Opens paths and addresses (`s3://`, `gs://`) by `pyarrow.fs`, and repeats requests that fail.

Each process builds its own filesystem, because the settings of one do not survive pickling (arrow #47348). Addresses
that would execute a command, such as `pipe:`, are refused.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from pyarrow import fs

_SCHEMES = ("s3", "gs", "gcs", "file")
PUBLIC_BUCKETS = ("open-images-dataset",)
"""Buckets that are read without credentials; `s3://anonymous@bucket/...` reads any other bucket without them."""
FIRST_WAIT = 0.1
LONGEST_WAIT = 20.0
_DENIED = ("ACCESS_DENIED", "AccessDenied", "HTTP status 403", "PERMISSION_DENIED")

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Location:
    """The place of a folder or file; it can be pickled, and is opened in the process that uses it."""

    address: str
    """The path or address as the user gave it, with any `?options` at its end."""

    def __post_init__(self) -> None:
        scheme = re.match(r"([a-z][a-z0-9+.-]*):", self.address)
        if scheme and scheme[1] not in _SCHEMES:
            raise ValueError(
                f"{self.address}: cannot read {scheme[1]}: addresses; use a path or {', '.join(_SCHEMES)}:// "
                "(nothing is ever run through pipe:)"
            )
        where, mark, path = self.address.partition("?")[0].partition("://")
        if scheme and not mark:
            raise ValueError(f"{self.address}: an address has two slashes; give {scheme[1]}://BUCKET/FOLDER, or a path")
        if scheme and where != "file" and not path.partition("/")[0].rpartition("@")[2]:
            raise ValueError(f"{self.address}: names no bucket; give {where}://BUCKET/FOLDER")

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> Location:
        base, mark, options = (self.address, "", "") if self.is_local else self.address.partition("?")
        return Location(f"{base.rstrip('/')}/{name}{mark}{options}")

    @property
    def is_local(self) -> bool:
        """Whether it is a path on this machine."""
        return "://" not in self.address or self.address.startswith("file://")

    def open(self) -> tuple[fs.FileSystem, str]:
        """The filesystem, built once per process, and the path within it."""
        base, mark, options = self.address.partition("?")
        if "://" not in base:
            return fs.LocalFileSystem(), str(Path(self.address).absolute())
        scheme, _, path = base.partition("://")
        bucket, slash, rest = path.partition("/")
        name = bucket.rpartition("@")[2]
        if scheme == "s3" and bucket in PUBLIC_BUCKETS:
            bucket = f"anonymous@{bucket}"
        filesystem, root = _filesystem(f"{'gs' if scheme == 'gcs' else scheme}://{bucket}{slash}{mark}{options}")
        return filesystem, f"{name}{slash}{rest}" if scheme != "file" else f"{root}{rest}"

    def kind(self) -> str:
        """`folder`, `file` or `missing`. Raises ValueError where the store does not answer or denies access."""
        filesystem, path = self.open()
        try:
            info = with_retries(lambda: filesystem.get_file_info(path), f"{self}")
        except OSError as error:
            raise ValueError(f"{self}: cannot be reached: {brief(error)}") from None
        return {fs.FileType.Directory: "folder", fs.FileType.File: "file"}.get(info.type, "missing")


@cache
def _filesystem(root: str) -> tuple[fs.FileSystem, str]:
    try:
        filesystem, path = fs.FileSystem.from_uri(root)
    except (OSError, ValueError) as error:
        raise ValueError(f"{root}: not an address that can be opened: {brief(error)}") from None
    return filesystem, path


def read_file(location: Location, check: Callable[[int], None] = lambda _: None) -> bytes:
    """Read a whole file; `check` is told its size before, and may raise an error.

    Raises FileNotFoundError if there is none, IsADirectoryError if it is a folder.
    """
    filesystem, path = location.open()
    try:
        with filesystem.open_input_file(path) as file:
            size = file.size()
            check(size)
            return bytes(file.read(size))  # with the size, one request less than without
    except MemoryError:
        raise ValueError(f"{location}: {size:,} bytes, as its store says, are more than there is memory for") from None
    except OSError as error:
        if str(error).endswith("is a directory"):  # pyarrow gives no errno
            raise IsADirectoryError(str(error)) from None
        raise


def with_retries(call: Callable[[], _Answer], what: str, *, patience: float = 60.0) -> _Answer:
    """Call a function until it succeeds, for up to `patience` seconds.

    The waiting time between calls starts at 0.1 s and doubles up to 20 s, with jitter. An answer that a file does not
    exist, or that access is denied, is final.

    Args:
        call: the function.
        what: what it does, for the message.
        patience: seconds after which the last error is raised.

    Raises:
        FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError: at once.
        OSError: the last error, after `patience` seconds; the message has `what` and the number of attempts.
    """
    began, wait, attempts = time.monotonic(), FIRST_WAIT, 0
    while True:
        attempts += 1
        try:
            return call()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
            raise
        except OSError as error:  # that access was denied, pyarrow says only in the text
            if any(sign in str(error) for sign in _DENIED):
                raise PermissionError(brief(error)) from None
            if time.monotonic() - began + wait > patience:
                raise OSError(f"{what}: given up after {attempts} attempts: {brief(error)}") from None
        time.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2 * wait, LONGEST_WAIT)


def brief(error: Exception) -> str:
    """The message of an error on one line."""
    return " ".join((error.strerror or str(error) if isinstance(error, OSError) else str(error)).split())
