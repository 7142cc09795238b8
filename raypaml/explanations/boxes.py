"""Reads boxes of objects from the box CSVs of Open Images (V3 and later), to compare maps with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from raypaml.bounded import Unpacked
from raypaml.data.index import Index
from raypaml.data.index_table import BOX_SIDES
from raypaml.files import check_readable
from raypaml.labels import Vocabulary

_SIDES = ("XMin", "YMin", "XMax", "YMax")
_TYPES = {"ImageID": pa.string(), "LabelName": pa.string(), **dict.fromkeys(_SIDES, pa.float64())}


@dataclass(frozen=True)
class Boxes:
    """Boxes of n objects in the images of a split, ordered by sample."""

    row: NDArray[np.int64]
    """[n] sample number of the image."""
    class_index: NDArray[np.int64]
    """[n] column of the object's class in the vocabulary."""
    corners: NDArray[np.float64]
    """[n, 4] x0 y0 x1 y1 in pixels of the split's images."""

    def boxes(self, row: int) -> list[dict[str, float]]:
        """Class column and pixel corners of each box of one sample, as `Index.boxes` gives them."""
        here = slice(*np.searchsorted(self.row, (row, row + 1)))
        names = ("class", *BOX_SIDES)
        pairs = zip(self.class_index[here], self.corners[here], strict=True)
        return [dict(zip(names, (int(k), *corners.tolist()), strict=True)) for k, corners in pairs]

    def between(self, first: int, end: int) -> Boxes:
        """The boxes of the samples from `first` to `end` - 1."""
        these = slice(*np.searchsorted(self.row, (first, end)))
        return Boxes(self.row[these], self.class_index[these], self.corners[these])


def read_boxes(path: Path, index: Index, vocabulary: Vocabulary, image: tuple[int, int]) -> tuple[Boxes, str]:
    """The boxes of a split from a CSV with ImageID, LabelName, XMin, XMax, YMin, YMax, sides as shares of 0 to 1.

    Args:
        path: the CSV file; further columns are ignored.
        index: the index of the split, whose keys are the image ids.
        vocabulary: the classes, whose ids are the label names.
        image: H, W of the split's images in pixels.

    Returns:
        The boxes, and a sentence that counts those that were left out.

    Raises:
        ValueError: no such table, or none of its boxes is in this split.
    """
    table = _read(path)
    rows = pc.index_in(table["ImageID"], value_set=index.key_column)
    classes = pc.index_in(table["LabelName"], value_set=pa.array(vocabulary.class_ids))
    corners = np.stack([table[side].to_numpy() for side in _SIDES], 1)
    whole = ((corners >= 0) & (corners <= 1)).all(1) & (corners[:, :2] < corners[:, 2:]).all(1)
    here, known = (column.is_valid().to_numpy(zero_copy_only=False) for column in _whole(rows, classes))
    chosen = np.flatnonzero(here & known & whole)
    said = (
        f"{path}: {len(chosen):,} of {len(table):,} boxes; {(~here).sum():,} of images that are not in the split, "
        f"{(here & ~known).sum():,} of classes not in the vocabulary, {(here & known & ~whole).sum():,} with sides "
        "that are not shares of 0 to 1"
    )
    if not len(chosen):
        raise ValueError(f"boxes={said}")
    row, class_index = (
        column.take(pa.array(chosen)).to_numpy(zero_copy_only=False) for column in _whole(rows, classes)
    )
    order, pixels = np.argsort(row, kind="stable"), corners[chosen] * np.array([image[1], image[0]] * 2)
    return Boxes(row.astype(np.int64)[order], class_index.astype(np.int64)[order], pixels[order]), said


def _whole(*columns: pa.ChunkedArray) -> list[pa.Array]:
    return [column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column for column in columns]


def _read(path: Path) -> pa.Table:
    try:
        options = csv.ConvertOptions(column_types=_TYPES, include_columns=list(_TYPES))
        with Unpacked(path, f"boxes={path}") as file:
            return csv.read_csv(file, convert_options=options)
    except (OSError, KeyError, pa.ArrowException) as error:
        check_readable(path)
        reason = str(error).split("\n")[0]
        raise ValueError(f"boxes={path}: not a table with the columns {', '.join(_TYPES)} ({reason})") from None
