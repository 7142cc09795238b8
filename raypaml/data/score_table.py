"""A sparse table of another model's scores for entries of a split, in one memory-mapped Arrow file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypaml.data.index_table import Ragged, shared_numbers
from raypaml.labels import IntArray
from raypaml.sealed_tables import map_arrow, write_arrow

_ENTRY = pa.struct([("class", pa.int32()), ("score", pa.float32())])
_SCHEMA = pa.schema([("entries", pa.large_list(_ENTRY))])
_ABOUT = b"about"
_AGAIN = "delete it, it is made again"


class ScoreTable:
    """An opened table: for each of N samples, the classes (of K) that have a score, and these scores."""

    def __init__(self, table: pa.Table, num_classes: int):
        entries = table["entries"].chunk(0)
        self.num_classes = num_classes
        self.about = (table.schema.metadata or {})[_ABOUT].decode()
        """A sentence about what was read from the user's file and what was skipped."""
        self._classes = Ragged(shared_numbers(entries.offsets), shared_numbers(entries.values.field("class")))
        self._scores: NDArray[np.float32] = shared_numbers(entries.values.field("score"))

    def scores(self, rows: IntArray) -> NDArray[np.float32]:
        """The scores [B, K] of these samples, NaN for an entry that has none."""
        dense = np.full((len(rows), self.num_classes), np.nan, np.float32)
        position, places = self._classes.places(rows)
        dense[position, self._classes.values[places]] = self._scores[places]
        return dense


def write_scores(
    path: Path, cells: IntArray, scores: NDArray[np.float32], num_samples: int, num_classes: int, about: str
) -> None:
    """Write a table, whole or not at all; other processes may be writing the same one at the same time.

    Args:
        path: the file.
        cells: [E] entries (sample row x K + class), ascending.
        scores: [E] scores of these entries.
        num_samples, num_classes: N and K.
        about: the sentence of `ScoreTable.about`.
    """
    offsets = np.searchsorted(cells, np.arange(num_samples + 1) * num_classes)
    columns = [pa.array((cells % num_classes).astype(np.int32)), pa.array(scores)]
    entries = pa.StructArray.from_arrays(columns, fields=list(_ENTRY))
    lists = pa.LargeListArray.from_arrays(pa.array(offsets.astype(np.int64)), entries)
    table = pa.table([lists], schema=_SCHEMA.with_metadata({_ABOUT: about}))
    write_arrow(path, table, shared=True)  # one record batch: columns are read without copies


def open_scores(path: Path, num_samples: int, num_classes: int) -> ScoreTable:
    """Memory-map a table. Raises ValueError where it is not one of this number of samples."""
    table = map_arrow(path, _AGAIN)
    if table.schema != _SCHEMA or table["entries"].num_chunks != 1 or len(table) != num_samples:
        raise ValueError(f"{path}: not a table of the scores of {num_samples:,} samples; {_AGAIN}")
    return ScoreTable(table, num_classes)
