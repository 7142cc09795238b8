"""Where images come from: files of a folder or an object store, fetched many at once, or archives read as streams."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar

from raypaml.data.storage import Location, brief, read_file, with_retries
from raypaml.data.tars import END_BYTES
from raypaml.preparation.image_form import Converted
from raypaml.preparation.split_names import folder_names

Item = TypeVar("Item")
Fate = Literal["written", "not_found", "denied", "undecodable"]
"""What became of an image that was asked for."""

Asked = tuple[str, str]
"""The key of an image, and its file below the folder of images."""
Convert = Callable[[bytes], Converted]

_PATIENCE = 600.0
"""Seconds that a store may be out of order before the work stops; what is finished stays."""
LOCAL_READERS = 4
"""Threads that read from a disk: more of them only cost the core that converts."""
_AHEAD = 8
"""Results, by thread, that may wait for one before them, which is tried again."""
DIGITS = "0123456789abcdef"
STREAM_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Fetched:
    """An image that was asked for: its bytes, or why there are none."""

    key: str
    content: bytes = b""
    fate: Fate = "written"
    detail: str = ""
    size: int = 0
    """Bytes read for it."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Its pixels per pixel of the source image, in x and y."""


@dataclass(frozen=True)
class Store:
    """Images as single files in a folder or under an address."""

    root: Location
    concurrency: int = 32
    """Images asked for at once, by each worker."""
    split_folder: str = ""
    """Folder below `root` where a file is looked for that is not there by the path it was listed with."""

    def fetch(self, images: Iterable[Asked], convert: Convert) -> Iterator[Fetched]:
        """The images in the order asked for: read by threads, a bounded number ahead, and converted here, one by one.

        A worker is one core: threads that convert beside each other on it only take each other's caches and memory.

        Raises:
            ValueError: the store was out of order for longer than _PATIENCE.
        """
        threads = min(self.concurrency, LOCAL_READERS) if self.root.is_local else self.concurrency
        for image in in_order(lambda asked: self._fetch(*asked), images, threads):
            yield converted(image.key, image.content, convert) if image.fate == "written" else image

    def _fetch(self, key: str, name: str) -> Fetched:
        file = self.root / name
        try:
            content = with_retries(lambda: read_file(file), f"{file}", patience=_PATIENCE)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            if self.split_folder:
                return Store(self.root / self.split_folder)._fetch(key, name)
            return Fetched(key, fate="not_found")
        except PermissionError as error:
            return Fetched(key, fate="denied", detail=brief(error))
        except OSError as error:
            raise ValueError(f"{brief(error)}; finished shards stay, run the same command again") from None
        return Fetched(key, content)


