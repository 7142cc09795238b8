"""How an index is laid out: the columns of its Arrow file, and views of them that share the mapped file's memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_CLASSES = pa.list_(pa.int32())
BOX_SIDES = ("x0", "y0", "x1", "y1")
"""Left, top, right and bottom of a box, in pixels of its image."""
_BOXES = pa.list_(pa.struct([("class", pa.int32()), *((side, pa.float32()) for side in BOX_SIDES)]))
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int32()),
        ("crc32", pa.uint32()),
        ("positives", _CLASSES),
        ("negatives", _CLASSES),
        ("truth", _CLASSES),
        ("boxes", _BOXES),
    ]
)


def only_chunk(column: pa.ChunkedArray) -> pa.Array:
    """The array of a column of an index, which is one record batch."""
    assert column.num_chunks <= 1, "an index is one record batch"
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def shared_numbers(array: pa.Array) -> NDArray[Any]:
    """The numbers of an Arrow array of any type, as a view of the mapped file, whose pages all processes share.

    They are converted by DLPack, because pyarrow's `to_numpy` imports pandas, which takes 30 MB in every process.
    """
    numbers: NDArray[Any] = np.from_dlpack(array)
    return numbers


@dataclass(frozen=True)
class Ragged:
    """Lists of class columns for N samples: `values[offsets[i]:offsets[i + 1]]` are those of sample i."""

    offsets: NDArray[np.int32] | NDArray[np.int64]
    values: NDArray[np.int32]

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> Ragged:
        """View an Arrow list column without copying it."""
        array = only_chunk(column)
        return cls(shared_numbers(array.offsets), shared_numbers(array.values))

    def cells(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The position in `rows` and the class of every entry listed for these samples."""
        position, places = self.places(rows)
        return position, self.values[places]

    def places(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The position in `rows` and the index into `values` of every entry listed for these samples."""
        counts = self.offsets[rows + 1] - self.offsets[rows]
        position = np.repeat(np.arange(len(rows)), counts)
        starts = np.repeat(self.offsets[rows] - (np.cumsum(counts) - counts), counts)
        return position, starts + np.arange(len(position))
