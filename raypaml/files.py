"""Writes files and folders whole or not at all: under a hidden name in the same folder first, then renamed.

The hidden name is `.NAME.unfinished`. A process that is killed leaves such a file behind, which the next process that
writes the same file overwrites. Where several processes may write the same file at the same time (`shared`), each uses
its own hidden name, `.NAME.TOKEN.unfinished`, and `sweep` removes those that killed processes left.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import pwd
import secrets
import shlex
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

Place = str | os.PathLike[str]
"""The path of a file or a folder, as Python programs give it."""
_ABANDONED_SECONDS = 3600.0
"""A file that was not written to for this many seconds was left by a killed process."""
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
"""The number of first bytes of a file that `came_instead` needs."""


def as_texts(given: Place | Iterable[Place]) -> list[str]:
    """One path or name, or several, as a list of texts, so that callers may give a single one without a list."""
    several = [given] if isinstance(given, str | os.PathLike) else given
    return [os.fspath(one) if isinstance(one, os.PathLike) else str(one) for one in several]


def came_instead(start: bytes) -> str:
    """What a file is instead of data, such as a web page or an archive, by its first bytes; empty: none of these."""
    if not start.strip(b"\0"):
        return "nothing but zeros" if start else "0 bytes"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((what for sign, what in _INSTEAD if text.startswith(sign)), "")


@contextmanager
def whole(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Give a path to write to in the block; at the end of the block the file is renamed to `path`.

    Readers see the old file or the new one, never a part. If the block raises, the old file stays and the new one is
    removed. After a power failure a renamed file may be empty, so a marker that vouches for other files must only be
    written after a `sync` of each of them.

    Args:
        path: the final name, in an existing folder. A file of this name is replaced.
        shared: whether other processes, of this or another machine, may be writing the same file; the last one stays.

    Raises:
        OSError: there is a folder of this name, which is said before the block begins; or writing fails.
    """
    unfinished = _unfinished(path, shared=shared)
    if path.is_dir():
        raise _refused(errno.EISDIR, path)
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException as error:
        with suppress(OSError):  # the first error is the one to see
            unfinished.unlink()
        _name(error, path)
        raise


