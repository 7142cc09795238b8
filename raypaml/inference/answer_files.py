"""Writes the classes that a model chose for pictures, as CSV, Parquet or JSON lines, one picture after the other.

Every picture that can be read has an answer. Where no class was chosen, it is a row without class, name and score
(empty in CSV, null in Parquet), or a JSON line with an empty list.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from raypaml.outputs import output_file
from raypaml.spreadsheets import as_cell

_COLUMNS = ("image", "class", "name", "score")
_SCHEMA = pa.schema([("image", pa.string()), ("class", pa.string()), ("name", pa.string()), ("score", pa.float32())])
_SUFFIXES = (".csv", ".parquet", ".jsonl")


class Writer(Protocol):
    """Takes the answers for one image after the other."""

    def write(self, image: str, rows: list[tuple[str, str, float]]) -> None:
        """Class id, name and score of each answer, best first; none where no class was chosen."""


@contextmanager
def writer(out: str | IO[str]) -> Iterator[Writer]:
    """A writer to the file `out` in the format of its suffix, or of CSV into an open file.

    The file appears, whole, at the end of the block. Nothing is written into an open one before the first answer, so
    that it stays empty where nothing can be predicted.
    """
    if not isinstance(out, str):
        table = _Csv(out)
        yield table
        table.begin()
        return
    path = Path(out)
    with output_file(path) as unfinished:
        if path.suffix == ".parquet":
            with pq.ParquetWriter(unfinished, _SCHEMA) as file:
                rows = _Parquet(file)
                yield rows
                rows.flush()
            return
        with (
            unfinished.open("w", newline="", encoding="utf-8") as text,
            writer(text) if path.suffix == ".csv" else nullcontext(_Lines(text)) as answers,
        ):
            yield answers


def check_out(out: str) -> None:
    """Raise ValueError unless `out` is a file that can be written."""
    if out and Path(out).suffix not in _SUFFIXES:
        raise ValueError(f"out={out}: must end in {', '.join(_SUFFIXES)}")


class _Csv:
    """Writes a CSV row for each answer, or one without class where there is none."""

    def __init__(self, file: IO[str]):
        self._writer = csv.writer(file, lineterminator="\n")
        self._header = [_COLUMNS]

    def begin(self) -> None:
        """Write the header, unless it is written."""
        self._writer.writerows(self._header)
        self._header = []

    def write(self, image: str, rows: list[tuple[str, str, float]]) -> None:
        self.begin()
        answers = [(as_cell(class_id), as_cell(name), f"{score:.6g}") for class_id, name, score in rows]
        self._writer.writerows((as_cell(image), *answer) for answer in answers or [("", "", "")])


class _Lines:
    """Writes one JSON line for each image, also where no class was chosen."""

    def __init__(self, file: IO[str]):
        self._file = file

    def write(self, image: str, rows: list[tuple[str, str, float]]) -> None:
        answers = [{"class": class_id, "name": name, "score": round(score, 6)} for class_id, name, score in rows]
        self._file.write(json.dumps({"image": image, "classes": answers}, ensure_ascii=False) + "\n")


class Rows:
    """Collects the answers as the rows of a table."""

    def __init__(self) -> None:
        self._rows: list[Sequence[str | float | None]] = []

    def write(self, image: str, rows: list[tuple[str, str, float]]) -> None:
        """Add the class id, name and score of each answer for an image."""
        self._rows += [(image, *row) for row in rows] or [(image, None, None, None)]

    def table(self) -> pa.Table:
        """The collected rows: image, class, name and score."""
        columns = list(zip(*self._rows, strict=True)) or [()] * len(_COLUMNS)
        return pa.table(dict(zip(_COLUMNS, columns, strict=True)), schema=_SCHEMA)


class _Parquet(Rows):
    ROWS = 1 << 16

    def __init__(self, file: pq.ParquetWriter):
        super().__init__()
        self._file = file

    def write(self, image: str, rows: list[tuple[str, str, float]]) -> None:
        super().write(image, rows)
        if len(self._rows) >= self.ROWS:
            self.flush()

    def flush(self) -> None:
        self._file.write_table(self.table())
        self._rows = []
