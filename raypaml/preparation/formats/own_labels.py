"""One's own labels: a CSV or Parquet table of images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

from raypaml.data.index import BOX_SIDES
from raypaml.data.shards import SPLITS
from raypaml.preparation.findings import Findings
from raypaml.preparation.formats.common import Source, SourceBox, SourceSplit, classes_of
from raypaml.preparation.label_join import Labels, join_labels, pack

BOX_COLUMNS = ("image", "class", "xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class TableForm:
    """How a table says its labels."""

    separator: str = " "
    """Between labels of one image."""
    complete: bool = False
    """What is not listed is negative; otherwise it is unobserved."""


def read_table(path: Path, form: TableForm, *, boxes: Path | None = None, class_ids: Sequence[str] = ()) -> Source:
    """Read a table with the columns `image`, `labels`, and optionally `split` and `negatives`.

    `labels` and `negatives` hold class names between separators, or lists (Parquet). Rows of the same image are merged;
    a class that is positive and negative in one image is dropped; labels outside `class_ids` are left out; all of it
    is counted. Without `split` every image is of train.

    Args:
        boxes: a table with the columns image, class, xmin, ymin, xmax, ymax in pixels.
        class_ids: the classes, in order; default: all that occur, sorted.

    Raises:
        ValueError: naming file and column or row.
    """
    table = _load(path, ("image", "labels"))
    findings = Findings()
    listed = [
        (name, *_labels(table, name, form.separator)) for name in ("labels", "negatives") if name in table.schema.names
    ]
    names = list(class_ids) or sorted({value for _, _, values in listed for value in pc.unique(values).to_pylist()})
    if not names:
        raise ValueError(f"{path}: no label in it; the column 'labels' holds class names between {form.separator!r}")
    image = table["image"].combine_chunks().dictionary_encode()
    files: list[str] = image.dictionary.to_pylist()
    findings.add("rows", len(table))
    findings.add("rows of an image listed before, merged", len(table) - len(files))
    packed = [_packed(rows, values, image, names, name == "labels", findings) for name, rows, values in listed]
    labels = join_labels(np.concatenate(packed), "drop", findings, lambda i, c: f"{files[i]} {names[c]}")
    split_of = _splits(table, path, image, files)
    found = _boxes(boxes, files, names, findings) if boxes else None
    splits = {}
    for number, split in enumerate(SPLITS):
        rows = np.flatnonzero(split_of == number)
        if len(rows):
            splits[split] = _split(rows, files, labels, form, found, findings)
    return Source(classes_of(names), splits, path.parent)


def _load(path: Path, needed: Sequence[str]) -> pa.Table:
    try:
        table = pq.read_table(path) if path.suffix == ".parquet" else csv.read_csv(path, convert_options=_AS_TEXT)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    missing = [name for name in needed if name not in table.schema.names]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}; it has {', '.join(table.schema.names)}")
    return table


_AS_TEXT = csv.ConvertOptions(
    column_types={name: pa.string() for name in ("image", "labels", "negatives", "split", "class")},
    strings_can_be_null=False,
)


def _labels(table: pa.Table, name: str, separator: str) -> tuple[NDArray[np.int64], pa.Array]:
    """The row and the class name of each label in a column."""
    column = table[name].combine_chunks()
    lists = column if pa.types.is_list(column.type) else pc.split_pattern(pc.fill_null(column, ""), separator)
    values, rows = pc.utf8_trim_whitespace(lists.flatten()), pc.list_parent_indices(lists)
    there = pc.not_equal(values, "")
    return rows.filter(there).to_numpy().astype(np.int64), values.filter(there)


def _packed(
    rows: NDArray[np.int64],
    values: pa.Array,
    image: pa.DictionaryArray,
    names: Sequence[str],
    positive: bool,
    findings: Findings,
) -> NDArray[np.uint64]:
    columns = pc.fill_null(pc.index_in(values, value_set=pa.array(names, pa.string())), -1).to_numpy()
    outside = columns < 0
    findings.add("labels outside the classes", outside.sum(), pc.unique(values.filter(pa.array(outside))).to_pylist())
    images = image.indices.to_numpy()[rows[~outside]].astype(np.int64)
    none = np.zeros(len(images), np.int64)
    return pack(images, columns[~outside].astype(np.int64), none, np.full(len(images), positive))


def _splits(table: pa.Table, path: Path, image: pa.DictionaryArray, files: list[str]) -> NDArray[np.int64]:
    """The number in SPLITS of each image's split."""
    if "split" not in table.schema.names:
        return np.zeros(len(files), np.int64)
    number = pc.index_in(table["split"].combine_chunks(), value_set=pa.array(SPLITS))
    if number.null_count:
        row = int(np.flatnonzero(pc.is_null(number).to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{path}: row {row + 1}: split {table['split'][row]}; expected {', '.join(SPLITS)}")
    split_of = np.full(len(files), -1)
    rows, splits = image.indices.to_numpy(), number.to_numpy()
    split_of[rows] = splits
    other = np.flatnonzero(split_of[rows] != splits)
    if len(other):
        raise ValueError(f"{path}: row {other[0] + 1}: {files[rows[other[0]]]} is in two splits; keep one")
    return split_of


def _split(
    rows: NDArray[np.int64],
    files: list[str],
    labels: Labels,
    form: TableForm,
    boxes: dict[str, list[SourceBox]] | None,
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
        negatives=None if form.complete else sides[1],
        boxes=[boxes.get(file, []) for file in chosen] if boxes else None,
        findings=findings,
    )


def _boxes(path: Path, files: list[str], names: Sequence[str], findings: Findings) -> dict[str, list[SourceBox]]:
    column, known = {name: k for k, name in enumerate(names)}, set(files)
    found = defaultdict[str, list[SourceBox]](list)
    for row in _load(path, BOX_COLUMNS).select(BOX_COLUMNS).to_pylist():
        if row["image"] not in known or row["class"] not in column:
            findings.add("boxes of unknown images or classes", 1, [f"{row['image']} {row['class']}"])
            continue
        corners = zip(BOX_SIDES, BOX_COLUMNS[2:], strict=True)
        found[row["image"]].append({"class": column[row["class"]], **{ours: float(row[its]) for ours, its in corners}})
    return found
