"""Class hierarchies: a positive implies its ancestors, and what was implied is known apart from what people gave."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypaml.labels import IntArray
from raypaml.preparation.findings import Findings
from raypaml.preparation.requests import SplitLabels

Parents = dict[str, set[str]]
"""Class id -> the ids of the classes right above it, whether in a vocabulary or not."""
IMPLIED = pa.schema([("key", pa.string()), ("class", pa.int32())])
"""A label that no one gave: an image's key, and the class column."""


def read_hierarchy(path: Path) -> Parents:
    """Read a hierarchy: JSON as Open Images' `bbox_labels_600_hierarchy.json`, or CSV with the columns child,parent.

    Of the JSON, LabelName is a class and Subcategory what is below it; Part, what it consists of, implies nothing.

    Raises:
        ValueError: the file cannot be read, or a class is its own ancestor.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            pairs = list(_from_json(json.load(file)) if path.suffix == ".json" else _from_csv(csv.DictReader(file)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = "nested LabelName and Subcategory" if path.suffix == ".json" else "the columns child,parent"
        raise ValueError(f"hierarchy={path}: cannot be read ({error}); expected {said}") from None
    parents: Parents = defaultdict(set)
    for child, parent in pairs:
        parents[child].add(parent)
    for child in parents:
        if child in ancestors(parents, child):
            raise ValueError(f"hierarchy={path}: {child} is its own ancestor; break the circle")
    return dict(parents)


def _from_json(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for below in node.get("Subcategory", ()):
        yield below["LabelName"], node["LabelName"]
        yield from _from_json(below)


def _from_csv(rows: csv.DictReader[str]) -> Iterator[tuple[str, str]]:
    for row in rows:
        yield row["child"].strip(), row["parent"].strip()


def ancestors(parents: Mapping[str, set[str]], class_id: str) -> set[str]:
    """All classes above one, by any way."""
    found, left = set[str](), [class_id]
    while left:
        new = parents.get(left.pop(), set()) - found
        found |= new
        left += new
    return found


def implied_columns(parents: Mapping[str, set[str]], class_ids: Sequence[str]) -> list[IntArray]:
    """Of each class the columns of its ancestors in the vocabulary; the way there may leave the vocabulary."""
    column = {class_id: k for k, class_id in enumerate(class_ids)}
    above = (ancestors(parents, class_id) for class_id in class_ids)
    return [np.array(sorted(column[one] for one in found if one in column), np.int64) for found in above]


def expand(labels: SplitLabels, class_ids: Sequence[str], parents: Parents) -> SplitLabels:
    """The labels of a split with what its positives imply; a verified negative is never overridden, but counted.

    Where the full labels are known, these are expanded too: an unlisted class is then negative only because it was not
    listed, so that an implied one is positive. Counts of verified labels, and with them the class groups, stay those of
    the labels that were given.
    """
    table, num_classes = labels.table, len(class_ids)
    implied = implied_columns(parents, class_ids)
    positive, negative, truth = (_cells(table[name], num_classes) for name in ("positives", "negatives", "truth"))
    truth = np.union1d(truth, _above(truth, implied))
    negative = np.setdiff1d(negative, truth, assume_unique=True)
    above = np.setdiff1d(_above(positive, implied), positive, assume_unique=True)
    new = np.setdiff1d(above, negative, assume_unique=True)
    for name, cells in (("positives", np.union1d(positive, new)), ("negatives", negative), ("truth", truth)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), _lists(cells, table[name], num_classes))
    findings = Findings(labels.findings.counts.copy(), dict(labels.findings.examples))
    findings.add("labels implied by the hierarchy", len(new))
    findings.add("implied labels against a verified negative, left out", len(above) - len(new))
    added = pa.table([table["key"].take(pa.array(new // num_classes)), new % num_classes], schema=IMPLIED)
    return replace(labels, table=table, findings=findings, implied=added)


def _cells(lists: pa.ChunkedArray, num_classes: int) -> IntArray:
    """Row x K + column of every label in a list column, ascending."""
    column = lists.combine_chunks()
    rows = pc.list_parent_indices(column).to_numpy().astype(np.int64)
    return np.sort(rows * num_classes + pc.list_flatten(column).to_numpy())


def _lists(cells: IntArray, like: pa.ChunkedArray, num_classes: int) -> pa.Array:
    """The inverse of `_cells`; null where the column was."""
    ends = np.searchsorted(cells, np.arange(len(like) + 1) * num_classes).astype(np.int32)
    columns = pa.array((cells % num_classes).astype(np.int32))
    return pa.ListArray.from_arrays(pa.array(ends), columns, mask=pc.is_null(like).combine_chunks())


def _above(cells: IntArray, implied: Sequence[IntArray]) -> IntArray:
    """The cells that these imply, each once, ascending."""
    num_classes = len(implied)
    sizes = np.array([len(columns) for columns in implied])
    starts, flat = np.cumsum(sizes) - sizes, np.concatenate([np.zeros(0, np.int64), *implied])
    rows, columns = np.divmod(cells, num_classes)
    many = sizes[columns]
    within = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
    return np.unique(np.repeat(rows, many) * num_classes + flat[np.repeat(starts[columns], many) + within])
