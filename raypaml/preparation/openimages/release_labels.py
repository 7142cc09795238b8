"""Reads the image list and the label rows of a split of Open Images V3 (and V2, V4 to V7), and joins them.

Formats: `annotations-human.csv` ImageID,Source,LabelName,Confidence with Confidence 0 or 1; `images.csv`; class lists.
An ImageID is 64 bits in 16 lower-case hexadecimal digits.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypaml.cli import did_you_mean
from raypaml.preparation.findings import EXAMPLES, Findings
from raypaml.preparation.freed_memory import give_back_memory
from raypaml.preparation.in_order import in_order
from raypaml.preparation.label_join import ConflictRule, Labels, Packed, join_labels, merged, pack, records, without
from raypaml.preparation.openimages.image_ids import Ids, hex_id, hex_keys, parse_ids
from raypaml.preparation.openimages.release import ReleaseFile, find_file
from raypaml.preparation.requests import Classes, SplitLabels, as_requests

OFFICIAL_TOTALS = {
    "train": {"images": 9_011_219, "positives": 9_741_876, "negatives": 11_126_879},
    "validation": {"images": 41_620, "positives": 365_772, "negatives": 185_618},
    "test": {"images": 125_436, "positives": 1_105_052, "negatives": 562_347},
}
"""Totals of V3 (2017_11) over all 19,693 verified classes. (Open Images README of V3.)"""

SOURCES = ("verification", "crowdsource-verification")
"""Who verified a label, the better source first: Google's annotators, then users of the Crowdsource app."""
OTHER_SOURCE = len(SOURCES)
_SOURCE_RANKS = {source: rank for rank, source in enumerate(SOURCES)}
NOT_A_CLASS, OTHER_CLASS = -2, -1

_NAMES = pa.dictionary(pa.int32(), pa.string())
_THREADS, _AHEAD = 2, 1
"""Threads that look up the rows of a file while further ones are read, and blocks ahead for each: 12 MB a block."""
_LABEL_COLUMNS = {"ImageID": pa.string(), "LabelName": _NAMES, "Confidence": _NAMES}


def read_classes(metadata: Path, chosen: Path | None = None) -> Classes:
    """Reads the trainable classes in the official order, or those that the file `chosen` lists, one id a line."""
    descriptions = find_file(metadata, "descriptions")
    rows = list(csv.reader(descriptions.lines()))
    name_of = {row[0]: row[1] for row in rows if len(row) > 1 and row[0] != "LabelName"}
    file = ReleaseFile(chosen) if chosen else find_file(metadata, "trainable")
    lines = [line.split(",")[0].strip() for line in file.lines()]
    class_ids = [line for line in lines if line and line != "LabelName"]
    unknown = [c for c in class_ids if c not in name_of]
    if chosen and unknown:
        hint = did_you_mean(unknown[0], name_of)
        raise ValueError(f"{file}: {len(unknown)} classes are not in {descriptions}, such as {unknown[:3]}{hint}")
    if not class_ids:
        raise ValueError(f"{file}: no class ids in it; list one a line, such as /m/01g317")
    twice = [c for c, count in Counter(class_ids).items() if count > 1]
    if twice:
        raise ValueError(f"{file}: class ids given twice: {twice[:5]}; keep one line each")
    names = tuple(name_of.get(c, c) for c in class_ids)
    return Classes(tuple(class_ids), names, frozenset(name_of) | frozenset(class_ids))


