"""The index of a split: the place of every image in its shard, and its labels, in one memory-mapped Arrow file.

Training reads images by their byte offset, and labels from the index. The tars stay plain WebDataset shards, which
other programs can read without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypaml.cli import command
from raypaml.files import check_readable, whole
from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED, Vocabulary

_FORMAT = 1
CHECK_ROWS = 2048
"""Number of rows whose labels are checked together."""

TAR_FORM = ("label_form", "image_suffix", "dotted_keys")
"""Keys of the index's metadata that say how samples are written in tars that raypaml did not write."""

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


def _only_chunk(column: pa.ChunkedArray) -> pa.Array:
    assert column.num_chunks <= 1, "an index is one record batch"
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def shared_numbers(array: pa.Array) -> NDArray[Any]:
    """The numbers of an Arrow array of any type, as a view of the mapped file, whose pages all processes share.

    They are converted by DLPack, because pyarrow's `to_numpy` imports pandas, which takes 30 MB in every process.
    """
    numbers: NDArray[Any] = np.from_dlpack(array)
    return numbers


Cells = tuple[NDArray[np.int64], NDArray[np.int8]]
"""[E] cells of a flattened label matrix (row x K + class), and their labels."""


@dataclass(frozen=True)
class Ragged:
    """Lists of class columns for N samples: `values[offsets[i]:offsets[i + 1]]` are those of sample i."""

    offsets: NDArray[np.int32] | NDArray[np.int64]
    values: NDArray[np.int32]

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> Ragged:
        """View an Arrow list column without copying it."""
        array = _only_chunk(column)
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


class Index:
    """The opened index of one split; its rows are the samples, in the order of the shards."""

    def __init__(self, table: pa.Table, where: Path):
        meta = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if meta.get("format") != str(_FORMAT) or table.schema.names != SCHEMA.names:
            raise ValueError(
                f"{where}: not an index of format {_FORMAT}; write it again with {command('shard index')} DIR"
            )
        self.where = where
        self.shards: list[str] = json.loads(meta["shards"])
        self.shard_bytes: list[int] = json.loads(meta["shard_bytes"])
        self.vocabulary_digest = meta["vocabulary"]
        self.num_classes = int(meta["num_classes"])
        self.has_truth = meta["has_truth"] == "1"
        self.tar_form = {name: meta[name] for name in TAR_FORM if name in meta}
        if any(Path(name).name != name for name in self.shards):
            raise ValueError(f"{where}: names shards outside its folder; write it again")
        self.key_column: pa.ChunkedArray = table["key"]
        self._boxes = table["boxes"]
        self.shard, self.offset, self.size, self.crc32 = (
            shared_numbers(_only_chunk(table[name])) for name in ("shard", "offset", "size", "crc32")
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
        return list(self._boxes[row].as_py() or ())

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

    def check(self) -> None:
        """Raise ValueError where samples lie outside their shards, or have impossible or contradictory labels."""
        ends = np.array([0, *self.shard_bytes], np.int64)[1:]
        if len(self) and (self.shard[0] < 0 or self.shard[-1] >= len(ends) or (np.diff(self.shard) < 0).any()):
            raise ValueError(f"{self.where}: samples are not in the order of its {len(ends)} shards; write it again")
        chunks = (slice(start, start + CHECK_ROWS) for start in range(0, len(self), CHECK_ROWS))
        inside = all(bool((self.offset[c] + self.size[c] <= ends[self.shard[c]]).all()) for c in chunks)
        if len(self) and (self.offset.min() < 0 or self.size.min() < 0 or not inside):
            raise ValueError(f"{self.where}: images outside their shards; write it again")
        for ragged in (self.positives, self.negatives, self._truth):
            if len(ragged.values) and not 0 <= ragged.values.min() <= ragged.values.max() < self.num_classes:
                raise ValueError(
                    f"{self.where}: class columns outside 0..{self.num_classes - 1}; write the index again"
                )
        seen = np.zeros(CHECK_ROWS * self.num_classes, bool)
        both = [row for start in range(0, len(self), CHECK_ROWS) for row in self._contradictions(start, seen)]
        if both:
            keys = self.keys(np.array(both[:5]))
            raise ValueError(f"{self.where}: {len(both)} entries both positive and negative, such as in {keys}")

    def _contradictions(self, start: int, seen: NDArray[np.bool_]) -> list[int]:
        """The row of every entry that is both positive and negative, from row `start` on, among CHECK_ROWS rows.

        `seen` is scratch memory that is all False before and after.
        """
        rows = np.arange(start, min(start + CHECK_ROWS, len(self)))
        positives, negatives = self._flat(self.positives, rows), self._flat(self.negatives, rows)
        seen[positives] = True
        both = negatives[seen[negatives]]
        seen[positives] = False
        return [int(row) for row in rows[both // self.num_classes]]


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
    meta = {
        "format": str(_FORMAT),
        "shards": json.dumps(list(shards)),
        "shard_bytes": json.dumps(list(shard_bytes)),
        "vocabulary": vocabulary.digest,
        "num_classes": str(len(vocabulary)),
        "has_truth": "1" if has_truth else "0",
    }
    table = rows.combine_chunks().replace_schema_metadata(meta | dict(tar_form or {}))
    with (
        whole(path) as unfinished,
        pa.OSFile(str(unfinished), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=max(len(table), 1))  # one record batch: columns are read without copies


def open_index(path: Path) -> Index:
    """Memory-map the index of a split."""
    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        if file.num_record_batches > 1:
            raise ValueError(f"{path}: an index of {file.num_record_batches} record batches, not one; write it again")
        table = file.read_all()
    except (pa.ArrowInvalid, OSError) as error:
        check_readable(path)
        raise ValueError(f"{path}: not a readable index ({error}); write it again") from None
    return Index(table, path)
