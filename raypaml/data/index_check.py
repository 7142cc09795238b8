"""Checks an index before anything is computed from it: types, structure, nulls, ranges, keys, contradictions.

A digest shows accidental damage only, and indexes of earlier versions have none. What is checked here therefore makes
every number of the index safe to use as an index into an array, a place in a file or a name, whoever wrote it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypaml.data.index_facts import INDEX_AGAIN, IndexFacts
from raypaml.data.index_table import BOX_SIDES, SCHEMA, Ragged, only_chunk, shared_numbers

_CHECK_ROWS = 2048
"""Number of rows whose labels are checked together."""
_LABELS = ("positives", "negatives", "truth")
_MAY_BE_NULL = ("truth", "boxes")
_PIECE = 1 << 22
"""Bytes of keys that are looked at together."""
_NAMED = 5
"""Number of keys that a message names."""


def check_table(table: pa.Table, facts: IndexFacts, where: Path) -> None:
    """Raise ValueError where an index is not as `write_index` writes it; names file, column, row, value and limit.

    pa.ArrowException where its structure is damaged, such as offsets, counts of nulls, or UTF-8.
    """
    _check_types(table, where)
    table.validate(full=True)
    _Checker(table, facts, where).check()


def _check_types(table: pa.Table, where: Path) -> None:
    if table.schema.names != SCHEMA.names:
        names = ", ".join(table.schema.names)[:200]
        raise ValueError(f"{where}: columns {names}, expected {', '.join(SCHEMA.names)}; {INDEX_AGAIN}")
    for have, want in zip(table.schema, SCHEMA, strict=True):
        if have.type != want.type:
            raise ValueError(f"{where}: column {have.name} is {have.type}, expected {want.type}; {INDEX_AGAIN}")
    if table["key"].num_chunks > 1:  # columns would be copied into every process
        raise ValueError(f"{where}: an index of {table['key'].num_chunks} record batches, not one; {INDEX_AGAIN}")


@dataclass(frozen=True)
class _Checker:
    """An index with right types and offsets, whose values are checked column by column."""

    table: pa.Table
    facts: IndexFacts
    where: Path

    def check(self) -> None:
        """Raise ValueError at the first value that cannot be."""
        self._nulls()
        if len(self.table):
            self._places()
            self._keys()
        for name in _LABELS:
            self._classes(name)
        self._boxes()
        self._contradictions()

    def _refuse(self, column: str, row: int, value: object, limit: str) -> None:
        raise ValueError(f"{self.where}: column {column}, row {row:,}: {value!r}, expected {limit}; {INDEX_AGAIN}")

    def _require(self, column: str, fine: NDArray[np.bool_], values: NDArray[np.generic], limit: str) -> None:
        if not fine.all():
            row = int(np.argmin(fine))
            self._refuse(column, row, values[row].item(), limit)

    def _numbers(self, name: str) -> NDArray[np.int64]:
        numbers: NDArray[np.int64] = shared_numbers(only_chunk(self.table[name]))
        return numbers

    def _nulls(self) -> None:
        for name in SCHEMA.names:
            array = only_chunk(self.table[name])
            lists = pa.types.is_list(array.type)
            if array.null_count and (name not in _MAY_BE_NULL or (name == "truth" and self.facts.has_truth)):
                self._refuse(name, _first(array.is_null()), None, "a value in every row")
            if lists and array.null_count and _hidden_values(array):
                self._refuse(name, _first(array.is_null()), "entries", "none where the list is null")
            for values in _parts(array) if lists else ():
                if values.null_count:
                    self._refuse(name, self._row_of(name, _first(values.is_null())), None, "no null within a list")

    def _places(self) -> None:
        shard, offset, size = (self._numbers(name) for name in ("shard", "offset", "size"))
        count = len(self.facts.shards)
        self._require("shard", (shard >= 0) & (shard < count), shard, f"one of 0..{count - 1}")
        later = np.concatenate([[True], shard[1:] >= shard[:-1]])
        self._require("shard", later, shard, "the order of the shards")
        self._require("size", size >= 0, size, "at least 0 bytes")
        last = np.array(self.facts.shard_bytes, np.int64)[shard] - size  # not offset + size, which may overflow
        fine = (offset >= 0) & (offset <= last)
        if not fine.all():
            row = int(np.argmin(fine))
            limit = f"0..{last[row]} for {size[row]} bytes within {self.facts.shards[shard[row]]}"
            self._refuse("offset", row, int(offset[row]), limit)

    def _keys(self) -> None:
        keys, form = only_chunk(self.table["key"]), self.facts.form
        if _only_of(keys, form.usual_characters):
            return
        for row, key in enumerate(keys):
            if not form.is_key(key.as_py()):
                self._refuse("key", row, key.as_py()[:80], f"a key{form.key_rule}")

    def _classes(self, name: str) -> None:
        self._class_values(name, Ragged.of(self.table[name]).values)

    def _class_values(self, name: str, values: NDArray[np.int32]) -> None:
        fine = (values >= 0) & (values < self.facts.num_classes)
        if not fine.all():
            place = int(np.argmin(fine))
            limit = f"a class in 0..{self.facts.num_classes - 1}"
            self._refuse(name, self._row_of(name, place), int(values[place]), limit)

    def _boxes(self) -> None:
        boxes = only_chunk(self.table["boxes"]).values
        self._class_values("boxes", shared_numbers(boxes.field("class")))
        for side in BOX_SIDES:
            fine = np.isfinite(corner := shared_numbers(boxes.field(side)))
            if not fine.all():
                place = int(np.argmin(fine))
                self._refuse("boxes", self._row_of("boxes", place), float(corner[place]), "corners in pixels")

    def _row_of(self, name: str, place: int) -> int:
        """The row whose list holds this place among all values of a column of lists."""
        offsets = shared_numbers(only_chunk(self.table[name]).offsets)
        return int(np.searchsorted(offsets, place, "right")) - 1

    def _contradictions(self) -> None:
        positives, negatives = (Ragged.of(self.table[name]) for name in ("positives", "negatives"))
        seen = np.zeros(_CHECK_ROWS * self.facts.num_classes, bool)  # scratch, all False before and after each chunk
        both: list[int] = []
        for start in range(0, len(self.table), _CHECK_ROWS):
            rows = np.arange(start, min(start + _CHECK_ROWS, len(self.table)))
            there, cells = self._cells(positives, rows), self._cells(negatives, rows)
            seen[there] = True
            both += rows[cells[seen[cells]] // self.facts.num_classes].tolist()
            seen[there] = False
        if both:
            keys = [self.table["key"][row].as_py() for row in both[:_NAMED]]
            said = f"{len(both)} entries both positive and negative, such as in {keys}"
            raise ValueError(f"{self.where}: {said}; {INDEX_AGAIN}")

    def _cells(self, ragged: Ragged, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        position, classes = ragged.cells(rows)
        return position * self.facts.num_classes + classes


def _hidden_values(lists: pa.Array) -> int:
    """The number of values between the offsets of lists that are null."""
    offsets = shared_numbers(lists.offsets)
    return int(offsets[-1] - offsets[0]) - int(pc.sum(pc.list_value_length(lists)).as_py() or 0)


def _only_of(texts: pa.Array, characters: bytes) -> bool:
    """Whether each of these texts has characters, all of them among the given ones of ASCII."""
    _, offsets, content = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[: len(texts) + 1]
    lengths, used = np.diff(ends), memoryview(content or b"")[: ends[-1]]
    pieces = (used[start : start + _PIECE].tobytes() for start in range(0, len(used), _PIECE))
    return bool(lengths.all()) and not any(piece.translate(None, characters) for piece in pieces)


def _parts(lists: pa.Array) -> list[pa.Array]:
    """The values of lists, and the fields of these values where they are records."""
    values = lists.values
    return [values, *values.flatten()] if pa.types.is_struct(values.type) else [values]


def _first(chosen: pa.Array) -> int:
    return int(pc.index(chosen, True).as_py())
