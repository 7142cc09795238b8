"""What every reader returns, whatever its files look like: the classes, and the labelled images of each split."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypaml.data.index_table import SCHEMA
from raypaml.labels import IntArray
from raypaml.preparation.findings import Findings

LABELS = ("positives", "negatives")
KNOWN = ("truth", "boxes")
"""Columns that few sources fill."""
Parameters = dict[str, str | int | float | None]
"""The settings that decide the bytes of a data set, by name, as its record keeps them."""
REQUEST = pa.schema([SCHEMA.field("key"), ("file", pa.string()), *(SCHEMA.field(name) for name in (*LABELS, *KNOWN))])
"""A row for each image that a data set requests: its key, its file below the folder of images (null: KEY.jpg), the
class columns of its labels and, where known, all its positives and its boxes in pixels of the upright source image."""


class Corners(TypedDict):
    """The sides of a box in pixels: left, top, right, bottom."""

    x0: float
    y0: float
    x1: float
    y1: float


SourceBox = TypedDict("SourceBox", {"class": int, "x0": float, "y0": float, "x1": float, "y1": float})
"""A box with the column of its class, in pixels of the upright source image."""
NamedBox = TypedDict("NamedBox", {"class": str, "x0": float, "y0": float, "x1": float, "y1": float})
"""A box with the name of its class, before the classes have columns."""


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, in the order of their columns."""

    class_ids: tuple[str, ...]
    names: tuple[str, ...]
    known: frozenset[str] = frozenset()
    """Ids of all classes that the source knows, also those left out of the data set."""


@dataclass(frozen=True)
class SplitLabels:
    """The labels of one split, and what was noticed while they were read."""

    table: pa.Table
    """Rows of REQUEST, one for each image that is to become a sample; each key occurs once."""
    verified: dict[str, IntArray]
    """`positives` and `negatives`: [K] how many of the table's labels people gave to each class."""
    findings: Findings
    others: dict[str, pa.Array] = field(default_factory=dict)
    """Keys of images that are not requested, by the fate that the ledger gives them."""
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """Files among the images that are not read, by the fate that the ledger gives them."""
    implied: pa.Table | None = None
    """Key and class of the positives in the table that a hierarchy added; None where no hierarchy was given."""


def as_requests(table: pa.Table) -> pa.Table:
    """Returns a table with all columns of REQUEST; those that the given table lacks are null."""
    columns = [
        table[column.name].cast(column.type) if column.name in table.column_names else pa.nulls(len(table), column.type)
        for column in REQUEST
    ]
    return pa.table(columns, schema=REQUEST)


def types_first(requests: pa.Table, order: IntArray) -> IntArray:
    """Returns an order with a few rows moved to the front, so that the first ones fill every list that any one fills.

    HF datasets takes the types of all columns from the first five samples, and an empty list has none.

    Args:
        requests: the requests.
        order: rows of them.
    """
    filled = [pc.fill_null(pc.list_value_length(requests[name]), 0).to_numpy()[order] > 0 for name in (*LABELS, *KNOWN)]
    front = sorted({int(np.argmax(some)) for some in filled if some.any()})
    return np.concatenate([order[front], np.delete(order, front)])
