"""Which labels of a prepared data set are missed positives, by the truth of the generated release it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypaml.data.index import Index
from raypaml.data.index_table import only_chunk
from raypaml.labels import NUM_GROUPS, POSITIVE, FloatArray, IntArray, RealArray, Vocabulary
from raypaml.preparation.findings import Findings
from raypaml.preparation.openimages.image_ids import parse_ids
from tools.full_size.labels import within
from tools.full_size.release import RELEASE

_ROWS = 1 << 18
"""Images whose labels are read at once."""
_CELLS = 1 << 20
"""Rows of the truth that are read at once."""


@dataclass(frozen=True, eq=False)
class SplitTruth:
    """A split of a data set, and which of its unobserved entries are positive in truth."""

    index: Index
    class_group: IntArray
    """[K] group of each class, from 1."""
    missed: IntArray
    """Missed positives as ascending numbers row x K + class."""

    def is_missed(self, entries: IntArray) -> NDArray[np.bool_]:
        """Returns which of these entries, numbers row x K + class, are missed positives."""
        return within(entries, self.missed)

    def by_group(self, entries: IntArray) -> IntArray:
        """Returns the number of these entries in the classes of each group, and of all of them: [G1 .. G5, All]."""
        return self._sums(entries % self.index.num_classes)

    def _sums(self, classes: NDArray[np.integer]) -> IntArray:
        counts: IntArray = np.bincount(self.class_group[classes], minlength=NUM_GROUPS + 1)
        sums: IntArray = np.r_[counts[1:], counts.sum()]
        return sums

    @property
    def positives(self) -> IntArray:
        """[G1 .. G5, All] observed positives."""
        return self._sums(self.index.positives.values)

    @property
    def unobserved(self) -> IntArray:
        """[G1 .. G5, All] unobserved entries."""
        classes = self._sums(np.arange(self.index.num_classes))
        return classes * len(self.index) - self.positives - self._sums(self.index.negatives.values)

    @property
    def chance(self) -> FloatArray:
        """[G1 .. G5, All] share of missed positives among the unobserved entries: what a random choice would find."""
        return shares(self.by_group(self.missed), self.unobserved)

    @property
    def true_cells(self) -> IntArray:
        """All that is true, as ascending numbers row x K + class; for the evaluation splits, which are small."""
        rows = np.arange(len(self.index))
        cells, labels = self.index.label_cells(rows)
        return np.sort(np.r_[cells[labels == POSITIVE], self.missed])


def read_truth(release: Path, split: str, index: Index, vocabulary: Vocabulary) -> SplitTruth:
    """Reads the truth of a split for the images that the data set has; memory is that of its labels.

    Raises:
        ValueError: there is no truth, or it is that of another release.
    """
    observed, missed, verified = _observed(index), [np.zeros(0, np.int64)], 0
    for cells, seen in _true_cells(release, split, index, vocabulary):
        known = within(cells, observed)
        verified += int((known & seen).sum())
        missed.append(cells[~known])
    if verified != (positives := len(index.positives.values)):
        raise ValueError(
            f"{release / 'truth'}: knows {verified:,} of the {positives:,} positives of {index.where}; this is the "
            "truth of another release, shard this one"
        )
    return SplitTruth(index, vocabulary.class_group, np.sort(np.concatenate(missed)))


def _observed(index: Index) -> IntArray:
    """Returns the observed entries in ascending order, read some images at a time."""
    parts = [
        np.sort(index.label_cells(rows)[0]) + int(rows[0]) * index.num_classes
        for rows in (np.arange(first, min(first + _ROWS, len(index))) for first in range(0, len(index), _ROWS))
    ]
    return np.concatenate(parts)


def _true_cells(
    release: Path, split: str, index: Index, vocabulary: Vocabulary
) -> Iterator[tuple[IntArray, NDArray[np.bool_]]]:
    """Yields what is true of the images that the data set has, and whether somebody verified it."""
    paths = sorted((release / "truth").glob(f"{split}*.parquet"))
    if not paths:
        raise ValueError(f"{release / 'truth'}: no truth of {split}; the phase release of tools/rehearsal.py writes it")
    ids, shaped = parse_ids(only_chunk(index.key_column), "no ids", Findings())
    if not shaped.all():
        raise ValueError(f"{index.where}: its keys are no image ids of a generated release; give a rehearsal's folder")
    order = np.argsort(ids)
    in_order, columns = ids[order], _columns(release, vocabulary)
    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches(_CELLS):
            image, classes, seen = (batch[name].to_numpy(zero_copy_only=False) for name in batch.schema.names)
            place = np.minimum(np.searchsorted(in_order, image), len(ids) - 1)
            column = columns[classes]
            there = (in_order[place] == image) & (column >= 0)
            yield order[place[there]] * index.num_classes + column[there], seen[there]


def _columns(release: Path, vocabulary: Vocabulary) -> IntArray:
    """Returns the column of the data set for each class of the release, or -1 where it has none."""
    names = (release / "metadata" / RELEASE / "classes-trainable.txt").read_text().split()
    return np.array([vocabulary.index_of.get(name, -1) for name in names], np.int64)


def shares(part: RealArray | IntArray, of: RealArray | IntArray) -> FloatArray:
    """Returns part / of, NaN where there is nothing to have a share of."""
    share: FloatArray = np.divide(part, of, out=np.full(len(of), np.nan), where=np.asarray(of) > 0)
    return share


def keyed_rows(index: Index, keys: pa.Array) -> IntArray:
    """Returns the row of each key in an index; ValueError where it has none."""
    named = keys.dictionary_encode()
    rows: IntArray = index.rows_of(pa.chunked_array([named.dictionary]))[named.indices.to_numpy()]
    return rows