def read_split(
    metadata: Path,
    split: str,
    classes: Classes,
    *,
    conflicts: ConflictRule = "source",
    machine_threshold: float | None = None,
) -> SplitLabels:
    """Reads and joins the labels of one split.

    V3's train, 9.0 million images and 20.9 million labels, takes 1.4 GB of memory (tools/bench/BENCHMARKS.md).

    Args:
        metadata: folder of the files of the release.
        split: `train`, `validation` or `test`.
        classes: the classes of the data set.
        conflicts: what becomes of an (image, class) that was verified as positive and as negative.
        machine_threshold: add machine labels of at least this confidence as positives, where nobody verified the
            class; for train only.

    Raises:
        ValueError: a file is missing or wrong; the message names file and line.
    """
    if machine_threshold is not None and split != "train":
        raise ValueError(
            f"machine labels for split {split!r}: they are for train only, because evaluation uses verified labels"
        )
    findings = Findings()
    images = _read_images(find_file(metadata, "images", split), split, findings)
    reader = _LabelReader(images, classes, findings)
    packed = reader.human(find_file(metadata, "human", split))
    give_back_memory()  # what reading took, before the join takes its own
    labels = join_labels(packed, conflicts, findings, lambda i, c: f"{hex_id(images[i])} {classes.class_ids[c]}")
    del packed
    verified = {
        "positives": np.bincount(labels.class_index[labels.positive], minlength=len(classes.class_ids)),
        "negatives": np.bincount(labels.class_index[~labels.positive], minlength=len(classes.class_ids)),
    }
    if machine_threshold is not None:
        labels = _with_machine(labels, reader, find_file(metadata, "machine", split), machine_threshold)
    in_vocabulary = np.zeros(len(images), bool)
    in_vocabulary[labels.image] = True
    return SplitLabels(
        table=as_requests(records(labels, lambda rows: hex_keys(images[rows]))),
        verified=verified,
        findings=findings,
        others={
            "no_label_in_vocabulary": hex_keys(images[reader.labelled & ~in_vocabulary]),
            "no_label": hex_keys(images[~reader.labelled & ~in_vocabulary]),
        },
    )


def _with_machine(labels: Labels, reader: _LabelReader, file: ReleaseFile, threshold: float) -> Labels:
    """Adds the machine labels of classes that nobody verified in an image."""
    machine = join_labels(reader.machine(file, threshold), "positive", Findings())
    added = without(machine, labels)
    reader.findings.add("machine labels added", len(added))
    reader.findings.add("machine labels already verified", len(machine) - len(added))
    return merged(labels, added)


def _read_images(file: ReleaseFile, split: str, findings: Findings) -> Ids:
    """Returns the listed image ids, sorted, each once."""
    batches = file.columns({"ImageID": pa.string()}, optional=["Subset"], newlines=True)
    every = _read(batches, partial(_listed, split=split), findings)
    every.sort()
    images = every[np.r_[True, every[1:] != every[:-1]]] if len(every) else every
    if not len(images):
        raise ValueError(f"{file}: no image with an id of 16 hexadecimal digits in it")
    findings.add("images listed twice", len(every) - len(images))
    findings.add("images listed", len(images))
    return images


def _listed(batch: pa.RecordBatch, findings: Findings, *, split: str) -> Ids:
    """Returns the ids of some rows of the image list."""
    ids, _ = parse_ids(batch.column(0), "image ids of another shape", findings)
    if batch.num_columns > 1:
        other = pc.not_equal(batch.column(1).cast(pa.string()), split)
        findings.add("listed images of another subset", pc.sum(other).as_py() or 0)
    return ids


def _read(
    batches: Iterable[pa.RecordBatch],
    function: Callable[[pa.RecordBatch, Findings], NDArray[np.uint64]],
    findings: Findings,
) -> NDArray[np.uint64]:
    """Returns what a function makes of all batches, by threads: NumPy and Arrow release the interpreter's lock."""

    def apart(batch: pa.RecordBatch) -> tuple[NDArray[np.uint64], Findings]:
        own = Findings()
        return function(batch, own), own

    parts = [np.zeros(0, np.uint64)]
    for part, found in in_order(apart, batches, _THREADS, _AHEAD):
        parts.append(part)
        findings.merge(found)
    return np.concatenate(parts)


