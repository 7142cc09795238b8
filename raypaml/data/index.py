"""The index of a split: where every image lies and what is known about it, one memory-mapped Arrow file.

Training reads images by byte offset and labels from here; the tars stay plain WebDataset for everybody else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED, Vocabulary

FORMAT = 1

_CLASSES = pa.list_(pa.int32())
_BOXES = pa.list_(pa.struct([("class", pa.int32()), *((side, pa.float32()) for side in ("x0", "y0", "x1", "y1"))]))
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


@dataclass(frozen=True)
class Ragged:
    """Lists of class columns for N samples: `values[offsets[i]:offsets[i + 1]]` belongs to sample i."""

    offsets: NDArray[np.int32]
    values: NDArray[np.int32]

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> Ragged:
        """View an Arrow list column without copying it."""
        array = column.chunk(0) if column.num_chunks else pa.array([], column.type)
        return cls(array.offsets.to_numpy(), array.values.to_numpy())

    def cells(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The (position in `rows`, class) of every entry listed for these samples."""
        counts = self.offsets[rows + 1] - self.offsets[rows]
        position = np.repeat(np.arange(len(rows)), counts)
        starts = np.repeat(self.offsets[rows] - (np.cumsum(counts) - counts), counts)
        return position, self.values[starts + np.arange(len(position))]


class Index:
    """One split's index, opened. Rows are samples, in shard order."""

    def __init__(self, table: pa.Table, where: Path):
        meta = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if meta.get("format") != str(FORMAT) or table.schema.names != SCHEMA.names:
            raise ValueError(f"{where}: not an index of format {FORMAT}; write it again with tools/index_shards.py")
        self.where = where
        self.shards: list[str] = json.loads(meta["shards"])
        self.shard_bytes: list[int] = json.loads(meta["shard_bytes"])
        self.vocabulary_digest = meta["vocabulary"]
        self.num_classes = int(meta["num_classes"])
        self.has_truth = meta["has_truth"] == "1"
        self.key_column: pa.ChunkedArray = table["key"]
        self._boxes = table["boxes"]
        self.shard = table["shard"].to_numpy()
        self.offset = table["offset"].to_numpy()
        self.size = table["size"].to_numpy()
        self.crc32 = table["crc32"].to_numpy()
        self.positives, self.negatives, self._truth = (Ragged.of(table[n]) for n in ("positives", "negatives", "truth"))

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return open_index, (self.where,)  # another process maps the file again instead of copying it

    def __len__(self) -> int:
        return len(self.shard)

    def keys(self, rows: NDArray[np.int64]) -> list[str]:
        """The sample keys of these rows."""
        return list(self.key_column.take(pa.array(rows)).to_pylist())

    def rows_of(self, keys: pa.ChunkedArray) -> NDArray[np.int64]:
        """The rows of these sample keys; ValueError if one is not in this index."""
        rows = pc.index_in(keys, value_set=self.key_column)
        if rows.null_count:
            lost = keys.filter(pc.is_null(rows)).to_pylist()
            raise ValueError(f"{self.where}: {len(lost)} of {len(keys)} keys are not in this index, such as {lost[:3]}")
        found: NDArray[np.int64] = rows.to_numpy().astype(np.int64)
        return found

    def rows_of_shard(self, shard: int) -> NDArray[np.int64]:
        """The rows of one shard's samples."""
        return np.arange(*np.searchsorted(self.shard, (shard, shard + 1)))

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Samples of each shard."""
        ends = np.searchsorted(self.shard, np.arange(len(self.shards)), "right")
        return tuple(np.diff(ends, prepend=0).tolist())

    def classes(self, column: str, row: int) -> list[int]:
        """The classes listed for one sample in the column `positives`, `negatives` or `truth`."""
        ragged = {"positives": self.positives, "negatives": self.negatives, "truth": self._truth}[column]
        return [int(found) for found in ragged.values[ragged.offsets[row] : ragged.offsets[row + 1]]]

    def boxes(self, row: int) -> list[dict[str, float]]:
        """The known boxes of one sample: class column and pixel corners x0 y0 x1 y1."""
        return list(self._boxes[row].as_py() or ())

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.int8]:
        """[B, K] observed labels of these rows."""
        labels = np.full((len(rows), self.num_classes), UNOBSERVED, np.int8)
        labels[self.negatives.cells(rows)] = NEGATIVE
        labels[self.positives.cells(rows)] = POSITIVE
        return labels

    def truth(self, rows: NDArray[np.int64]) -> NDArray[np.int8]:
        """[B, K] full labels, for analysis and for the scheme `full`; refused where they are not known."""
        if not self.has_truth:
            raise ValueError(f"{self.where}: the full labels of this data set are not known; choose another scheme")
        truth = np.full((len(rows), self.num_classes), NEGATIVE, np.int8)
        truth[self._truth.cells(rows)] = POSITIVE
        return truth

    def check(self) -> None:
        """Raise ValueError where a sample names a class outside the vocabulary, or one class with both labels."""
        rows = np.arange(len(self))
        for ragged in (self.positives, self.negatives, self._truth):
            if len(ragged.values) and not 0 <= ragged.values.min() <= ragged.values.max() < self.num_classes:
                raise ValueError(
                    f"{self.where}: class columns outside 0..{self.num_classes - 1}; write the index again"
                )
        positive, negative = (
            position * self.num_classes + classes
            for position, classes in (ragged.cells(rows) for ragged in (self.positives, self.negatives))
        )
        both = np.intersect1d(positive, negative)
        if len(both):
            keys = self.keys(both[:5] // self.num_classes)
            raise ValueError(f"{self.where}: {len(both)} entries both positive and negative, such as in {keys}")


def write_index(
    path: Path,
    rows: pa.Table,
    *,
    shards: Sequence[str],
    shard_bytes: Sequence[int],
    vocabulary: Vocabulary,
    has_truth: bool,
) -> None:
    """Write one split's index, whole or not at all; `rows` follow SCHEMA, in shard order."""
    meta = {
        "format": str(FORMAT),
        "shards": json.dumps(list(shards)),
        "shard_bytes": json.dumps(list(shard_bytes)),
        "vocabulary": vocabulary.digest,
        "num_classes": str(len(vocabulary)),
        "has_truth": "1" if has_truth else "0",
    }
    table = rows.combine_chunks().replace_schema_metadata(meta)
    unfinished = path.with_name(f".{path.name}.unfinished")
    with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(len(table), 1))  # one batch: columns stay zero-copy
    unfinished.replace(path)


def open_index(path: Path) -> Index:
    """Memory-map one split's index."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a readable index ({error}); write it again") from None
    return Index(table, path)
