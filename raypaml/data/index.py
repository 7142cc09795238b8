"""The index of a split: the place of every image in its shard, and its labels, in one memory-mapped Arrow file.

Training reads images by their byte offset, and labels from the index. The tars stay plain WebDataset shards, which
other programs can read without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypaml.cli import command, say
from raypaml.data.index_check import check_table
from raypaml.data.index_facts import INDEX_AGAIN, IndexFacts
from raypaml.data.index_table import Ragged, only_chunk, shared_numbers
from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED, Vocabulary
from raypaml.sealed import SEAL
from raypaml.sealed_tables import map_arrow, write_arrow

_CHECKS = "index-1"
"""Version of the checks of an index; a higher one makes every node check its indexes again."""

Cells = tuple[NDArray[np.int64], NDArray[np.int8]]
"""[E] cells of a flattened label matrix (row x K + class), and their labels."""


class Index:
    """The opened index of one split; its rows are the samples, in the order of the shards."""

    def __init__(self, table: pa.Table, where: Path):
        facts = IndexFacts.of(table.schema.metadata, where)
        self.where, self.table = where, table
        self.shards, self.shard_bytes = facts.shards, facts.shard_bytes
        self.vocabulary_digest, self.vocabulary_content = facts.vocabulary, facts.vocabulary_content
        self.num_classes, self.has_truth, self.tar_form = facts.num_classes, facts.has_truth, facts.tar_form
        self.digest = (table.schema.metadata or {}).get(SEAL.encode(), b"").decode()
        """The file's own digest; empty in files of earlier versions."""
        self.key_column: pa.ChunkedArray = table["key"]
        self.shard, self.offset, self.size, self.crc32 = (
            shared_numbers(only_chunk(table[name])) for name in ("shard", "offset", "size", "crc32")
        )
        self.positives, self.negatives, self._truth = (Ragged.of(table[n]) for n in ("positives", "negatives", "truth"))

    def __reduce__(self) -> tuple[Callable[[Path], Index], tuple[Path]]:
        return open_index, (self.where,)  # another process maps the file again instead of copying it

    def __len__(self) -> int:
        return len(self.shard)

    def keys(self, rows: NDArray[np.int64]) -> list[str]:
        """The sample keys of these rows."""
        return list(self.key_column.take(pa.array(rows)).to_pylist())

    def rows_of(self, keys: pa.ChunkedArray) -> NDArray[np.int64]:
        """The rows of these sample keys. Raises ValueError if one of them is not in this index."""
        positions = pc.index_in(keys, value_set=self.key_column)
        if positions.null_count:
            unknown = keys.filter(pc.is_null(positions)).to_pylist()
            raise ValueError(
                f"{self.where}: {len(unknown)} of {len(keys)} keys are not in this index, such as {unknown[:3]}"
            )
        rows: NDArray[np.int64] = positions.to_numpy().astype(np.int64)
        return rows

    def rows_of_shard(self, shard: int) -> NDArray[np.int64]:
        """The rows of one shard's samples."""
        return np.arange(*np.searchsorted(self.shard, (shard, shard + 1)))

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Number of samples of each shard."""
        ends = np.searchsorted(self.shard, np.arange(len(self.shards)), "right")
        return tuple(np.diff(ends, prepend=0).tolist())

    @property
    def num_labels(self) -> int:
        """Number of observed entries of the split."""
        return sum(int(ragged.offsets[-1] - ragged.offsets[0]) for ragged in (self.positives, self.negatives))

    def classes(self, column: str, row: int) -> list[int]:
        """The classes listed for one sample in the column `positives`, `negatives` or `truth`."""
        ragged = {"positives": self.positives, "negatives": self.negatives, "truth": self._truth}[column]
        return [int(k) for k in ragged.values[ragged.offsets[row] : ragged.offsets[row + 1]]]

    def boxes(self, row: int) -> list[dict[str, float]]:
        """The annotated boxes of one sample: the column of the class, and the corners x0 y0 x1 y1 in pixels."""
        return list(self.table["boxes"][row].as_py() or ())

    def label_cells(self, rows: NDArray[np.int64]) -> Cells:
        """The observed cells of the label matrix [B, K] of these rows."""
        positives, negatives = self._flat(self.positives, rows), self._flat(self.negatives, rows)
        labels = np.repeat(np.array([POSITIVE, NEGATIVE], np.int8), (len(positives), len(negatives)))
        return np.concatenate([positives, negatives]), labels

    def truth_cells(self, rows: NDArray[np.int64]) -> Cells:
        """The positive cells of the full labels [B, K] of these rows. Raises ValueError where these are not known."""
        if not self.has_truth:
            raise ValueError(f"{self.where}: the full labels of this data set are not known; choose another scheme")
        positives = self._flat(self._truth, rows)
        return positives, np.full(len(positives), POSITIVE, np.int8)

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.int8]:
        """The observed labels [B, K] of these rows."""
        return self._dense(rows, self.label_cells(rows), UNOBSERVED)

    def truth(self, rows: NDArray[np.int64]) -> NDArray[np.int8]:
        """The full labels [B, K], for analysis and the scheme `full`. Raises ValueError where they are not known."""
        return self._dense(rows, self.truth_cells(rows), NEGATIVE)

    def _flat(self, ragged: Ragged, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        position, classes = ragged.cells(rows)
        return position * self.num_classes + classes

    def _dense(self, rows: NDArray[np.int64], cells: Cells, rest: int) -> NDArray[np.int8]:
        labels = np.full(len(rows) * self.num_classes, rest, np.int8)
        labels[cells[0]] = cells[1]
        return labels.reshape(len(rows), self.num_classes)


def write_index(
    path: Path,
    rows: pa.Table,
    *,
    shards: Sequence[str],
    shard_bytes: Sequence[int],
    vocabulary: Vocabulary,
    has_truth: bool,
    tar_form: Mapping[str, str] | None = None,
) -> None:
    """Write the index of a split, whole or not at all.

    Args:
        path: the file.
        rows: the samples, with the columns of SCHEMA, in the order of the shards.
        shards: the file names of the shards.
        shard_bytes: their sizes.
        vocabulary: the classes.
        has_truth: whether the full labels are known.
        tar_form: how samples are written in tars that raypaml did not write (`data.label_forms`).
    """
    facts = IndexFacts(
        shards=list(shards),
        shard_bytes=list(shard_bytes),
        vocabulary=vocabulary.digest,
        vocabulary_content=vocabulary.content_digest,
        num_classes=len(vocabulary),
        has_truth=has_truth,
        tar_form=dict(tar_form or {}),
    )
    write_arrow(path, rows.replace_schema_metadata(facts.metadata()))  # one record batch: columns are not copied


def open_index(path: Path) -> Index:
    """Memory-map the index of a split, after its bytes and its values were checked, once on each node.

    For 3.66 million samples and 5,000 classes (290 MB) the check takes 0.7 s of one core, a third of it for the digest.

    Raises:
        ValueError: it is damaged, or holds what `write_index` would not write; the message names column and row.
    """
    return Index(map_arrow(path, INDEX_AGAIN, lambda table, sealed: _check(table, path, sealed=sealed), _CHECKS), path)


def _check(table: pa.Table, path: Path, *, sealed: bool) -> None:
    check_table(table, IndexFacts.of(table.schema.metadata, path), path)
    if not sealed:
        say(
            f"{path}: an index of an earlier version, without a digest, so that damage to its values goes unnoticed; "
            f"{command('shard verify')} DIR compares it with its shards"
        )
