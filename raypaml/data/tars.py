"""Read WebDataset tars member by member, and refuse what is not plain files named by keys."""

from __future__ import annotations

import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEY = re.compile(r"[0-9A-Za-z_-]+")
END_BYTES = 512
"""Zeros that end a tar, beyond the first block of them that its reader takes."""

Scanned = tuple[dict[str, Any], dict[str, Any]]
"""The place of a sample's image, and its labels."""


def scan(path: Path) -> Iterator[Scanned]:
    """Read one tar: per sample its place (key, offset, size, crc32 of the image) and its JSON labels.

    Raises:
        ValueError: naming file and member or byte, for anything but whole pairs KEY.jpg, KEY.json of plain files.
    """
    image: dict[str, Any] | None = None
    for key, suffix, offset, content in members(path):
        if suffix == "jpg" and image is None:
            image = {"key": key, "offset": offset, "size": len(content), "crc32": zlib.crc32(content)}
        elif suffix == "json" and image is not None and image["key"] == key:
            yield image, parse_labels(content, f"{path}: {key}.json")
            image = None
        else:
            after = f" after {image['key']}.jpg" if image else ""
            raise ValueError(f"{path}: found {key}.{suffix}{after}; expected pairs KEY.jpg, KEY.json")
    if image is not None:
        raise ValueError(f"{path}: {image['key']}.jpg has no {image['key']}.json; write the shard again")


def members(path: Path) -> Iterator[tuple[str, str, int, bytes]]:
    """Key, suffix, offset and content of every member of a tar that is whole.

    Raises:
        ValueError: naming file and byte or member, where the tar is damaged or cut short, or a member is not a file
            named by a key.
    """
    offset = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                if not member.isreg() or member.issparse() or not KEY.fullmatch(key):
                    raise ValueError(f"{path}: member {member.name!r} is not a file named by a key {KEY.pattern}")
                offset = member.offset_data
                content = tar.extractfile(member).read()  # type: ignore[union-attr]  # a file member always opens
                yield key, suffix, offset, content
                offset = tar.offset
            _check_end(path, tar.offset)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path}: damaged or truncated at byte {offset} ({error}); write the shard again") from None


def _check_end(path: Path, offset: int) -> None:
    # tarfile takes a damaged header, or a missing end, for the end of the archive (cpython #120740)
    with path.open("rb") as file:
        file.seek(offset)
        rest = file.read()
    if len(rest) < END_BYTES or any(rest):
        raise ValueError(f"{path}: damaged or truncated at byte {offset}; write the shard again")


def parse_labels(content: bytes, where: str) -> dict[str, Any]:
    """A JSON of raypaml's own form; ValueError, beginning with `where`, if it is not."""
    try:
        labels = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    lists = (
        (labels.get(name, []) for name in ("positive", "negative", "truth", "boxes"))
        if isinstance(labels, dict)
        else ()
    )
    if not {"positive", "negative"} <= set(labels or ()) or not all(isinstance(found, list) for found in lists):
        raise ValueError(f"{where}: expected an object with the lists 'positive' and 'negative'")
    return dict(labels)
