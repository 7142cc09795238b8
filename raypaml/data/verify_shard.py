"""Check shards against their index: every fault named by shard, key and byte.

Two passes that know nothing of each other. One follows the index and reads every image where training would: size,
CRC-32, decoding. The other walks the tar as any WebDataset reader would: structure, keys, and the labels of each JSON.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from raypaml.data.images import decode as decode_image
from raypaml.data.index import BOX_SIDES, Index
from raypaml.data.label_forms import LabelForm
from raypaml.data.shards import label_columns
from raypaml.data.tars import images_of, samples
from raypaml.labels import Vocabulary

LABEL_COLUMNS = ("positives", "negatives", "truth")


def verify_shard(folder: Path, index: Index, shard: int, decode: bool = True) -> list[str]:
    """What is wrong with one shard; empty if nothing is.

    Args:
        folder: of the shards and of vocabulary.csv.
        index: of the split; small when pickled, for it is mapped again.
        shard: number in `index.shards`.
        decode: also decode every image, and compare its size with that of the split's first image.
    """
    path = folder / index.shards[shard]
    if not path.is_file():
        return [f"{path}: missing, the index says {index.shard_bytes[shard]:,} bytes"]
    found, expected = path.stat().st_size, index.shard_bytes[shard]
    faults = [f"{path}: {found:,} bytes, the index says {expected:,} bytes"] if found != expected else []
    faults += _image_faults(path, index, shard, _shape(folder, index) if decode else None, decode=decode)
    return faults + list(_tar_faults(path, index, shard, Vocabulary.read(folder / "vocabulary.csv")))


def _shape(folder: Path, index: Index) -> tuple[int, ...] | None:
    """The shape [H, W, 3] of the split's first image, which all others must have; None if it cannot be read.

    Its own shard's verification reports that.
    """
    path = folder / index.shards[int(index.shard[0])]
    try:
        with path.open("rb") as file:
            file.seek(int(index.offset[0]))
            return decode_image(file.read(int(index.size[0]))).shape
    except (OSError, ValueError):
        return None


def _image_faults(
    path: Path, index: Index, shard: int, shape: tuple[int, ...] | None, *, decode: bool
) -> Iterator[str]:
    """Every image where the index says it is."""
    rows = index.rows_of_shard(shard)
    with path.open("rb") as file:
        for row, key in zip(rows, index.keys(rows), strict=True):
            offset, size = int(index.offset[row]), int(index.size[row])
            file.seek(offset)
            content = file.read(size)
            where = f"{path}: image {key!r} at byte {offset}"
            if len(content) < size:
                yield f"{where}: cut short, {len(content):,} of {size:,} bytes are there"
            elif zlib.crc32(content) != index.crc32[row]:
                yield f"{where}: does not match its CRC-32"
            elif decode:
                yield from _decoding_fault(where, content, shape)


def _decoding_fault(where: str, content: bytes, shape: tuple[int, ...] | None) -> Iterator[str]:
    try:
        found = decode_image(content).shape
    except ValueError as error:
        yield f"{where}: {error}"
        return
    if shape is not None and found != shape:
        yield f"{where}: is {found[:2]}, others {shape[:2]}"


def _tar_faults(path: Path, index: Index, shard: int, vocabulary: Vocabulary) -> Iterator[str]:
    """The tar as its members tell it, up to the first place where its structure breaks."""
    rows = index.rows_of_shard(shard)
    places = dict(zip(index.keys(rows), rows.tolist(), strict=True))
    images: set[str] = set()
    form = LabelForm.from_index(index.tar_form, vocabulary.class_ids)
    try:
        for key, group in samples(path, form):
            if key not in places:
                yield f"{path}: {key}.{group[0][1]} at byte {group[0][2]}: the index has no such key in this shard"
                continue
            row = places[key]
            for _, suffix, offset, content in images_of(group, form):
                if key in images or (offset, len(content)) != (index.offset[row], index.size[row]):
                    where = f"{path}: {key}.{suffix} at byte {offset}"
                    yield f"{where}, {len(content)} bytes: the index says byte {index.offset[row]}, {index.size[row]}"
                images.add(key)
            for _, suffix, offset, content in group:
                if suffix.lower() == form.suffix.lower():
                    where = f"{path}: {key}.{suffix} at byte {offset}"
                    yield from _label_faults(where, form, content, index, row, vocabulary)
    except ValueError as error:
        yield str(error)
        return  # what follows the break is only known through the index
    for key in places.keys() - images:
        yield f"{path}: image {key!r} at byte {index.offset[places[key]]}: the tar has no image of it"


def _label_faults(
    where: str, form: LabelForm, content: bytes, index: Index, row: int, vocabulary: Vocabulary
) -> Iterator[str]:
    """The labels of a sample against those of the index."""
    try:
        columns: dict[str, Any] = label_columns(form.read(content, where), vocabulary, where)
    except ValueError as error:
        yield str(error)
        return
    for name in LABEL_COLUMNS:
        differ = sorted(set(columns[name] or ()) ^ set(index.classes(name, row)))
        if differ:
            ids = [vocabulary.class_ids[column] for column in differ[:5]]
            yield f"{where}: {name} differ from the index in {len(differ)} classes, such as {ids}"
    boxes, indexed = (
        [(b["class"], *(np.float32(b[c]) for c in BOX_SIDES)) for b in found]
        for found in (columns["boxes"], index.boxes(row))
    )
    if boxes != indexed:
        yield f"{where}: boxes differ from the index: {len(boxes)} and {len(indexed)}"
