"""The entries that LL-Cp corrects: a sparse overlay on the labels of the index."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypaml.data.index import Index
from raypaml.labels import POSITIVE, IntArray, each_once
from raypaml.runs.ranks import Ranks
from raypaml.runs.transfer import ComingEntries


class Corrections:
    """The entries whose target is 1 from now on, as sorted numbers row x K + class; the same on every rank.

    A sample is seen once per epoch, so that new corrections are needed, and exchanged, only at the end of an epoch.
    """

    def __init__(self, num_classes: int, entries: IntArray | None = None):
        self.num_classes = num_classes
        self.entries: IntArray = np.empty(0, np.int64) if entries is None else each_once(entries)
        self.fresh = ComingEntries()
        """Entries noted on this rank since the last exchange."""

    def exchange(self, ranks: Ranks) -> None:
        """Add the entries noted on any rank to the corrections of all; a collective."""
        rows, classes = self.fresh.take()
        fresh = ranks.gather(rows * self.num_classes + classes).astype(np.int64)
        self.entries = each_once(np.concatenate([self.entries, fresh]))

    def apply(self, labels: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """Make the corrected entries of labels [B, K] of these rows positive; the same tensor where there are none."""
        low, high = (np.searchsorted(self.entries, (rows + end) * self.num_classes) for end in (0, 1))
        position = np.repeat(np.arange(len(rows)), high - low)
        corrected = np.concatenate(
            [np.empty(0, np.int64), *(self.entries[a:b] for a, b in zip(low, high, strict=True))]
        )
        if not len(corrected):
            return labels
        labels = labels.clone()
        labels[torch.from_numpy(position), torch.from_numpy(corrected % self.num_classes)] = POSITIVE
        return labels

    def write(self, file: Path | BinaryIO, index: Index) -> None:
        """Write the overlay as a Parquet file with the columns `key` and `class`."""
        table = pa.table(
            {
                "key": pa.array(index.keys(self.entries // self.num_classes), pa.string()),
                "class": (self.entries % self.num_classes).astype(np.int32),
            }
        )
        pq.write_table(table, file)

    @classmethod
    def read(cls, path: Path, index: Index) -> Corrections:
        """Read an overlay for the samples of an index; ValueError for keys or classes that it does not have."""
        table = pq.read_table(path)
        rows, classes = index.rows_of(table["key"]), table["class"].to_numpy()
        if len(classes) and not 0 <= classes.min() <= classes.max() < index.num_classes:
            raise ValueError(f"{path}: classes {classes.min()} to {classes.max()}, expected 0..{index.num_classes - 1}")
        return cls(index.num_classes, rows * index.num_classes + classes)
