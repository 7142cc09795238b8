"""Writes a data set as plain WebDataset tars with index and vocabulary, and makes indexes of existing tars.

    <out>/vocabulary.csv  <out>/<split>-000000.tar ...  <out>/<split>.arrow

A sample is `<key>.jpg` and `<key>.json`. The JSON has class ids: `positive` and `negative` (observed labels) and, where
known, `truth` (all positives) and boxes in pixels, in the form of `label_forms.flat_json`. An index is always made by
scanning finished tars, so that all tars, whoever wrote them, are read by the same code.
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
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypaml.data.hidden_files import PassedOver
from raypaml.data.index import write_index
from raypaml.data.index_table import SCHEMA
from raypaml.data.label_forms import OWN, Box, LabelForm, SampleLabels, flat_json
from raypaml.data.tars import ImagePlace, Scanned, scan
from raypaml.files import whole
from raypaml.labels import VOCABULARY, Vocabulary

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


class LabelColumns(TypedDict):
    """The labels of one sample as columns of the index, where classes are columns of the label matrix."""

    positives: list[int]
    negatives: list[int]
    truth: list[int] | None
    boxes: list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One labelled image that is to be written into a shard."""

    key: str
    image: bytes
    """The bytes of a JPEG."""
    positive: tuple[str, ...]
    """Observed positive class ids."""
    negative: tuple[str, ...]
    """Observed negative class ids."""
    truth: tuple[str, ...] | None = None
    """All positive class ids, where the full labels are known; never reaches a partial-label loss."""
    boxes: tuple[Box, ...] = ()

    def members(self, *, flat: bool = True) -> dict[str, str | bytes]:
        """The members of the sample as WebDataset's writer takes them; `flat` as in `write_shard`."""
        labels = SampleLabels(positive=self.positive, negative=self.negative)
        if self.truth is not None:
            labels["truth"] = self.truth
        if self.boxes:
            labels["boxes"] = self.boxes
        content = flat_json(labels) if flat else json.dumps(labels).encode()
        return {"__key__": self.key, "jpg": self.image, "json": content}


def write_shard(path: Path, samples: Iterable[Sample], *, flat: bool = True) -> list[ImagePlace]:
    """Write one tar, whole or not at all; the same samples give the same bytes.

    Args:
        path: the tar.
        samples: its samples.
        flat: write labels by `flat_json`; otherwise as earlier versions did, with boxes as lists of lists and `truth`
            only where it is known.

    Returns:
        The place of every sample's image in the tar.
    """
    import webdataset  # imported here because it imports torch, which this module does not need otherwise

    places: list[ImagePlace] = []
    with (
        whole(path, shared=True) as unfinished,  # another task that was given up as lost may still be writing it
        unfinished.open("wb") as file,
        webdataset.TarWriter(file, encoder=False, mtime=0) as writer,
    ):
        for sample in samples:
            offset = writer.tarstream.offset + tarfile.BLOCKSIZE  # the JPEG comes first, after a header of one block
            places.append(
                ImagePlace(key=sample.key, offset=offset, size=len(sample.image), crc32=zlib.crc32(sample.image))
            )
            writer.write(sample.members(flat=flat))
    return places


def write_split(out: Path, split: str, samples: Iterable[Sample], samples_per_shard: int) -> list[Path]:
    """Write `<split>-000000.tar`, ...; the same samples give the same bytes. Returns the paths of the shards."""
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
        out: the folder.
        splits: the samples of each split; those of `train` are counted for the vocabulary.
        class_ids: the classes, in the order of the label columns.
        names: the classes' names for people.
        samples_per_shard: the most samples of a shard.
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
    """Write vocabulary and indexes for finished shards.

    Args:
        out: the folder of the shards.
        shards: the tars of each split, in order.
        class_ids, names: the classes; default: every class id that a training sample has, sorted.
        labels, image_suffix, dotted_keys: how samples are written, see `data.label_forms.LabelForm`.
        passed_over: takes the names of members that are not part of a sample.
    """
    form = LabelForm(labels, tuple(class_ids), image_suffix, dotted_keys)
    scans = {  # in Arrow memory, about a hundred bytes a sample, where Python's objects take thousands
        split: [
            pa.Table.from_pylist(
                [place | {"labels": json.dumps(label)} for place, label in scan(path, form, passed_over)],
                schema=_PACKED,
            )
            for path in paths
        ]
        for split, paths in shards.items()
    }
    positives, negatives, others = _count_labels(
        json.loads(text) for packed in scans["train"] for text in packed["labels"].to_pylist()
    )
    if not class_ids:
        class_ids = names = sorted(positives.keys() | negatives.keys() | others)
    vocabulary = Vocabulary(
        class_ids=tuple(class_ids),
        names=tuple(names),
        train_positives=np.array([positives[c] for c in class_ids], np.int64),
        train_negatives=np.array([negatives[c] for c in class_ids], np.int64),
    )
    vocabulary.write(out / VOCABULARY)
    for split, paths in shards.items():
        index_split(out, split, paths, map(_unpack, scans[split]), vocabulary, form)
    return vocabulary


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
    """Write the index `<split>.arrow` from the results of `scan` for each of the split's tars."""
    tables, has_truth = [SCHEMA.empty_table()], True
    for number, (path, scanned) in enumerate(zip(shards, scans, strict=True)):
        rows = []
        for place, labels in scanned:
            columns = label_columns(labels, vocabulary, f"{path}: sample {place['key']}")
            rows.append({**place, "shard": number, **columns})
            has_truth = has_truth and "truth" in labels
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


def label_columns(labels: SampleLabels, vocabulary: Vocabulary, where: str) -> LabelColumns:
    """The labels of one sample as columns of the index.

    Raises:
        ValueError: they contradict each other, or have an unknown class; the message begins with `where`.
    """
    both = set(labels["positive"]) & set(labels["negative"])
    if both:
        raise ValueError(f"{where}: classes {sorted(both)[:5]} labelled both positive and negative")
    try:
        column = vocabulary.index_of.__getitem__
        return {
            "positives": sorted(map(column, labels["positive"])),
            "negatives": sorted(map(column, labels["negative"])),
            "truth": sorted(map(column, labels["truth"])) if "truth" in labels else None,
            "boxes": [
                {"class": column(name), "x0": x0, "y0": y0, "x1": x1, "y1": y1}
                for name, x0, y0, x1, y1 in labels.get("boxes", ())
            ],
        }
    except KeyError as error:
        raise ValueError(f"{where}: class {error} is not among the {len(vocabulary)} of the vocabulary") from None


def _count_labels(labels: Iterable[SampleLabels]) -> tuple[Counter[str], Counter[str], set[str]]:
    """How often each class is positive, how often it is negative, and all classes of the full labels."""
    positives, negatives, others = Counter[str](), Counter[str](), set[str]()
    for label in labels:
        positives.update(label["positive"])
        negatives.update(label["negative"])
        others.update(label.get("truth", ()))
    return positives, negatives, others