def in_order(function: Callable[[Item], Fetched], items: Iterable[Item], threads: int) -> Iterator[Fetched]:
    """Map by threads, a bounded number ahead, the results in order."""
    pending: deque[Future[Fetched]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                if len(pending) >= _AHEAD * threads:
                    yield pending.popleft().result()
                pending.append(pool.submit(function, item))
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def converted(key: str, content: bytes, convert: Convert) -> Fetched:
    """An image that was read, converted if it can be."""
    try:
        image = convert(content)
    except ValueError as error:
        return Fetched(key, fate="undecodable", detail=str(error), size=len(content))
    return Fetched(key, image.content, size=len(content), scale=image.scale)


@dataclass(frozen=True)
class Archives:
    """Images in `{split}.tar.gz`, or `{split}_{0..f}.tar.gz` by the first digits of their keys."""

    files: tuple[Location, ...]

    def prefixes(self, split: str) -> Iterator[tuple[Location, str]]:
        """Each archive, and what the keys of its images begin with."""
        for file in self.files:
            stem = PurePosixPath(file.address.partition("?")[0]).name.partition(".")[0]
            yield file, stem.removeprefix(split).removeprefix("_")


def archive_members(archive: Location) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Key and content of every file in an archive, as it streams by; content that is not asked for is skipped.

    Raises:
        ValueError: naming the archive, where it is truncated, damaged, or cannot be read.
    """
    with _named(archive):
        raw = io.BufferedReader(_Remote(archive), STREAM_BYTES)
        with gzip.GzipFile(fileobj=raw) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                if member.isfile():
                    yield PurePosixPath(member.name).name.partition(".")[0], partial(_content, archive, tar, member)
            _check_end(tar)


def _content(archive: Location, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    with _named(archive):  # called by who iterates, so outside of what guards the iteration
        return tar.extractfile(member).read()  # type: ignore[union-attr]  # a file member always opens


@contextmanager
def _named(archive: Location) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{archive}: damaged or truncated archive ({error}); download it again") from None
    except OSError as error:
        raise ValueError(f"{archive}: cannot be read: {brief(error)}") from None


def fetch_from_archives(source: Archives, images: Sequence[Asked], convert: Convert) -> Iterator[Fetched]:
    """A few images by key, in the order asked for; reads the archives until all are found."""
    found: dict[str, Fetched] = {}
    wanted = {key for key, _ in images}
    for key, content in chain.from_iterable(map(archive_members, source.files)):
        if key in wanted and key not in found:
            found[key] = converted(key, content(), convert)
        if len(found) == len(wanted):
            break
    return (found.get(key, Fetched(key, fate="not_found")) for key, _ in images)


def _check_end(tar: tarfile.TarFile) -> None:
    # tarfile takes a damaged header, or a missing end, for the end of the archive (cpython #120740)
    length, zeros = 0, True
    while block := tar.fileobj.read(STREAM_BYTES):
        length, zeros = length + len(block), zeros and not any(block)
    if length < END_BYTES or not zeros:
        raise tarfile.ReadError(f"no proper end at byte {tar.offset}")


class _Remote(io.RawIOBase):
    """A file anywhere as a raw stream; each read is tried again where it fails."""

    def __init__(self, location: Location):
        filesystem, path = location.open()
        self._name, self._place = str(location), 0
        self._file = with_retries(lambda: filesystem.open_input_file(path), self._name)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        read = with_retries(lambda: self._file.read_at(len(buffer), self._place), self._name, patience=_PATIENCE)
        buffer[: len(read)] = read
        self._place += len(read)
        return len(read)


def find_images(
    images: str, split: str, concurrency: int = 32, *, listed: bool = False, by_split: bool = True
) -> Store | Archives:
    """The images of a split at `images`.

    Args:
        images: folder or address.
        split: `train`, `validation` or `test`.
        concurrency: of a store.
        listed: the labels name a file for each image. That file is `images/FILE`, or with `by_split`
            `images/SPLIT/FILE` in the folder that is named for the split (`val`, `Train`, ...); nothing else there is
            looked at. Without, they are `{split}.tar.gz` or `{split}_*.tar.gz`, `{split}/KEY.jpg`, or `KEY.jpg`.
        by_split: the labels say the split. A split that was cut says nothing of folders, each of which may have a
            picture of the same name.

    Raises:
        ValueError: no such folder, one that cannot be read, or two that are named for the split.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency={concurrency}: must be at least 1")
    root = Location(images)
    if root.kind() != "folder":
        what = "a file, not a folder" if root.kind() == "file" else "no such folder"
        of = "" if listed else f", or of {split}*.tar.gz"
        raise ValueError(f"images={images}: {what}; give the folder of the images{of}")
    if listed:
        return Store(root, concurrency, _folder_of(root, split) if by_split else "")
    archives = [root / name for name in (f"{split}.tar.gz", *(f"{split}_{digit}.tar.gz" for digit in DIGITS))]
    found = tuple(archive for archive in archives if archive.kind() == "file")
    if found:
        return Archives(found)
    inner = root / split
    return Store(inner if inner.kind() == "folder" else root, concurrency)


def _folder_of(root: Location, split: str) -> str:
    """The folder that is named for a split, without what it lies in; empty: there is none."""
    there = [name for name in folder_names(split) if (root / name).kind() == "folder"]
    path = Path(root.open()[1])
    for other in there[1:]:
        if not (root.is_local and (path / there[0]).samefile(path / other)):  # as Val and val may be
            raise ValueError(
                f"images={root}: {there[0]} and {other} may both hold the images of split {split!r}; name the folder "
                "in the labels (FOLDER/FILE), or keep one of them there"
            )
    return there[0] if there else ""
