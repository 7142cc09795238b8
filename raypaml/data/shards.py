"""Write a data set as plain WebDataset tars with index and vocabulary, and read tars back into an index.

    <out>/vocabulary.csv  <out>/<split>-000000.tar ...  <out>/<split>.arrow

A sample is `<key>.jpg` and `<key>.json`. The JSON holds class ids: `positive` and `negative` (observed labels) and,
where known, `truth` (all positives) and `boxes` (`[class id, x0, y0, x1, y1]` in pixels). An index is always made by
scanning the finished tar, so that every data set, ours or not, goes through the same door.
"""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raypaml.data.index import SCHEMA, write_index
from raypaml.data.tars import Scanned, scan
from raypaml.labels import Vocabulary

SPLITS = ("train", "validation", "test")

Box = tuple[str, float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One labelled image on its way into a shard."""

    key: str
    image: bytes
    """JPEG."""
    positive: tuple[str, ...]
    """Observed positive class ids."""
    negative: tuple[str, ...]
    """Observed negative class ids."""
    truth: tuple[str, ...] | None = None
    """All positive class ids, where the full labels are known; never reaches a partial-label loss."""
    boxes: tuple[Box, ...] = ()

    def members(self) -> dict[str, Any]:
        """The sample as WebDataset wants it."""
        labels: dict[str, Any] = {"positive": self.positive, "negative": self.negative}
        if self.truth is not None:
            labels["truth"] = self.truth
        if self.boxes:
            labels["boxes"] = self.boxes
        return {"__key__": self.key, "jpg": self.image, "json": json.dumps(labels).encode()}


def write_shard(path: Path, samples: Iterable[Sample]) -> list[dict[str, Any]]:
    """Write one tar, whole or not at all; same samples, same bytes.

    Returns:
        The place of every sample's image: key, offset, size, crc32.
    """
    import webdataset  # here, for it imports torch, which nothing else in this room needs

    places: list[dict[str, Any]] = []
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as writer:
            for sample in samples:
                place = {"offset": writer.tarstream.offset + tarfile.BLOCKSIZE, "size": len(sample.image)}
                places.append({"key": sample.key, **place, "crc32": zlib.crc32(sample.image)})
                writer.write(sample.members())  # the JPEG first, after a header of one block
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    return places


def write_split(out: Path, split: str, samples: Iterable[Sample], samples_per_shard: int) -> list[Path]:
    """Write `<split>-000000.tar`, ...; same samples, same bytes. Returns the shards."""
    shards: list[Path] = []
    left = iter(samples)
    while block := list(islice(left, samples_per_shard)):
        shards.append(out / f"{split}-{len(shards):06d}.tar")
        write_shard(shards[-1], block)
    return shards


def write_dataset(
    out: Path,
    splits: Mapping[str, Iterable[Sample]],
    class_ids: Sequence[str],
    names: Sequence[str],
    samples_per_shard: int = 1000,
) -> Vocabulary:
    """Write shards, vocabulary and indexes of a whole data set into the folder `out`, which must exist and be empty.

    Args:
        splits: samples by split name; `train` gives the vocabulary its counts.
        class_ids: the classes, in the order of the label columns.
        names: what a person calls them.
    """
    if any(out.iterdir()):
        raise ValueError(f"{out}: not empty; write a data set into a new folder")
    shards = {split: write_split(out, split, samples, samples_per_shard) for split, samples in splits.items()}
    return index_dataset(out, shards, class_ids, names)


def index_dataset(
    out: Path, shards: Mapping[str, Sequence[Path]], class_ids: Sequence[str] = (), names: Sequence[str] = ()
) -> Vocabulary:
    """Write vocabulary and indexes beside finished shards.

    Args:
        shards: the tars by split name, in order; they lie in `out`.
        class_ids, names: the classes; default: every class id that a training sample names, sorted.
    """
    scans = {split: [list(scan(path)) for path in paths] for split, paths in shards.items()}
    positives, negatives = _count_labels(scans["train"])
    if not class_ids:
        labels = (label for scanned in scans["train"] for _, label in scanned)
        named = {c for label in labels for name in ("positive", "negative", "truth") for c in label.get(name, ())}
        class_ids = names = sorted(named)
    vocabulary = Vocabulary(
        class_ids=tuple(class_ids),
        names=tuple(names),
        train_positives=np.array([positives[c] for c in class_ids], np.int64),
        train_negatives=np.array([negatives[c] for c in class_ids], np.int64),
    )
    vocabulary.write(out / "vocabulary.csv")
    for split, paths in shards.items():
        index_split(out, split, paths, scans[split], vocabulary)
    return vocabulary


def index_split(
    out: Path, split: str, shards: Sequence[Path], scans: Iterable[Iterable[Scanned]], vocabulary: Vocabulary
) -> None:
    """Write `<split>.arrow` from what `scan` found in each of its tars."""
    rows: list[dict[str, Any]] = []
    labels: list[dict[str, Any]] = []
    for number, (path, scanned) in enumerate(zip(shards, scans, strict=True)):
        for row, label in scanned:
            rows.append(row | {"shard": number} | label_columns(label, vocabulary, f"{path}: sample {row['key']}"))
            labels.append(label)
    repeated = [key for key, count in Counter(row["key"] for row in rows).items() if count > 1]
    if repeated:
        raise ValueError(f"{out}: {len(repeated)} keys occur twice in split {split}, such as {repeated[:3]}")
    write_index(
        out / f"{split}.arrow",
        pa.Table.from_pylist(rows, schema=SCHEMA),
        shards=[path.name for path in shards],
        shard_bytes=[path.stat().st_size for path in shards],
        vocabulary=vocabulary,
        has_truth=bool(labels) and all("truth" in label for label in labels),
    )


def label_columns(label: dict[str, Any], vocabulary: Vocabulary, where: str) -> dict[str, Any]:
    """One sample's JSON labels as columns of the index; ValueError, beginning with `where`, if they contradict."""
    both = set(label["positive"]) & set(label["negative"])
    if both:
        raise ValueError(f"{where}: classes {sorted(both)[:5]} labelled both positive and negative")
    try:
        column = vocabulary.index_of.__getitem__
        boxes = [(column(name), *corners) for name, *corners in label.get("boxes", ())]
        return {
            "positives": sorted(map(column, label["positive"])),
            "negatives": sorted(map(column, label["negative"])),
            "truth": sorted(map(column, label["truth"])) if "truth" in label else None,
            "boxes": [dict(zip(("class", "x0", "y0", "x1", "y1"), box, strict=True)) for box in boxes],
        }
    except KeyError as error:
        raise ValueError(f"{where}: class {error} is not among the {len(vocabulary)} of the vocabulary") from None


def _count_labels(scans: Iterable[Iterable[Scanned]]) -> tuple[Counter[str], Counter[str]]:
    positives, negatives = Counter[str](), Counter[str]()
    for scanned in scans:
        for _, label in scanned:
            positives.update(label["positive"])
            negatives.update(label["negative"])
    return positives, negatives