class _LabelReader:
    """Reads the label files of one split, and looks up its images and classes."""

    def __init__(self, images: Ids, classes: Classes, findings: Findings):
        self.images, self.findings = images, findings
        self.labelled = np.zeros(len(images), bool)
        """Whether each image has a verified label of any class."""
        self._column = dict.fromkeys(classes.known, OTHER_CLASS) | {c: k for k, c in enumerate(classes.class_ids)}

    def human(self, file: ReleaseFile) -> Packed:
        """Reads the verified labels of classes in the vocabulary, packed."""
        return _read(file.columns(_LABEL_COLUMNS, optional=["Source"]), self._human, self.findings)

    def machine(self, file: ReleaseFile, threshold: float) -> Packed:
        """Reads the machine labels of at least this confidence of classes in the vocabulary, packed as positives."""
        return _read(file.columns(_LABEL_COLUMNS), partial(self._machine, threshold=threshold), self.findings)

    def _human(self, batch: pa.RecordBatch, find: Findings) -> Packed:
        rows = self._locate(batch, "", find)
        value, source = rows.confidence.map(_value), rows.source.map(lambda name: _SOURCE_RANKS.get(name, OTHER_SOURCE))
        find.add("positives", (value == 1).sum())
        find.add("negatives", (value == 0).sum())
        find.add("confidences other than 0 or 1", (value < 0).sum(), rows.confidence.where(value < 0))
        find.add(
            "label rows of another source", (source == OTHER_SOURCE).sum(), rows.source.where(source == OTHER_SOURCE)
        )
        self.labelled[rows.image[rows.listed]] = True
        good = rows.usable & (value >= 0)
        return pack(rows.image[good], rows.class_index[good], source[good], value[good] == 1)

    def _machine(self, batch: pa.RecordBatch, find: Findings, *, threshold: float) -> Packed:
        rows = self._locate(batch, "machine ", find)
        sure = rows.confidence.map(lambda text: _number(text) >= threshold).astype(bool)
        find.add("machine labels below the threshold", (~sure).sum())
        good = rows.usable & sure
        none = np.zeros(good.sum(), np.int64)
        return pack(rows.image[good], rows.class_index[good], none, np.ones(len(none), bool))

    def _locate(self, batch: pa.RecordBatch, kind: str, find: Findings) -> _Located:
        """Looks up image and class of each row with an id, and counts those that are not known."""
        ids, shaped = parse_ids(batch.column(0), f"{kind}label rows with an id of another shape", find)
        coded = ((column.indices.to_numpy(zero_copy_only=False), column.dictionary) for column in batch.columns[1:])
        names, confidence, *source = (
            _Coded(codes if shaped.all() else codes[shaped], values.to_pylist()) for codes, values in coded
        )
        class_index = names.map(lambda name: self._column.get(name, NOT_A_CLASS))
        image = np.minimum(np.searchsorted(self.images, ids), len(self.images) - 1)
        listed = self.images[image] == ids
        unknown = class_index == NOT_A_CLASS
        find.add(f"{kind}label rows", len(batch))
        find.add(f"{kind}labels of unknown classes", unknown.sum(), names.where(unknown))
        find.add(f"{kind}labels of images not listed", (~listed).sum(), map(hex_id, ids[~listed][:EXAMPLES]))
        default = _Coded(np.zeros(len(ids), np.int32), [SOURCES[0]])
        return _Located(image, class_index, listed, confidence, source[0] if source else default)


@dataclass(frozen=True)
class _Located:
    """Label rows, each with its position in the image list and its class column."""

    image: NDArray[np.int64]
    class_index: NDArray[np.int64]
    listed: NDArray[np.bool_]
    """Whether the row's image is in the image list; `image` has a meaning only there."""
    confidence: _Coded
    source: _Coded

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Whether each row has a listed image and a class in the vocabulary."""
        return self.listed & (self.class_index >= 0)


@dataclass(frozen=True)
class _Coded:
    """A column of text as codes into its few different values."""

    codes: NDArray[np.int32]
    values: list[str]

    def map(self, function: Callable[[str], float]) -> NDArray[np.int64]:
        """Returns a number for each row, a function of its text."""
        return np.array([function(value) for value in self.values], np.int64)[self.codes]

    def where(self, rows: NDArray[np.bool_]) -> list[str]:
        """Returns the first few texts of these rows."""
        return [self.values[code] for code in self.codes[rows][:EXAMPLES]]


def _number(confidence: str) -> float:
    try:
        return float(confidence)
    except ValueError:
        return math.nan


def _value(confidence: str) -> int:
    """Returns 1 or 0 for a confidence, and -1 for what is neither."""
    return {0.0: 0, 1.0: 1}.get(_number(confidence), -1)
