"""What a model says of many pictures: chosen classes, written as CSV, Parquet or JSON lines as they come.

Every picture that can be read is there. One for which no class was chosen has a row without class, name and score
(empty in CSV, null in Parquet), or a line with an empty list.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from raypaml.files import whole

_COLUMNS = ("image", "class", "name", "score")
_SCHEMA = pa.schema([("image", pa.string()), ("class", pa.string()), ("name", pa.string()), ("score", pa.float32())])
_SUFFIXES = (".csv", ".parquet", ".jsonl")


class Writer(Protocol):
    """Takes the answers of one image after the other."""

    def write(self, image: str, rows: list[tuple[str, str, float]]) -> None:
        """Class id, name and score of each answer, best first; none where no class was chosen."""


@contextmanager
def writer(out: str) -> Iterator[Writer]:
    """Of the file `out`, by its suffix, which appears when all is written; "" writes CSV to standard output.

    Raises:
        ValueError: another suffix.
    """
    if not out:
        yield _Csv(sys.stdout)
        return
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as unfinished:
        if path.suffix == ".parquet":
            with pq.ParquetWriter(unfinished, _SCHEMA) as file:
                table = _Parquet(file)
                yield table
                table.flush()
        else:
            with unfinished.open("w", newline="", encoding="utf-8") as text:
                yield _Csv(text) if path.suffix == ".csv" else _Lines(text)


def check_out(out: str) -> None:
    """Raise ValueError unless `out` is a file that can be written."""
    if out and Path(out).suffix not in _SUFFIXES:
        raise ValueError(f"out={out}: must end in {', '.join(_SUFFIXES)}")


class _Csv:
    def __init__(self, file: IO[str]):
        self._writer = csv.writer(file, lineterminator="\n")
        self._writer.writerow(_COLUMNS)

    def write(self, image: str, rows: list[tuple[str, str, float]]) -> None:
        answers = [(class_id, name, f"{score:.6g}") for class_id, name, score in rows] or [("", "", "")]
        self._writer.writerows((image, *answer) for answer in answers)


class _Lines:
    """One line an image, also where no class was chosen."""

    def __init__(self, file: IO[str]):
        self._file = file

    def write(self, image: str, rows: list[tuple[str, str, float]]) -> None:
        answers = [{"class": class_id, "name": name, "score": round(score, 6)} for class_id, name, score in rows]
        self._file.write(json.dumps({"image": image, "classes": answers}, ensure_ascii=False) + "\n")


class _Parquet:
    ROWS = 1 << 16

    def __init__(self, file: pq.ParquetWriter):
        self._file = file
        self._rows: list[Sequence[Any]] = []

    def write(self, image: str, rows: list[tuple[str, str, float]]) -> None:
        self._rows += [(image, *row) for row in rows] or [(image, None, None, None)]
        if len(self._rows) >= self.ROWS:
            self.flush()

    def flush(self) -> None:
        columns = list(zip(*self._rows, strict=True)) or [()] * len(_COLUMNS)
        self._file.write_table(pa.table(dict(zip(_COLUMNS, columns, strict=True)), schema=_SCHEMA))
        self._rows = []
