"""Checks shards against their index, and names every fault by shard, key and byte.

There are two independent passes. The first follows the index and reads every image where training would: it checks
size, CRC-32 and decoding. The second reads the tar as any WebDataset reader would: it checks structure, keys and
labels.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from raypaml.data.images import decode as decode_image
from raypaml.data.index import Index
from raypaml.data.index_table import BOX_SIDES
from raypaml.data.label_forms import LabelForm
from raypaml.data.shards import label_columns
from raypaml.data.tars import images_of, samples
from raypaml.labels import VOCABULARY, Vocabulary

LABEL_COLUMNS: tuple[Literal["positives", "negatives", "truth"], ...] = ("positives", "negatives", "truth")


def verify_shard(folder: Path, index: Index, shard: int, decode: bool = True) -> list[str]:
    """List the faults of one shard.

    Args:
        folder: the folder of the shards and of vocabulary.csv.
        index: the index of the split, which is cheap to pickle because another process maps the file again.
        shard: index of the shard in `index.shards`.
        decode: also decode every image, and compare its size with that of the split's first image.
    """
    path = folder / index.shards[shard]
    if not path.is_file():
        return [f"{path}: missing, the index says {index.shard_bytes[shard]:,} bytes"]
    actual, expected = path.stat().st_size, index.shard_bytes[shard]
    faults = [f"{path}: {actual:,} bytes, the index says {expected:,} bytes"] if actual != expected else []
    faults += _image_faults(path, index, shard, _shape(folder, index) if decode else None, decode=decode)
    return faults + list(_tar_faults(path, index, shard, Vocabulary.read(folder / VOCABULARY)))


def _shape(folder: Path, index: Index) -> tuple[int, ...] | None:
    """The shape [H, W, 3] of the split's first image, which all images must have.

    None if it cannot be read, which is reported when its own shard is verified.
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
    """The faults of the images at the places that the index gives."""
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
        decoded = decode_image(content).shape
    except ValueError as error:
        yield f"{where}: {error}"
        return
    if shape is not None and decoded != shape:
        yield f"{where}: is {decoded[:2]}, others {shape[:2]}"


def _tar_faults(path: Path, index: Index, shard: int, vocabulary: Vocabulary) -> Iterator[str]:
    """The faults of the tar's members, up to the first damage of its structure."""
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
        return  # the members after the damage cannot be read without the index
    for key in places.keys() - images:
        yield f"{path}: image {key!r} at byte {index.offset[places[key]]}: the tar has no image of it"


def _label_faults(
    where: str, form: LabelForm, content: bytes, index: Index, row: int, vocabulary: Vocabulary
) -> Iterator[str]:
    """The differences between the labels of a sample and those of the index."""
    try:
        columns = label_columns(form.read(content, where), vocabulary, where)
    except ValueError as error:
        yield str(error)
        return
    for name in LABEL_COLUMNS:
        differ = sorted(set(columns[name] or ()) ^ set(index.classes(name, row)))
        if differ:
            ids = [vocabulary.class_ids[column] for column in differ[:5]]
            yield f"{where}: {name} differ from the index in {len(differ)} classes, such as {ids}"
    boxes, indexed = (
        [(box["class"], *(np.float32(box[side]) for side in BOX_SIDES)) for box in boxes]
        for boxes in (columns["boxes"], index.boxes(row))
    )
    if boxes != indexed:
        yield f"{where}: boxes differ from the index: {len(boxes)} and {len(indexed)}"
