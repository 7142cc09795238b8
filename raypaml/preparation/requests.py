"""What every source gives, whatever its files look like: classes, and the labelled images of a split."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypaml.data.index import SCHEMA
from raypaml.labels import IntArray
from raypaml.preparation.findings import Findings

LABELS = ("positives", "negatives")
KNOWN = ("truth", "boxes")
"""Columns that few sources fill."""
REQUEST = pa.schema([SCHEMA.field("key"), ("file", pa.string()), *(SCHEMA.field(name) for name in (*LABELS, *KNOWN))])
"""An image that a data set asks for: its key, its file below the folder of images (null: KEY.jpg), class columns of its
labels, and where known all positives and boxes in pixels of the upright source image."""


@dataclass(frozen=True)
class Classes:
    """The classes asked for, and all that the source knows."""

    class_ids: tuple[str, ...]
    names: tuple[str, ...]
    known: frozenset[str] = frozenset()


@dataclass(frozen=True)
class SplitLabels:
    """What is known of one split."""

    table: pa.Table
    """Rows of REQUEST: every image that becomes a sample, each key once."""
    verified: dict[str, IntArray]
    """[K] positives and negatives of the table, as far as people gave them."""
    findings: Findings
    others: dict[str, pa.Array] = field(default_factory=dict)
    """Fate -> keys of images that are not asked for."""
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """Fate -> files that lie among the images and are not taken."""
    implied: pa.Table | None = None
    """key, class of the positives in the table that a hierarchy added; None: none was given."""


def as_requests(table: pa.Table) -> pa.Table:
    """A table with some columns of REQUEST as one with all; a column that is missing is null."""
    columns = [
        table[column.name].cast(column.type) if column.name in table.column_names else pa.nulls(len(table), column.type)
        for column in REQUEST
    ]
    return pa.table(columns, schema=REQUEST)


def types_first(requests: pa.Table) -> pa.Table:
    """These requests in their order, but the first ones fill every list of labels that any of them fills.

    HF datasets takes the types of all columns from the first five samples, and an empty list has none.
    """
    lengths = [pc.fill_null(pc.list_value_length(requests[name]), 0).to_numpy() for name in (*LABELS, *KNOWN)]
    front = np.array(sorted({int(np.argmax(length > 0)) for length in lengths if length.any()}), np.int64)
    order = np.concatenate([front, np.setdiff1d(np.arange(len(requests)), front)])
    return requests.take(pa.array(order)).combine_chunks()
