"""Read WebDataset tars member by member, and refuse what is not plain files named by keys."""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from raypaml.data.label_forms import OWN, LabelForm

KEY = re.compile(r"[0-9A-Za-z_-]+")
END_BYTES = 512
"""Zeros that end a tar, beyond the first block of them that its reader takes."""
JPEG_SUFFIXES = ("jpg", "jpeg")
PICKLED = ("pyd", "pickle", "pkl", "pth", "pt", "joblib")

Scanned = tuple[dict[str, Any], dict[str, Any]]
"""The place of a sample's image, and its labels."""
Member = tuple[str, str, int, bytes]
"""Key, suffix, offset and content."""


def scan(path: Path, form: LabelForm | None = None) -> Iterator[Scanned]:
    """Read one tar: per sample its place (key, offset, size, crc32 of the image) and its labels.

    Args:
        form: how the labels are written; default: raypaml's own form.

    Raises:
        ValueError: naming file and member or byte, for anything but whole samples of plain files: in raypaml's own form
            pairs KEY.jpg, KEY.json, in that of others one image and one file of labels each, and anything else beside.
    """
    form = form or LabelForm(OWN)
    if form.is_own:
        yield from _scan_pairs(path, form)
        return
    for key, found in groupby(members(path, directories=True), key=lambda member: member[0]):
        group = list(found)
        images = [member for member in group if member[1].lower() in JPEG_SUFFIXES]
        labels = [member for member in group if member[1] == form.suffix]
        if len(images) != 1 or len(labels) != 1:
            names = ", ".join(f"{key}.{suffix}" for _, suffix, _, _ in group)
            raise ValueError(f"{path}: found {names}; expected one {key}.jpg and one {key}.{form.suffix}")
        yield _place(images[0]), form.read(labels[0][3], f"{path}: {key}.{form.suffix} at byte {labels[0][2]}")


def _scan_pairs(path: Path, form: LabelForm) -> Iterator[Scanned]:
    image: Member | None = None
    for member in members(path):
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


def _place(image: Member) -> dict[str, Any]:
    key, _, offset, content = image
    return {"key": key, "offset": offset, "size": len(content), "crc32": zlib.crc32(content)}


def members(path: Path, *, directories: bool = False) -> Iterator[Member]:
    """Every member of a tar that is whole.

    Args:
        directories: a name may lead through directories; they become part of the key, joined by `__`.

    Raises:
        ValueError: naming file and byte or member, where the tar is damaged or cut short, or a member is not a file
            named by a key, or is pickled.
    """
    offset = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, suffix = _split_name(member.name, directories=directories)
                if not member.isreg() or member.issparse() or not KEY.fullmatch(key):
                    raise ValueError(f"{path}: member {member.name!r} is not a file named by a key {KEY.pattern}")
                offset = member.offset_data
                content = tar.extractfile(member).read()  # type: ignore[union-attr]  # a file member always opens
                if _is_pickled(suffix, content):
                    raise ValueError(f"{path}: member {member.name!r} is pickled, which could run anything; remove it")
                yield key, suffix, offset, content
                offset = tar.offset
            _check_end(path, tar.offset)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path}: damaged or truncated at byte {offset} ({error}); write the shard again") from None


def _split_name(name: str, *, directories: bool) -> tuple[str, str]:
    """Key and suffix: what WebDataset calls so, up to and after the first dot of the file's name."""
    if not directories:
        key, _, suffix = name.partition(".")
        return key, suffix
    folder, _, file = name.removeprefix("./").rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}/{stem}".lstrip("/").replace("/", "__") if not name.startswith("/") else name, suffix


def _is_pickled(suffix: str, content: bytes) -> bool:
    kind = suffix.lower().rpartition(".")[2]
    if kind != "npy":
        return kind in PICKLED
    try:
        np.load(io.BytesIO(content), allow_pickle=False)
    except ValueError:
        return True  # of objects, or no array at all
    return False


def _check_end(path: Path, offset: int) -> None:
    # tarfile takes a damaged header, or a missing end, for the end of the archive (cpython #120740)
    with path.open("rb") as file:
        file.seek(offset)
        rest = file.read()
    if len(rest) < END_BYTES or any(rest):
        raise ValueError(f"{path}: damaged or truncated at byte {offset}; write the shard again")
