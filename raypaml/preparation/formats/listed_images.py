"""Rows of images with the names of their labels, as tables and exports have them, merged into a source."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypaml.data.shards import SPLITS
from raypaml.preparation.findings import Findings
from raypaml.preparation.formats.common import Source, SourceSplit, classes_of
from raypaml.preparation.formats.table_file import columns_shown
from raypaml.preparation.label_join import Labels, join_labels, pack
from raypaml.preparation.requests import NamedBox, SourceBox
from raypaml.preparation.split_names import SPLIT_NAMES, split_named

T = TypeVar("T")
NamedBoxes = Mapping[str, list[NamedBox]]
"""The boxes of each file, with names of classes."""
BoxesByFile = dict[str, list[SourceBox]]
"""The boxes of each file, with columns of classes."""


@dataclass
class ListedImages:
    """Rows of labelled images; several rows may be about the same image."""

    files: list[str]
    """The file of each row, below the folder of images."""
    labels: pa.Array
    """A column of lists: the names of each row's positive classes."""
    negatives: pa.Array | None = None
    """A column of lists: the names of each row's negative classes; None where there is no such column."""
    splits: list[str] | None = None
    """What the user calls the split of each row; None where splits are not given."""
    groups: list[str] | None = None
    """The group of each row, which no cut divides; None where groups are not given."""
    boxes: NamedBoxes | None = None
    complete: bool = False
    """Whether classes in neither list are negative; otherwise they are unobserved."""
    names_from_text: frozenset[str] = frozenset()
    """Names that were neither quoted nor are names of columns: a character in them may be a separator."""
    about: str = ""
    """A phrase for the user that says how the rows were read."""
    findings: Findings = field(default_factory=Findings)


def source_of(listed: ListedImages, path: Path, class_ids: Sequence[str] = ()) -> Source:
    """Merges the rows of each image.

    A label that is positive and negative in one image is dropped, and labels outside the classes are left out; both are
    counted. Where splits are not given, every image is in train.

    Args:
        listed: the rows.
        path: the file that they were read from, for messages.
        class_ids: the classes, in order; by default all that occur, sorted.

    Raises:
        ValueError: there is no label, or an image is in two splits or in two groups.
    """
    findings = listed.findings
    sides = {True: listed.labels, False: listed.negatives}
    values = {positive: _flat(lists) for positive, lists in sides.items() if lists is not None}
    occurring = {name for _, labels in values.values() for name in pc.unique(labels).to_pylist()}
    names = list(class_ids) or sorted(occurring)
    if class_ids:
        _check_that_classes_fit(occurring, class_ids, path)
    if not names:
        raise ValueError(f"{path}: no label in it; expected names of classes for its {len(listed.files):,} rows")
    image = pa.array(listed.files, pa.string()).dictionary_encode()
    files: list[str] = image.dictionary.to_pylist()
    rows = image.indices.to_numpy().astype(np.int64)
    findings.add("rows", len(rows))
    findings.add("rows of an image listed before, merged", len(rows) - len(files))
    packed = [_packed(rows[of], labels, names, side, findings) for side, (of, labels) in values.items()]
    joined = join_labels(np.concatenate(packed), "drop", findings, lambda i, c: f"{files[i]} {names[c]}")
    split_of = _one_each(_split_numbers(listed.splits, path), 0, rows, files, path, "splits")
    groups = _one_each(listed.groups or [], "", rows, files, path, "groups")
    boxes = None if listed.boxes is None else _known_boxes(listed.boxes, files, names, findings)
    splits = {}
    for number, split in enumerate(SPLITS):
        chosen = np.flatnonzero(np.array(split_of, np.int64) == number)
        if len(chosen):
            images = _split(chosen, files, joined, listed.complete, boxes, findings)
            splits[split] = replace(images, groups=[groups[k] for k in chosen] if listed.groups is not None else None)
    return Source(
        classes_of(names),
        splits,
        path.parent,
        has_splits=listed.splits is not None,
        about=listed.about,
        names_from_text=listed.names_from_text.difference(class_ids),
    )