@contextmanager
def whole_folder(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill in the block; at the end of the block it is renamed to `path`. Creates its parents.

    Args:
        path: the final name; a folder of this name must be empty.
        shared: whether other processes may be writing the same folder with the same content; the first one stays.

    Raises:
        OSError: there is a file or a filled folder of this name already, and it is not `shared`, which is said before
            the block begins; or writing fails.
    """
    unfinished = _unfinished(path, shared=shared)
    if not shared and path.is_dir() and any(path.iterdir()):
        raise _refused(errno.ENOTEMPTY, path)
    if not shared and not path.is_dir() and os.path.lexists(path):
        raise _refused(errno.EEXIST, path)
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
    with made(path.parent):
        try:
            unfinished.mkdir()
            yield unfinished
            try:
                unfinished.replace(path)
            except OSError:
                if not (shared and path.is_dir()):
                    raise
        except BaseException as error:
            _name(error, path)
            raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def made(folder: Path, *, stays: bool = True) -> Iterator[bool]:
    """Make a folder and its parents for a block, which gets whether the folder is new.

    If the block raises, or where they are not to stay, those that are new and empty are removed at its end.
    """
    new = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:  # which it is, but no folder
            raise _refused(errno.ENOTDIR, Path(error.filename)) from None
        yield bool(new)
    except BaseException:
        stays = False
        raise
    finally:
        for one in [] if stays else new:
            with suppress(OSError):  # it holds something by now
                one.rmdir()


def _refused(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))


def _name(error: BaseException, path: Path) -> None:
    """Add the path to an error of the operating system that does not say which file it is about, as of a full disk."""
    if isinstance(error, OSError) and error.errno and error.filename is None:
        error.filename = str(path)


def _unfinished(path: Path, *, shared: bool) -> Path:
    # a random token and not the process's number, which processes of two machines or containers may share
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished" if shared else f".{path.name}.unfinished")


def sweep(folder: Path, name: str = "*", *, shared: bool = False) -> None:
    """Remove the unfinished files and folders that killed processes left in a folder.

    Args:
        folder: the folder, which need not exist.
        name: a pattern for the final names.
        shared: whether others may be writing there now; then only those not written to for an hour are removed.
    """
    for path in folder.glob(f".{name}.unfinished"):
        with suppress(FileNotFoundError):  # another process sweeps too, or has finished
            if shared and time.time() - path.stat().st_mtime < _ABANDONED_SECONDS:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def check_readable(path: Path) -> None:
    """Raise PermissionError, saying whose file or folder it is and the remedy, where this user may not read it.

    Readers call it when reading has failed, before they say that a file is damaged or missing.
    """
    places = [*reversed(path.absolute().parents), path.absolute()]
    with suppress(FileNotFoundError, NotADirectoryError):
        for place in places:
            wanted = (os.R_OK if place == places[-1] else 0) | (os.X_OK if place.is_dir() else 0)
            if not os.access(place, wanted, effective_ids=os.access in os.supports_effective_ids):
                raise PermissionError(_unreadable_text(path, place, place.stat()))


def _unreadable_text(path: Path, place: Path, status: os.stat_result) -> str:
    me, owner = _user(os.geteuid()), _user(status.st_uid)
    where = "it" if place == path.absolute() else str(place)
    return (
        f"{path}: is there, but {me} may not read it: {where} belongs to {owner} and has mode "
        f"{stat.S_IMODE(status.st_mode):04o}; {owner} can allow it with chmod -R a+rX {shlex.quote(str(place))}"
    )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # as in a container
        return f"the user with id {number}"


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_digest(path: Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, content: str | bytes, *, shared: bool = False) -> None:
    """Write a file, text as UTF-8, whole or not at all; `shared` as in `whole`."""
    with whole(path, shared=shared) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: object, *, indent: int = 2, ensure_ascii: bool = True) -> None:
    """Write an indented JSON file, whole or not at all."""
    write_whole(path, json.dumps(content, indent=indent, ensure_ascii=ensure_ascii) + "\n")


def number_or_null(value: float) -> float | None:
    """The number as JSON has it: None, written as null, for NaN and the infinities."""
    return float(value) if math.isfinite(value) else None


def finite_json(content: object) -> object:
    """Content of a JSON file with `number_or_null` of every float in it; tuples become lists."""
    if isinstance(content, dict):
        return {key: finite_json(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite_json(value) for value in content]
    return number_or_null(content) if isinstance(content, float) else content


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a hard link to the file if it is a tar and the file system allows it, else a copy of it.

    Tars are replaced and never changed in place; other files may be edited, so they are always copied. A target of the
    same size stays as it is.
    """
    if target.is_file() and target.stat().st_size == source.stat().st_size:
        return
    if source.suffix == ".tar":
        with suppress(OSError):
            os.link(source, target)
            return
    with whole(target) as unfinished:
        shutil.copy2(source, unfinished)


def user_cache() -> Path:
    """Raypaml's folder in the user's cache: in XDG_CACHE_HOME, or in ~/.cache where that is unset or empty.

    Raises:
        ValueError: neither is known, as for a user of a container that its /etc/passwd does not have.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raypaml"
    except RuntimeError as error:
        raise ValueError(
            f"the user with id {os.getuid()} has no home folder to keep data in: set XDG_CACHE_HOME to a folder "
            "that may be written to"
        ) from error


def kept_in(folder: Path, instead: str = "set XDG_CACHE_HOME") -> Path:
    """A folder in which this user can keep data, created where it is missing.

    Args:
        folder: the folder, such as one in `user_cache`.
        instead: what names another folder in its place, in the imperative.

    Raises:
        ValueError: it cannot be created or written to; the message says what to do instead.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{folder}: cannot be written to ({reason}); {instead} to a folder that can") from None
    return folder


def share(name: str) -> Path:
    """The folder `tune` of search spaces or `clusters` of cluster files, in the installed package or the checkout."""
    package = Path(__file__).parent
    installed = package / "share" / name
    return installed if installed.is_dir() else package.parent / name
