"""`answers.csv` in the folder of an audit: what people have answered so far, which no later audit may lose."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from pathlib import Path

from raypaml.auditing.answer_tables import ANSWER_COLUMNS, answer_meaning
from raypaml.bounded import read_rows
from raypaml.files import whole
from raypaml.spreadsheets import as_cell, from_cell

ANSWERS = "answers.csv"
"""The file, in the folder of an audit."""

Entry = tuple[str, str]
"""Key of the image, and id of the class."""


def read_given(path: Path) -> dict[Entry, str]:
    """The answers of a file, "yes", "no" or "unsure" for each entry that has one; none where there is no file.

    Raises:
        ValueError: it is no file of answers, or has columns of its own, which writing it again would lose.
    """
    given: dict[Entry, str] = {}
    for line, row in read_rows(path, ANSWER_COLUMNS) if path.is_file() else ():
        if own := [name for name in row if name not in ANSWER_COLUMNS]:
            raise ValueError(f"{path}: has a column of its own, {own[0]!r}, which writing the answers anew would lose")
        key, class_id, answer = (from_cell(row[name]) for name in ANSWER_COLUMNS)
        if not answer.strip():
            continue
        said = answer_meaning(answer, f"{path}:{line}")
        if given.setdefault((key, class_id), said) != said:
            raise ValueError(f"{path}:{line}: {key}, {class_id} was answered the other way in a line before")
    return given


def write_given(path: Path, listed: Collection[Entry], given: Mapping[Entry, str]) -> None:
    """Write the entries of a list, each with its answer or an empty one, and after them other entries with answers."""
    rows = [(*entry, given.get(entry, "")) for entry in listed]
    known = set(listed)
    rows += [(*entry, answer) for entry, answer in given.items() if answer and entry not in known]
    with whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(map(as_cell, row) for row in [ANSWER_COLUMNS, *rows])
