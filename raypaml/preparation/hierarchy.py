"""Class hierarchies: a positive label implies its ancestors; implied labels are kept apart from those people gave."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypaml.bounded import SMALL_BYTES, read_bytes, read_rows
from raypaml.labels import IntArray, each_once
from raypaml.preparation.findings import Findings
from raypaml.preparation.requests import SplitLabels
from raypaml.stored_json import parse_json

Parents = dict[str, set[str]]
"""The ids of the classes directly above each class, whether they are in a vocabulary or not."""
IMPLIED = pa.schema([("key", pa.string()), ("class", pa.int32())])
"""A row for each label that the hierarchy added: the key of the image, and the class column."""


class _Node(TypedDict):
    """A class in a hierarchy in Open Images' JSON."""

    LabelName: str
    Subcategory: NotRequired[list[_Node]]


def read_hierarchy(path: Path) -> Parents:
    """Reads a hierarchy: JSON like Open Images' `bbox_labels_600_hierarchy.json`, or CSV with the columns child,parent.

    In the JSON, LabelName is a class and Subcategory lists the classes below it; Part lists its parts, which imply
    nothing.

    Raises:
        ValueError: the file cannot be read, or a class is its own ancestor.
    """
    try:
        if path.suffix == ".json":
            pairs = list(_pairs_below(parse_json(read_bytes(path, SMALL_BYTES))))
        else:
            pairs = [(row["child"].strip(), row["parent"].strip()) for _, row in read_rows(path, ("child", "parent"))]
        if not all(itertools.chain.from_iterable(pairs)):
            raise ValueError("a row without child or parent")
        parents: Parents = defaultdict(set)
        for child, parent in pairs:
            parents[child].add(parent)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = "nested LabelName and Subcategory" if path.suffix == ".json" else "the columns child,parent"
        raise ValueError(f"hierarchy={path}: cannot be read ({error}); expected {said}") from None
    for child in parents:
        if child in ancestors(parents, child):
            raise ValueError(f"hierarchy={path}: {child} is its own ancestor; break the circle")
    return dict(parents)


def _pairs_below(node: _Node) -> Iterator[tuple[str, str]]:
    """Yields child and parent for every class below this one."""
    for child in node.get("Subcategory", ()):
        yield child["LabelName"], node["LabelName"]
        yield from _pairs_below(child)


def ancestors(parents: Mapping[str, set[str]], class_id: str) -> set[str]:
    """Returns all classes above a class, at any distance."""
    above, left = set[str](), [class_id]
    while left:
        new = parents.get(left.pop(), set()) - above
        above |= new
        left += new
    return above


def implied_columns(parents: Mapping[str, set[str]], class_ids: Sequence[str]) -> list[IntArray]:
    """Returns for each class the columns of its ancestors in the vocabulary, also of those above a class outside it."""
    column = {class_id: k for k, class_id in enumerate(class_ids)}
    above = (ancestors(parents, class_id) for class_id in class_ids)
    return [np.array(sorted(column[one] for one in classes if one in column), np.int64) for classes in above]


def expand(labels: SplitLabels, class_ids: Sequence[str], parents: Parents) -> SplitLabels:
    """Returns the labels of a split with those that its positives imply.

    A verified negative is never overridden; such conflicts are counted. Full labels are expanded too, where they are
    known: there a class is negative only because it was not listed, so an implied class becomes positive. The counts of
    verified labels, and with them the class groups, stay those of the labels that people gave.
    """
    table, num_classes = labels.table, len(class_ids)
    implied = implied_columns(parents, class_ids)
    positive, negative, truth = (_cells(table[name], num_classes) for name in ("positives", "negatives", "truth"))
    truth = each_once(np.concatenate([truth, _above(truth, implied)]))
    negative = np.setdiff1d(negative, truth, assume_unique=True)
    above = np.setdiff1d(_above(positive, implied), positive, assume_unique=True)
    new = np.setdiff1d(above, negative, assume_unique=True)
    positive = each_once(np.concatenate([positive, new]))
    for name, cells in (("positives", positive), ("negatives", negative), ("truth", truth)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), _lists(cells, table[name], num_classes))
    findings = Findings(labels.findings.counts.copy(), dict(labels.findings.examples))
    findings.add("labels implied by the hierarchy", len(new))
    findings.add("implied labels against a verified negative, left out", len(above) - len(new))
    added = pa.table([table["key"].take(pa.array(new // num_classes)), new % num_classes], schema=IMPLIED)
    return replace(labels, table=table, findings=findings, implied=added)


def _cells(lists: pa.ChunkedArray, num_classes: int) -> IntArray:
    """Returns row x K + column of every label in a column of lists, ascending."""
    column = lists.combine_chunks()
    rows = pc.list_parent_indices(column).to_numpy().astype(np.int64)
    return np.sort(rows * num_classes + pc.list_flatten(column).to_numpy())


def _lists(cells: IntArray, like: pa.ChunkedArray, num_classes: int) -> pa.Array:
    """Inverts `_cells`; rows that are null in the column `like` stay null."""
    ends = np.searchsorted(cells, np.arange(len(like) + 1) * num_classes).astype(np.int32)
    columns = pa.array((cells % num_classes).astype(np.int32))
    return pa.ListArray.from_arrays(pa.array(ends), columns, mask=pc.is_null(like).combine_chunks())


def _above(cells: IntArray, implied: Sequence[IntArray]) -> IntArray:
    """Returns the cells that these imply, each once, ascending."""
    num_classes = len(implied)
    sizes = np.array([len(columns) for columns in implied])
    starts, flat = np.cumsum(sizes) - sizes, np.concatenate([np.zeros(0, np.int64), *implied])
    rows, columns = np.divmod(cells, num_classes)
    many = sizes[columns]
    within = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
    return each_once(np.repeat(rows, many) * num_classes + flat[np.repeat(starts[columns], many) + within])