def _check_that_classes_fit(labels: set[str], class_ids: Sequence[str], path: Path) -> None:
    """Raises ValueError where labels differ from names of --classes by case or blanks only, or none is among them."""
    outside, folded = labels.difference(class_ids), {"".join(name.casefold().split()): name for name in class_ids}
    alike = {name: folded[key] for name in sorted(outside) if (key := "".join(name.casefold().split())) in folded}
    if alike:
        such = ", ".join(f"{name!r} for {meant!r}" for name, meant in list(alike.items())[:4])
        raise ValueError(
            f"{path}: {len(alike):,} labels differ from names of --classes by case or blanks only ({such}); write them "
            "alike"
        )
    if labels and outside == labels:
        raise ValueError(
            f"{path}: none of its {len(labels):,} labels ({columns_shown(sorted(labels)[:4])}, ...) is among the "
            f"{len(class_ids):,} of --classes ({columns_shown(class_ids[:4])}, ...); give the list of its classes"
        )


def _flat(lists: pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """Returns the row and the name of each label in a column of lists."""
    values, rows = pc.utf8_trim_whitespace(lists.flatten()), pc.list_parent_indices(lists)
    there = pc.fill_null(pc.not_equal(values, ""), False)
    return rows.filter(there).to_numpy().astype(np.int64), values.filter(there)


def _packed(
    images: NDArray[np.int64], values: pa.Array, names: Sequence[str], positive: bool, findings: Findings
) -> NDArray[np.uint64]:
    columns = pc.fill_null(pc.index_in(values, value_set=pa.array(names, pa.string())), -1).to_numpy()
    outside = columns < 0
    findings.add("labels outside the classes", outside.sum(), pc.unique(values.filter(pa.array(outside))).to_pylist())
    none = np.zeros(int((~outside).sum()), np.int64)
    return pack(images[~outside], columns[~outside].astype(np.int64), none, np.full(len(none), positive))


def _split_numbers(splits: list[str] | None, path: Path) -> list[int]:
    """Returns the position in SPLITS of each row's split."""
    meant = {name: split_named(name) for name in set(splits or ())}
    for row, name in enumerate(splits or (), start=1):
        if meant[name] is None:
            raise ValueError(f"{path}: row {row}: split {name!r}; expected {', '.join(SPLIT_NAMES)}, in any case")
    number = {name: SPLITS.index(split) for name, split in meant.items() if split}
    return [number[name] for name in splits or ()]


def _one_each(
    values: Sequence[T], none: T, rows: NDArray[np.int64], files: Sequence[str], path: Path, what: str
) -> list[T]:
    """Returns the value of each image, `none` where no row has one; raises ValueError where its rows differ."""
    of: dict[int, T] = {}
    for row, (image, value) in enumerate(zip(rows.tolist(), values, strict=True) if values else (), start=1):
        if of.setdefault(image, value) != value:
            raise ValueError(f"{path}: row {row}: {files[image]} is in two {what}; keep one")
    return [of.get(image, none) for image in range(len(files))]


def _split(
    rows: NDArray[np.int64],
    files: Sequence[str],
    labels: Labels,
    complete: bool,
    boxes: BoxesByFile | None,
    findings: Findings,
) -> SourceSplit:
    sides = []
    for wanted in (labels.positive, ~labels.positive):
        first, end = (np.searchsorted(labels.image[wanted], rows, side) for side in ("left", "right"))
        columns = labels.class_index[wanted].astype(np.int64)
        sides.append([columns[a:b] for a, b in zip(first, end, strict=True)])
    chosen = [files[row] for row in rows]
    return SourceSplit(
        files=chosen,
        positives=sides[0],
        negatives=None if complete else sides[1],
        boxes=[boxes.get(file, []) for file in chosen] if boxes is not None else None,
        findings=findings,
    )


def _known_boxes(boxes: NamedBoxes, files: Sequence[str], names: Sequence[str], findings: Findings) -> BoxesByFile:
    """Returns the boxes of known images and classes, with columns for names; counts the others."""
    column, known = {name: k for k, name in enumerate(names)}, set(files)
    kept = defaultdict[str, list[SourceBox]](list)
    for file, named in boxes.items():
        for box in named:
            if file in known and box["class"] in column:
                kept[file].append({**box, "class": column[box["class"]]})
            else:
                findings.add("boxes of unknown images or classes", 1, [f"{file} {box['class']}"])
    return kept
