"""Writes the pictures of a generated release into its archives, with the oddities that the real ones have."""

from __future__ import annotations

import tarfile
from collections import Counter
from gzip import GzipFile

import numpy as np

from raypaml.preparation.openimages.image_ids import Ids, hex_id
from tools.full_size.labels import Block
from tools.full_size.scenes import SIDE, Bytes, draw, encoded

NOT_ON_STORE = {"train": 0.07, "validation": 0.0, "test": 0.0}
CUT_OFF, GREY, SMALLER = 1e-4, 0.005, 0.05
SMALLEST = 16
_AT_ONCE = 2048
"""Pictures that are drawn at a time."""


def write_pictures(archive: GzipFile, block: Block, ids: Ids, split: str, rng: np.random.Generator) -> Counter[str]:
    """Writes the pictures of the labelled images that the store has; returns how many of which kind."""
    there = np.flatnonzero(rng.random(len(ids)) >= NOT_ON_STORE[split])
    counts = Counter({"pictures": len(there), "not on the store": len(ids) - len(there)})
    for start in range(0, len(there), _AT_ONCE):
        rows = there[start : start + _AT_ONCE]
        chance, sides = rng.random(len(rows)), rng.integers(SMALLEST, SIDE, len(rows))
        form = np.select([chance < CUT_OFF, chance < GREY, chance < SMALLER], [0, 1, 2], 3)
        for image, picture, side, kind in zip(
            ids[rows], draw(block.objects[rows], rng), sides.tolist(), form.tolist(), strict=True
        ):
            _add(archive, f"{hex_id(image)}.jpg", _content(picture, side, kind))
        counts.update({name: int((form == k).sum()) for k, name in enumerate(("cut off", "grey", "smaller"))})
    return counts


def _content(picture: Bytes, side: int, kind: int) -> bytes:
    """Returns the JPEG: 0 cut off, 1 grey, 2 smaller, 3 as it is."""
    if kind == 1:
        return encoded(np.ascontiguousarray(picture[..., 1:2]))
    if kind == 2:
        places = np.arange(side) * SIDE // side
        return encoded(np.ascontiguousarray(picture[places][:, places]))
    content = encoded(picture)
    return content[: len(content) // 2] if kind == 0 else content


def _add(archive: GzipFile, name: str, content: bytes) -> None:
    """Adds a file to a tar that is written as a stream."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.write(member.tobuf() + content + bytes(-len(content) % tarfile.BLOCKSIZE))
