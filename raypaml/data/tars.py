"""Reads WebDataset tars member by member, and refuses members that are not plain files named by keys."""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TypedDict

from raypaml.bounded import npy_header
from raypaml.data.hidden_files import PassedOver, is_hidden
from raypaml.data.label_forms import OWN, LabelForm, SampleLabels
from raypaml.data.tar_members import SparseError, check_end, content_of, members_of, open_tar
from raypaml.files import START_BYTES, came_instead

JPEG_SUFFIXES = ("jpg", "jpeg")
OTHER_SUFFIXES = ("png", "webp", "jfif", "avif", "jp2", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm")
"""Suffixes of images that are not JPEGs, or do not have a JPEG's suffix."""
PICKLED = ("pyd", "pickle", "pkl", "pth", "pt", "joblib")
_META = re.compile(r"__[^/]*__($|/)")
"""Names that WebDataset reserves for members that are not samples, such as `__index__`."""


class ImagePlace(TypedDict):
    """The place of a sample's image in its tar: its byte offset, size and CRC-32."""

    key: str
    offset: int
    size: int
    crc32: int


Scanned = tuple[ImagePlace, SampleLabels]
"""The place of a sample's image, and its labels."""
Member = tuple[str, str, int, bytes]
"""Key, suffix, offset and content of a member of a tar."""


def scan(path: Path, form: LabelForm | None = None, passed_over: PassedOver | None = None) -> Iterator[Scanned]:
    """Read the samples of one tar.

    Args:
        path: the tar.
        form: how the labels are written; None: in raypaml's own form.
        passed_over: takes the names of members that WebDataset ignores too, in tars of other forms.

    Raises:
        ValueError: the tar has anything but whole samples of plain files. In raypaml's own form a sample is a pair of
            KEY.jpg and KEY.json; in other forms it has one image, one file of labels, and any other members. The
            message names the file and the member or byte.
    """
    form = form or LabelForm(OWN)
    if form.is_own:
        yield from _scan_pairs(path, form)
        return
    for key, group in samples(path, form, passed_over):
        images = images_of(group, form)
        labels = [member for member in group if member[1].lower() == form.suffix.lower()]
        if len(images) != 1 or len(labels) != 1:
            names = ", ".join(f"{key}.{suffix}" for _, suffix, _, _ in group)
            raise ValueError(
                f"{path}: found {names}; expected one {key}.{form.image_suffix or 'jpg'} and one {key}.{form.suffix} "
                "(--image-ext EXT and --labels EXT... say which members they are; --dotted-keys, that keys have dots)"
            )
        yield _place(images[0]), form.read(labels[0][3], f"{path}: {key}.{labels[0][1]} at byte {labels[0][2]}")


def samples(path: Path, form: LabelForm, passed_over: PassedOver | None = None) -> Iterator[tuple[str, list[Member]]]:
    """The key and the members of each sample of a tar: consecutive members that have the same key, as in WebDataset."""
    for key, group in groupby(members(path, form, passed_over), key=lambda member: member[0]):
        yield key, list(group)


def images_of(group: Iterable[Member], form: LabelForm) -> list[Member]:
    """The members of a sample that may be its image: those of the form's suffix, or JPEGs, or any other image."""
    for suffixes in ((form.image_suffix.lower(),) if form.image_suffix else JPEG_SUFFIXES, OTHER_SUFFIXES):
        images = [member for member in group if member[1].lower() in suffixes]
        if images or form.image_suffix or form.is_own:
            break
    return images


def _scan_pairs(path: Path, form: LabelForm) -> Iterator[Scanned]:
    image: Member | None = None
    for member in members(path, form):
        key, suffix, _, content = member
        if suffix == "jpg" and image is None:
            image = member
        elif suffix == "json" and image is not None and image[0] == key:
            yield _place(image), form.read(content, f"{path}: {key}.json")
            image = None
        else:
            after = f" after {image[0]}.jpg" if image else ""
            raise ValueError(f"{path}: found {key}.{suffix}{after}; expected pairs KEY.jpg, KEY.json")
    if image is not None:
        raise ValueError(f"{path}: {image[0]}.jpg has no {image[0]}.json; write the shard again")


def _place(image: Member) -> ImagePlace:
    key, _, offset, content = image
    return ImagePlace(key=key, offset=offset, size=len(content), crc32=zlib.crc32(content))


def members(path: Path, form: LabelForm, passed_over: PassedOver | None = None) -> Iterator[Member]:
    """The members of a tar.

    In tars that raypaml did not write, names may have folders, which become a part of the key, joined by `__`. Members
    that WebDataset ignores are ignored here too: folders, hidden files, names without an extension, and names such as
    `__index__`.

    Args:
        path: the tar.
        form: how its samples are written.
        passed_over: takes the names of the ignored members.

    Raises:
        ValueError: the tar is damaged or cut short, or a member is not a file named by a key, or is pickled. The
            message names the file and the byte or member.
    """
    offset = 0
    try:
        with path.open("rb") as file, open_tar("r:", file) as tar:
            for member in members_of(tar):
                reason = "" if form.is_own else _passed_over(member)
                if reason:
                    if passed_over is not None:
                        passed_over[reason].append(f"{path.name}: {member.name}")
                    continue
                key, suffix = member.name.partition(".")[::2] if form.is_own else key_and_suffix(member.name, form)
                if not member.isreg() or not form.is_key(key):
                    raise ValueError(f"{path}: member {member.name!r} is not a file named by a key{form.key_rule}")
                offset = member.offset_data
                content = content_of(tar, member)
                if _is_pickled(suffix, content):
                    raise ValueError(f"{path}: member {member.name!r} is pickled, which could run anything; remove it")
                yield key, suffix, offset, content
                offset = tar.offset
            file.seek(tar.offset)
            check_end(file, tar.offset)
    except SparseError as error:
        raise ValueError(f"{path}: {error}") from None
    except (tarfile.TarError, EOFError) as error:
        _refuse_other_file(path)
        raise ValueError(f"{path}: damaged or truncated at byte {offset} ({error}); write the shard again") from None


def _passed_over(member: tarfile.TarInfo) -> str:
    """Why a member is ignored; empty if it belongs to a sample or must be refused."""
    parts = [part for part in member.name.split("/") if part not in ("", ".", "..")]
    if member.isdir():
        return "folder"
    if is_hidden(member.name):
        return "hidden"
    if _META.match(member.name.removeprefix("./")):
        return "of WebDataset itself"
    return "" if parts and "." in parts[-1] else "without an extension"


def key_and_suffix(name: str, form: LabelForm) -> tuple[str, str]:
    """Split the name of a member into key and suffix, at the first dot of the file's name as WebDataset does.

    Names are split as `LabelForm.dotted_keys` says if keys have dots. The key is empty for a path that leads out of the
    tar.
    """
    *folders, file = [part for part in name.split("/") if part not in ("", ".")]
    stem, _, suffix = file.partition(".")
    if form.dotted_keys:
        known = [s for s in (form.image_suffix, form.suffix) if s and file.lower().endswith(f".{s.lower()}")]
        suffix = max(known, key=len) if known else file.rpartition(".")[2]
        stem = file[: -len(suffix) - 1]
    outside = name.startswith("/") or ".." in folders
    return "" if outside or not stem else "__".join([*folders, stem]), suffix


def _refuse_other_file(path: Path) -> None:
    with path.open("rb") as file:
        instead = came_instead(file.read(START_BYTES))
    if instead:
        is_packed = instead.endswith("archive")
        remedy = "shards are read by offset: decompress it first" if is_packed else "copy or write the shard again"
        raise ValueError(f"{path}: no tar but {instead}; {remedy}") from None


def _is_pickled(suffix: str, content: bytes) -> bool:
    kind = suffix.lower().rpartition(".")[2]
    if kind != "npy":
        return kind in PICKLED
    try:
        return npy_header(io.BytesIO(content)).dtype.hasobject
    except ValueError:
        return True  # not an array
