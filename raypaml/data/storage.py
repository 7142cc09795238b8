"""Files anywhere: a path or an address (`s3://`, `gs://`) opened through `pyarrow.fs`, and retries of our own.

A filesystem is built inside each process, for its settings do not survive pickling (arrow #47348). Nothing is run: an
address such as `pipe:` is refused.
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
"""Read without credentials; others so with `s3://anonymous@bucket/...`."""
FIRST_WAIT = 0.1
LONGEST_WAIT = 20.0

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Location:
    """A folder or file somewhere: picklable, opened where it is used."""

    address: str
    """As the user gave it; an address keeps its `?options` at the end."""

    def __post_init__(self) -> None:
        scheme = re.match(r"([a-z][a-z0-9+.-]*):", self.address)
        if scheme and scheme[1] not in _SCHEMES:
            raise ValueError(
                f"{self.address}: cannot read {scheme[1]}: addresses; use a path or {', '.join(_SCHEMES)}:// "
                "(nothing is ever run through pipe:)"
            )

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> Location:
        base, mark, options = (self.address, "", "") if self.is_local else self.address.partition("?")
        return Location(f"{base.rstrip('/')}/{name}{mark}{options}")

    @property
    def is_local(self) -> bool:
        """Whether it is a path of this machine."""
        return "://" not in self.address or self.address.startswith("file://")

    def open(self) -> tuple[fs.FileSystem, str]:
        """The filesystem, built once per process, and the path within it."""
        base, mark, options = self.address.partition("?")
        if "://" not in base:
            return _local(), str(Path(self.address).absolute())
        scheme, _, path = base.partition("://")
        bucket, slash, rest = path.partition("/")
        name = bucket.rpartition("@")[2]
        if scheme == "s3" and bucket in PUBLIC_BUCKETS:
            bucket = f"anonymous@{bucket}"
        filesystem, root = _filesystem(f"{'gs' if scheme == 'gcs' else scheme}://{bucket}{slash}{mark}{options}")
        return filesystem, f"{name}{slash}{rest}" if scheme != "file" else f"{root}{rest}"

    def kind(self) -> str:
        """`folder`, `file` or `missing`; ValueError where the store does not answer or does not let us look."""
        filesystem, path = self.open()
        try:
            info = with_retries(lambda: filesystem.get_file_info(path), f"{self}")
        except OSError as error:
            raise ValueError(f"{self}: cannot be reached: {brief(error)}") from None
        return {fs.FileType.Directory: "folder", fs.FileType.File: "file"}.get(info.type, "missing")


@cache
def _local() -> fs.FileSystem:
    return fs.LocalFileSystem()


@cache
def _filesystem(root: str) -> tuple[fs.FileSystem, str]:
    try:
        filesystem, path = fs.FileSystem.from_uri(root)
    except (OSError, ValueError) as error:
        raise ValueError(f"{root}: not an address that can be opened: {brief(error)}") from None
    return filesystem, path


def read_file(location: Location) -> bytes:
    """The whole file; FileNotFoundError if there is none, IsADirectoryError if it is a folder."""
    filesystem, path = location.open()
    try:
        with filesystem.open_input_file(path) as file:
            return bytes(file.read(file.size()))  # of known size: one request less than up to the end
    except OSError as error:
        if str(error).endswith("is a directory"):  # pyarrow gives no errno
            raise IsADirectoryError(str(error)) from None
        raise


def with_retries(call: Callable[[], _Answer], what: str, *, patience: float = 60.0) -> _Answer:
    """Call until it succeeds, waiting ever longer (0.1 s, doubled, up to 20 s, with jitter), for `patience` seconds.

    A file that is not there, or not ours to read, is an answer: it is not asked for again.

    Raises:
        FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError: at once.
        OSError: what went wrong last, once patience has run out; the message names `what` and the attempts.
    """
    began, wait, attempts = time.monotonic(), FIRST_WAIT, 0
    while True:
        attempts += 1
        try:
            return call()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
            raise
        except OSError as error:
            if is_denied(error):
                raise PermissionError(brief(error)) from None
            if time.monotonic() - began + wait > patience:
                raise OSError(f"{what}: given up after {attempts} attempts: {brief(error)}") from None
        time.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2 * wait, LONGEST_WAIT)


def is_denied(error: OSError) -> bool:
    """Whether a store refused, by what pyarrow says of it."""
    return isinstance(error, PermissionError) or any(
        sign in str(error) for sign in ("ACCESS_DENIED", "AccessDenied", "HTTP status 403", "PERMISSION_DENIED")
    )


def brief(error: Exception) -> str:
    """An error on one line."""
    return " ".join((error.strerror or str(error) if isinstance(error, OSError) else str(error)).split())
