"""Rows of images with the names of their labels, as every table and export gives them, and the source made of them."""

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
from raypaml.preparation.formats.common import Source, SourceBox, SourceSplit, classes_of
from raypaml.preparation.formats.table_file import columns_shown
from raypaml.preparation.label_join import Labels, join_labels, pack
from raypaml.preparation.split_names import SPLIT_NAMES, split_named

T = TypeVar("T")
NamedBoxes = dict[str, list[SourceBox]]
"""File -> its boxes, whose `class` is a name as long as there are no columns."""


@dataclass
class ListedImages:
    """Rows, of which several may be about the same image."""

    files: list[str]
    """The file of each row, below the folder of images."""
    labels: pa.Array
    """The names of the positives of each row, as a list."""
    negatives: pa.Array | None = None
    """Lists as well; None: there was no such column."""
    splits: list[str] | None = None
    """What somebody called the split of each row; None: nothing was said."""
    groups: list[str] | None = None
    boxes: NamedBoxes | None = None
    complete: bool = False
    """What is in neither list is negative."""
    names_from_text: frozenset[str] = frozenset()
    """Those that were neither quoted nor are names of columns: a sign in them may be a separator."""
    about: str = ""
    """In words how they were read."""
    findings: Findings = field(default_factory=Findings)


def source_of(listed: ListedImages, path: Path, class_ids: Sequence[str] = ()) -> Source:
    """Merge the rows of each image.

    A class that is positive and negative in one image is dropped, labels outside the classes are left out; all of it is
    counted. Where no split is said every image is of train.

    Args:
        listed: the rows.
        path: where they were read, for messages.
        class_ids: the classes, in order; default: all that occur, sorted.

    Raises:
        ValueError: there is no label, or an image is in two splits or in two groups.
    """
    findings = listed.findings
    sides = {True: listed.labels, False: listed.negatives}
    values = {positive: _flat(lists) for positive, lists in sides.items() if lists is not None}
    names = list(class_ids) or sorted({name for _, found in values.values() for name in pc.unique(found).to_pylist()})
    if class_ids:
        _check_that_classes_fit(values, class_ids, path)
    if not names:
        raise ValueError(f"{path}: no label in it; expected names of classes for its {len(listed.files):,} rows")
    image = pa.array(listed.files, pa.string()).dictionary_encode()
    files: list[str] = image.dictionary.to_pylist()
    rows = image.indices.to_numpy().astype(np.int64)
    findings.add("rows", len(rows))
    findings.add("rows of an image listed before, merged", len(rows) - len(files))
    packed = [_packed(rows[of], found, names, side, findings) for side, (of, found) in values.items()]
    labels = join_labels(np.concatenate(packed), "drop", findings, lambda i, c: f"{files[i]} {names[c]}")
    split_of = _one_each(_split_numbers(listed.splits, path), 0, rows, files, path, "splits")
    groups = _one_each(listed.groups or [], "", rows, files, path, "groups")
    boxes = None if listed.boxes is None else _known_boxes(listed.boxes, files, names, findings)
    splits = {}
    for number, split in enumerate(SPLITS):
        chosen = np.flatnonzero(np.array(split_of, np.int64) == number)
        if len(chosen):
            found = _split(chosen, files, labels, listed.complete, boxes, findings)
            splits[split] = replace(found, groups=[groups[k] for k in chosen] if listed.groups is not None else None)
    return Source(
        classes_of(names),
        splits,
        path.parent,
        has_splits=listed.splits is not None,
        about=listed.about,
        names_from_text=listed.names_from_text.difference(class_ids),
    )


def _check_that_classes_fit(
    values: Mapping[bool, tuple[NDArray[np.int64], pa.Array]], class_ids: Sequence[str], path: Path
) -> None:
    """ValueError where labels differ from the classes asked for by their writing only, or none of them is one."""
    labels = {name for _, found in values.values() for name in pc.unique(found).to_pylist()}
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
            f"{len(class_ids):,} of --classes ({columns_shown(class_ids[:4])}, ...); give the list that belongs to it"
        )


def _flat(lists: pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """The row and the name of each label in a column of lists."""
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
    """The number in SPLITS of each row's split."""
    meant = {name: split_named(name) for name in set(splits or ())}
    for row, name in enumerate(splits or (), start=1):
        if meant[name] is None:
            raise ValueError(f"{path}: row {row}: split {name!r}; expected {', '.join(SPLIT_NAMES)}, in any case")
    number = {name: SPLITS.index(split) for name, split in meant.items() if split}
    return [number[name] for name in splits or ()]


def _one_each(
    values: Sequence[T], none: T, rows: NDArray[np.int64], files: Sequence[str], path: Path, what: str
) -> list[T]:
    """The value of each image; `none` where no row has any."""
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
    boxes: NamedBoxes | None,
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


def _known_boxes(boxes: NamedBoxes, files: Sequence[str], names: Sequence[str], findings: Findings) -> NamedBoxes:
    """The boxes of images and classes that there are, with columns for names."""
    column, known = {name: k for k, name in enumerate(names)}, set(files)
    kept = defaultdict[str, list[SourceBox]](list)
    for file, found in boxes.items():
        for box in found:
            if file in known and box["class"] in column:
                kept[file].append({**box, "class": column[box["class"]]})
            else:
                findings.add("boxes of unknown images or classes", 1, [f"{file} {box['class']}"])
    return kept
