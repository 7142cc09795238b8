"""Finds the pictures in files, folders and shards, on disk or in an object store, and decodes them to one size."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import simplejpeg
from PIL import Image
from pyarrow import fs

from raypaml.data.colours import WHITE, check_background
from raypaml.data.hidden_files import PassedOver, is_hidden
from raypaml.data.image_files import IMAGE_SUFFIXES, check_bytes, opened, shrink_early
from raypaml.data.images import Pixels, decode
from raypaml.data.storage import Location, brief, read_file, with_retries
from raypaml.data.tar_members import members_of, open_tar
from raypaml.preparation.file_tree import files_below, reason_of
from raypaml.preparation.image_form import upright_rgb

SHARD = ".tar"
_SUFFIXES = (*IMAGE_SUFFIXES, SHARD)
_PATIENCE = 60.0
_TURNING = (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")
"""The beginnings of EXIF and XMP segments, in which a JPEG may say that it is not upright."""


@dataclass(frozen=True)
class Picture:
    """The place of a picture: a file, or some bytes of a shard."""

    name: str
    """The name that predictions use."""
    address: str
    """Path or address of the file or shard."""
    offset: int = 0
    """Byte of the file at which the picture begins."""
    size: int = -1
    """Size in bytes; -1 for the whole file."""
    background: str = WHITE
    """Colour under transparent pixels, or `none` (`data.colours`)."""


def fit_to_size(picture: Image.Image, height: int, width: int, background: str = WHITE) -> Pixels:
    """The pixels [height, width, 3] of a picture: upright, RGB, resized with Pillow's antialiased bilinear filter.

    The aspect is not kept. `background` is the colour under transparent pixels.
    """
    upright = upright_rgb(picture, background)
    if upright.size != (width, height):
        upright = upright.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(upright)


def read_picture(picture: Picture, height: int, width: int) -> Pixels:
    """The pixels of a picture at the model's size.

    Raises:
        ValueError: there is no such file, or it cannot be read as a picture; the message is the reason alone.
    """
    content = _content(picture)
    if _as_trained(content, height, width):
        return decode(content)
    with opened(content) as image:
        shrink_early(image, width, height)
        return fit_to_size(image, height, width, picture.background)


def read_original(picture: Picture) -> Image.Image:
    """The picture at its own size, upright and in RGB; ValueError as `read_picture`."""
    with opened(_content(picture)) as image:
        return upright_rgb(image, picture.background)


def _as_trained(content: bytes, height: int, width: int) -> bool:
    """Whether a file is an upright JPEG of the model's size, which is decoded as in training."""
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
        return read_file(where, check_bytes)
    check_bytes(picture.size)
    filesystem, path = where.open()
    with filesystem.open_input_file(path) as file:
        return bytes(file.read_at(picture.size, picture.offset))


def find_pictures(
    given: Sequence[str], background: str = WHITE, passed_over: PassedOver | None = None
) -> Iterator[Picture]:
    """The pictures in files, folders and shards, in the order in which these are given.

    A folder contributes all files below it, sorted by name. Links in it are followed once (`preparation.file_tree`).
    Hidden files are left out, in shards too.

    Args:
        given: paths or addresses.
        background: colour under transparent pixels, or `none`.
        passed_over: collects the names of the files in folders and shards that are left out, by suffix or by reason.

    Raises:
        ValueError: a path that does not exist, a store that does not answer, a damaged shard, or no such colour.
    """
    check_background(background)
    for one in given:
        where = Location(one)
        kind = where.kind()
        if kind == "missing":
            raise ValueError(f"{one}: no such file or folder")
        left_out = PassedOver(list) if passed_over is None else passed_over
        for file in _files(where, left_out) if kind == "folder" else [one]:
            if _plain(file).lower().endswith(SHARD):
                yield from _members(file, background, left_out)
            else:
                yield _picture(file, file, background)


def _picture(name: str, address: str, background: str, offset: int = 0, size: int = -1) -> Picture:
    """A picture whose name is as it was given, without the options of a store; its path is made absolute, so that it
    means the same in other processes.
    """
    where = address if "://" in address else str(Path(address).absolute())
    return Picture(_plain(name), where, offset, size, background)


def _plain(address: str) -> str:
    """The address without the options of a store; a local path keeps its question marks."""
    return address.partition("?")[0] if "://" in address else address


def _files(folder: Location, passed_over: PassedOver) -> list[str]:
    """Addresses of the pictures and shards below a folder, sorted."""
    reasons = _listed(folder)
    for name, reason in sorted(reasons.items()):
        if reason:
            suffix = PurePosixPath(name).suffix.lower() or "no suffix"
            passed_over[suffix if reason == "not_an_image" else reason.replace("_", " ")].append(name)
    return [str(folder / name) for name in sorted(reasons) if not reasons[name]]


def _listed(folder: Location) -> dict[str, str]:
    """The files below a folder, by their paths in it, each with the reason why it is left out, or "" for a picture."""
    filesystem, path = folder.open()
    if isinstance(filesystem, fs.LocalFileSystem):
        return files_below(Path(path), _SUFFIXES)[0]
    entries = with_retries(lambda: filesystem.get_file_info(fs.FileSelector(path, recursive=True)), f"{folder}")
    names = [entry.path.removeprefix(path).lstrip("/") for entry in entries if entry.type == fs.FileType.File]
    return {name: reason_of(name, _SUFFIXES) for name in names}


def _members(address: str, background: str, passed_over: PassedOver) -> Iterator[Picture]:
    """The pictures in a shard, found by one scan of its headers."""
    where = Location(address)
    try:
        members = with_retries(lambda: _scan(where), address, patience=_PATIENCE)
    except tarfile.TarError as error:
        raise ValueError(f"{address}: not a readable tar ({error})") from None
    except OSError as error:
        raise ValueError(f"{address}: cannot be read: {brief(error)}") from None
    for member in members:
        if is_hidden(member.name):
            passed_over["hidden"].append(f"{_plain(address)}/{member.name}")
        else:
            yield _picture(str(where / member.name), address, background, member.offset_data, member.size)


def _scan(where: Location) -> list[tarfile.TarInfo]:
    filesystem, path = where.open()
    with filesystem.open_input_file(path) as file, open_tar("r:", file) as tar:
        files = (member for member in members_of(tar) if member.isfile())
        return [member for member in files if member.name.lower().endswith(IMAGE_SUFFIXES)]
