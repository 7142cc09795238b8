"""Reads images from a folder or an object store, many files at once, or from archives, as streams."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Literal

from raypaml.data.image_files import check_bytes
from raypaml.data.storage import Location, brief, read_file, with_retries
from raypaml.data.tar_members import check_end, content_of, members_of, open_tar
from raypaml.preparation.image_form import Converted
from raypaml.preparation.in_order import in_order
from raypaml.preparation.split_names import folder_names

Fate = Literal["written", "not_found", "denied", "undecodable"]
"""What became of a requested image."""

KeyAndFile = tuple[str, str]
"""The key of a requested image, and its file below the folder of images."""
Convert = Callable[[bytes], Converted]

_PATIENCE = 600.0
"""Seconds for which a failing store is tried again before the work stops; finished shards stay."""
LOCAL_READERS = 4
"""Threads that read from a local disk; more of them would only take time from the core that converts."""
DIGITS = "0123456789abcdef"
STREAM_BYTES = 8 * 2**20
"""Bytes of an archive that are read at a time."""


@dataclass(frozen=True)
class Fetched:
    """A requested image: its bytes, or the reason why there are none."""

    key: str
    content: bytes = b""
    fate: Fate = "written"
    detail: str = ""
    size: int = 0
    """Bytes of the source file that were read."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Width and height relative to those of the upright source image."""


@dataclass(frozen=True)
class Store:
    """Images as single files in a folder or under an address."""

    root: Location
    concurrency: int = 32
    """Images that each worker fetches at once."""
    split_folder: str = ""
    """Folder below `root` in which a file is looked for that does not lie at its listed path below `root`."""

    def fetch(self, images: Iterable[KeyAndFile], convert: Convert) -> Iterator[Fetched]:
        """Yields the images in the order requested: threads read a bounded number ahead, this thread converts them.

        A worker has one core, on which several converting threads would only compete for caches and memory.

        Raises:
            ValueError: the store failed for longer than _PATIENCE.
        """
        threads = min(self.concurrency, LOCAL_READERS) if self.root.is_local else self.concurrency
        for image in in_order(lambda image: self._fetch(*image), images, threads):
            yield converted(image.key, image.content, convert) if image.fate == "written" else image

    def _fetch(self, key: str, name: str) -> Fetched:
        file = self.root / name
        try:
            content = with_retries(lambda: read_file(file, check_bytes), f"{file}", patience=_PATIENCE)
        except ValueError as error:
            return Fetched(key, fate="undecodable", detail=str(error))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            if self.split_folder:
                return Store(self.root / self.split_folder)._fetch(key, name)
            return Fetched(key, fate="not_found")
        except PermissionError as error:
            return Fetched(key, fate="denied", detail=brief(error))
        except OSError as error:
            raise ValueError(f"{brief(error)}; finished shards stay, run the same command again") from None
        return Fetched(key, content)


def converted(key: str, content: bytes, convert: Convert) -> Fetched:
    """Converts an image that was read; one that cannot be decoded gets that fate."""
    try:
        image = convert(content)
    except ValueError as error:
        return Fetched(key, fate="undecodable", detail=str(error), size=len(content))
    return Fetched(key, image.content, size=len(content), scale=image.scale)


@dataclass(frozen=True)
class Archives:
    """Archives of images: `{split}.tar.gz`, or `{split}_{0..f}.tar.gz` by the first digit of the images' keys."""

    files: tuple[Location, ...]

    def prefixes(self, split: str) -> Iterator[tuple[Location, str]]:
        """Yields each archive with the prefix that the keys of its images have."""
        for file in self.files:
            stem = PurePosixPath(file.address.partition("?")[0]).name.partition(".")[0]
            yield file, stem.removeprefix(split).removeprefix("_")


def archive_members(archive: Location) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yields the key of every file in an archive, in one pass, with a function that reads the file's content.

    Raises:
        ValueError: the archive is truncated or damaged, or cannot be read; the message names it.
    """
    with _named(archive):
        raw = io.BufferedReader(_Remote(archive), STREAM_BYTES)
        with gzip.GzipFile(fileobj=raw) as stream, open_tar("r|", stream) as tar:
            for member in members_of(tar):
                if member.isfile():
                    yield PurePosixPath(member.name).name.partition(".")[0], partial(_content, archive, tar, member)
            check_end(tar.fileobj, tar.offset)


def _content(archive: Location, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    with _named(archive):  # called by the consumer, outside the block that guards the iteration
        return content_of(tar, member)


@contextmanager
def _named(archive: Location) -> Iterator[None]:
    """Turns the errors of reading an archive into a ValueError that names it."""
    try:
        yield
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{archive}: damaged or truncated archive ({error}); download it again") from None
    except OSError as error:
        raise ValueError(f"{archive}: cannot be read: {brief(error)}") from None


def fetch_from_archives(source: Archives, images: Sequence[KeyAndFile], convert: Convert) -> Iterator[Fetched]:
    """Returns a few images by key, in the order requested; reads the archives until it has all of them."""
    fetched: dict[str, Fetched] = {}
    wanted = {key for key, _ in images}
    for key, content in chain.from_iterable(map(archive_members, source.files)):
        if key in wanted and key not in fetched:
            fetched[key] = converted(key, content(), convert)
        if len(fetched) == len(wanted):
            break
    return (fetched.get(key, Fetched(key, fate="not_found")) for key, _ in images)


class _Remote(io.RawIOBase):
    """A file in a folder or a store as a raw stream; a read that fails is tried again."""

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
    """Finds out how the images of a split lie at `images`.

    Args:
        images: folder or address of the images.
        split: `train`, `validation` or `test`.
        concurrency: images that are fetched at once, where they are single files.
        listed: whether the labels name a file for each image. If so, it is `images/FILE` or, with `by_split`,
            `images/SPLIT/FILE` in the folder that is named after the split (`val`, `Train`, ...); no other place is
            searched. If not, the images are in `{split}.tar.gz` or `{split}_*.tar.gz`, or are `{split}/KEY.jpg` or
            `KEY.jpg`.
        by_split: whether the labels name the split of each image. If raypaml cuts the splits, folders named after
            splits mean nothing, and each may hold a picture of the same name.

    Raises:
        ValueError: there is no such folder, it cannot be read, or two folders are named after the split.
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
    present = tuple(archive for archive in archives if archive.kind() == "file")
    if present:
        return Archives(present)
    inner = root / split
    return Store(inner if inner.kind() == "folder" else root, concurrency)


def _folder_of(root: Location, split: str) -> str:
    """Returns the name of the folder that is named after a split; empty where there is none."""
    there = [name for name in folder_names(split) if (root / name).kind() == "folder"]
    path = Path(root.open()[1])
    for other in there[1:]:
        if not (root.is_local and (path / there[0]).samefile(path / other)):  # as Val and val may be
            raise ValueError(
                f"images={root}: {there[0]} and {other} may both hold the images of split {split!r}; name the folder "
                "in the labels (FOLDER/FILE), or keep one of them there"
            )
    return there[0] if there else ""
