"""LL-Cp's corrected entries: a sparse overlay over the labels of the index, keyed by sample."""

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
from raypaml.labels import POSITIVE, IntArray
from raypaml.runs.ranks import Ranks
from raypaml.runs.transfer import ComingEntries


class Corrections:
    """Entries (sample row x K + class) whose target is 1 from now on, sorted; the same on every rank.

    A sample is seen once per epoch, so what an epoch corrects is needed, and exchanged, only at its end.
    """

    def __init__(self, num_classes: int, entries: IntArray | None = None):
        self.num_classes = num_classes
        self.entries: IntArray = np.empty(0, np.int64) if entries is None else np.unique(entries)
        self.fresh = ComingEntries()
        """Noted on this rank since the last exchange."""

    def exchange(self, ranks: Ranks) -> None:
        """Make everything noted on any rank effective on all."""
        rows, classes = self.fresh.take()
        self.entries = np.union1d(self.entries, ranks.gather(rows * self.num_classes + classes).astype(np.int64))

    def apply(self, labels: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """Labels [B, K] of these rows with the corrected entries positive; these labels themselves where none is."""
        low, high = (np.searchsorted(self.entries, (rows + end) * self.num_classes) for end in (0, 1))
        position = np.repeat(np.arange(len(rows)), high - low)
        found = np.concatenate([np.empty(0, np.int64), *(self.entries[a:b] for a, b in zip(low, high, strict=True))])
        if not len(found):
            return labels
        labels = labels.clone()
        labels[torch.from_numpy(position), torch.from_numpy(found % self.num_classes)] = POSITIVE
        return labels

    def write(self, file: Path | BinaryIO, index: Index) -> None:
        """Write the overlay as Parquet: sample key, class column."""
        table = pa.table(
            {
                "key": pa.array(index.keys(self.entries // self.num_classes), pa.string()),
                "class": (self.entries % self.num_classes).astype(np.int32),
            }
        )
        pq.write_table(table, file)

    @classmethod
    def read(cls, path: Path, index: Index) -> Corrections:
        """Read an overlay for the samples of this index; a key that it lacks is refused."""
        table = pq.read_table(path)
        rows, classes = index.rows_of(table["key"]), table["class"].to_numpy()
        if len(classes) and not 0 <= classes.min() <= classes.max() < index.num_classes:
            raise ValueError(f"{path}: classes {classes.min()} to {classes.max()}, expected 0..{index.num_classes - 1}")
        return cls(index.num_classes, rows * index.num_classes + classes)
