"""Pictures to predict: files, folders and shards, here or in a store, found by name and decoded to one size."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import simplejpeg
from PIL import Image
from pyarrow import fs

from raypaml.data.colours import WHITE, check_background
from raypaml.data.hidden_files import is_hidden
from raypaml.data.image_files import IMAGE_SUFFIXES, opened, shrink_early
from raypaml.data.images import Pixels, decode
from raypaml.data.storage import Location, brief, read_file, with_retries
from raypaml.preparation.image_form import upright_rgb

SHARD = ".tar"
_PATIENCE = 60.0
_TURNING = (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")
"""How the segments of a JPEG begin that may say that it is not upright: EXIF and XMP."""


@dataclass(frozen=True)
class Picture:
    """Where a picture lies: a file, or some bytes of a shard."""

    name: str
    """As predictions call it."""
    address: str
    offset: int = 0
    size: int = -1
    """-1: the whole file."""
    background: str = WHITE
    """Colour under its transparent pixels, or `none` (`data.colours`)."""


def fit_to_size(picture: Image.Image, height: int, width: int, background: str = WHITE) -> Pixels:
    """[height, width, 3]: upright, RGB, resized with Pillow's antialiased bilinear filter, aspect not kept."""
    upright = upright_rgb(picture, background)
    if upright.size != (width, height):
        upright = upright.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(upright)


def read_picture(picture: Picture, height: int, width: int) -> Pixels:
    """The pixels of a picture at the model's size.

    Raises:
        ValueError: not there, not readable, or not a picture; the message is the reason.
    """
    content = _content(picture)
    if _as_trained(content, height, width):
        return decode(content)
    with opened(content) as image:
        shrink_early(image, width, height)
        return fit_to_size(image, height, width, picture.background)


def _as_trained(content: bytes, height: int, width: int) -> bool:
    """An upright JPEG of the model's size, which training would read as it is."""
    if not simplejpeg.is_jpeg(content) or any(sign in content for sign in _TURNING):
        return False
    try:
        return bool(simplejpeg.decode_jpeg_header(content)[:2] == (height, width))
    except ValueError:
        return False


def _content(picture: Picture) -> bytes:
    where = Location(picture.address)
    try:
        return with_retries(lambda: _read(picture, where), picture.name, patience=_PATIENCE)
    except FileNotFoundError:
        raise ValueError("no such file") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {brief(error)}") from None


def _read(picture: Picture, where: Location) -> bytes:
    if picture.size < 0:
        return Path(where.address).read_bytes() if "://" not in where.address else read_file(where)
    filesystem, path = where.open()
    with filesystem.open_input_file(path) as file:
        return bytes(file.read_at(picture.size, picture.offset))


def find_pictures(
    given: Sequence[str], background: str = WHITE, passed_over: Counter[str] | None = None
) -> Iterator[Picture]:
    """The pictures of files, folders (all below them, by name) and shards, in the order given.

    Args:
        background: of each of them.
        passed_over: takes how many files of a folder are not named as pictures, by suffix.

    Raises:
        ValueError: a path that is not there, a store that does not answer, a damaged shard; no background.
    """
    check_background(background)
    for one in given:
        where = Location(one)
        kind = where.kind()
        if kind == "missing":
            raise ValueError(f"{one}: no such file or folder")
        for file in _files(where) if kind == "folder" else [one]:
            if _plain(file).lower().endswith(SHARD):
                yield from (replace(picture, background=background) for picture in _members(file))
            elif kind == "file" or _plain(file).lower().endswith(IMAGE_SUFFIXES):
                yield replace(_picture(file, file), background=background)
            elif passed_over is not None:
                passed_over[PurePosixPath(_plain(file)).suffix.lower() or "no suffix"] += 1


def _picture(name: str, address: str, offset: int = 0, size: int = -1) -> Picture:
    """Named as it was given, without a store's options; at an address that means the same in other processes."""
    return Picture(_plain(name), address if "://" in address else str(Path(address).absolute()), offset, size)


def _plain(address: str) -> str:
    """Without a store's options; a local path may hold a question mark."""
    return address.partition("?")[0] if "://" in address else address


def _files(folder: Location) -> list[str]:
    """Addresses of all files below a folder, sorted; hidden ones left out."""
    filesystem, path = folder.open()
    found = with_retries(lambda: filesystem.get_file_info(fs.FileSelector(path, recursive=True)), f"{folder}")
    files = sorted(info.path for info in found if info.type == fs.FileType.File)
    inner = [file.removeprefix(path).lstrip("/") for file in files]
    return [str(folder / name) for name in inner if not is_hidden(name)]


def _members(address: str) -> list[Picture]:
    """The pictures in a shard, by one scan of its headers."""
    where = Location(address)
    try:
        return with_retries(lambda: _scan(where, address), address, patience=_PATIENCE)
    except tarfile.TarError as error:
        raise ValueError(f"{address}: not a readable tar ({error})") from None
    except OSError as error:
        raise ValueError(f"{address}: cannot be read: {brief(error)}") from None


def _scan(where: Location, address: str) -> list[Picture]:
    filesystem, path = where.open()
    with filesystem.open_input_file(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        return [
            _picture(str(where / member.name), address, member.offset_data, member.size)
            for member in tar
            if member.isfile() and member.name.lower().endswith(IMAGE_SUFFIXES)
        ]
