"""Write a data set as plain WebDataset tars with index and vocabulary, and read tars back into an index.

    <out>/vocabulary.csv  <out>/<split>-000000.tar ...  <out>/<split>.arrow

A sample is `<key>.jpg` and `<key>.json`. The JSON holds class ids: `positive` and `negative` (observed labels) and,
where known, `truth` (all positives) and boxes in pixels; `label_forms.flat_json` says how. An index is always made by
scanning the finished tar, so that every data set, ours or not, goes through the same door.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypaml.data.hidden_files import PassedOver
from raypaml.data.index import BOX_SIDES, SCHEMA, write_index
from raypaml.data.label_forms import OWN, LabelForm, flat_json
from raypaml.data.tars import Scanned, scan
from raypaml.files import whole
from raypaml.labels import Vocabulary

SPLITS = ("train", "validation", "test")

_PACKED = pa.schema(
    [
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int32()),
        ("crc32", pa.uint32()),
        ("labels", pa.string()),
    ]
)

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

    def members(self, *, flat: bool = True) -> dict[str, Any]:
        """The sample as WebDataset wants it; `flat` as in `write_shard`."""
        labels: dict[str, Any] = {"positive": self.positive, "negative": self.negative}
        if self.truth is not None:
            labels["truth"] = self.truth
        if self.boxes:
            labels["boxes"] = self.boxes
        content = flat_json(labels) if flat else json.dumps(labels).encode()
        return {"__key__": self.key, "jpg": self.image, "json": content}


def write_shard(path: Path, samples: Iterable[Sample], *, flat: bool = True) -> list[dict[str, Any]]:
    """Write one tar, whole or not at all; same samples, same bytes.

    Args:
        flat: labels as `flat_json`; else as before, with boxes as lists of lists and `truth` only where known.

    Returns:
        The place of every sample's image: key, offset, size, crc32.
    """
    import webdataset  # here, for it imports torch, which nothing else in this room needs

    places: list[dict[str, Any]] = []
    with (
        whole(path, shared=True) as unfinished,  # a task that is thought lost may be at work on it still
        unfinished.open("wb") as file,
        webdataset.TarWriter(file, encoder=False, mtime=0) as writer,
    ):
        for sample in samples:
            place = {"offset": writer.tarstream.offset + tarfile.BLOCKSIZE, "size": len(sample.image)}
            places.append({"key": sample.key, **place, "crc32": zlib.crc32(sample.image)})
            writer.write(sample.members(flat=flat))  # the JPEG first, after a header of one block
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
    out: Path,
    shards: Mapping[str, Sequence[Path]],
    class_ids: Sequence[str] = (),
    names: Sequence[str] = (),
    labels: str = OWN,
    *,
    image_suffix: str = "",
    dotted_keys: bool = False,
    passed_over: PassedOver | None = None,
) -> Vocabulary:
    """Write vocabulary and indexes beside finished shards.

    Args:
        shards: the tars by split name, in order; they lie in `out`.
        class_ids, names: the classes; default: every class id that a training sample names, sorted.
        labels, image_suffix, dotted_keys: how samples are written (`data.label_forms`).
        passed_over: takes members that are no part of a sample.
    """
    form = LabelForm(labels, tuple(class_ids), image_suffix, dotted_keys)
    scans = {split: [_pack(scan(path, form, passed_over)) for path in paths] for split, paths in shards.items()}
    positives, negatives, others = _count_labels(label for packed in scans["train"] for _, label in _unpack(packed))
    if not class_ids:
        class_ids = names = sorted(positives.keys() | negatives.keys() | others)
    vocabulary = Vocabulary(
        class_ids=tuple(class_ids),
        names=tuple(names),
        train_positives=np.array([positives[c] for c in class_ids], np.int64),
        train_negatives=np.array([negatives[c] for c in class_ids], np.int64),
    )
    vocabulary.write(out / "vocabulary.csv")
    for split, paths in shards.items():
        index_split(out, split, paths, map(_unpack, scans[split]), vocabulary, form)
    return vocabulary


def _pack(scanned: Iterable[Scanned]) -> pa.Table:
    """One shard's samples, a hundred bytes each and not the thousands of Python's objects."""
    return pa.Table.from_pylist([place | {"labels": json.dumps(label)} for place, label in scanned], schema=_PACKED)


def _unpack(packed: pa.Table) -> Iterator[Scanned]:
    for row in packed.to_pylist():
        label = json.loads(row.pop("labels"))
        yield row, label


def index_split(
    out: Path,
    split: str,
    shards: Sequence[Path],
    scans: Iterable[Iterable[Scanned]],
    vocabulary: Vocabulary,
    form: LabelForm | None = None,
) -> None:
    """Write `<split>.arrow` from what `scan` found in each of its tars."""
    tables, has_truth = [SCHEMA.empty_table()], True
    for number, (path, scanned) in enumerate(zip(shards, scans, strict=True)):
        rows: list[dict[str, Any]] = []
        for row, label in scanned:
            rows.append(row | {"shard": number} | label_columns(label, vocabulary, f"{path}: sample {row['key']}"))
            has_truth = has_truth and "truth" in label
        tables.append(pa.Table.from_pylist(rows, schema=SCHEMA))
    table = pa.concat_tables(tables)
    counts = pc.value_counts(table["key"])
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    if repeated:
        raise ValueError(f"{out}: {len(repeated)} keys occur twice in split {split}, such as {repeated[:3]}")
    write_index(
        out / f"{split}.arrow",
        table,
        shards=[path.name for path in shards],
        shard_bytes=[path.stat().st_size for path in shards],
        vocabulary=vocabulary,
        has_truth=has_truth and len(table) > 0,
        tar_form=form.for_index() if form else {},
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
            "boxes": [dict(zip(("class", *BOX_SIDES), box, strict=True)) for box in boxes],
        }
    except KeyError as error:
        raise ValueError(f"{where}: class {error} is not among the {len(vocabulary)} of the vocabulary") from None


def _count_labels(labels: Iterable[dict[str, Any]]) -> tuple[Counter[str], Counter[str], set[str]]:
    """How often each class is positive and negative, and the classes of the full labels."""
    positives, negatives, others = Counter[str](), Counter[str](), set[str]()
    for label in labels:
        positives.update(label["positive"])
        negatives.update(label["negative"])
        others.update(label.get("truth", ()))
    return positives, negatives, others
