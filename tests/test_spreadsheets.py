"""Texts that a spreadsheet would compute: written with an apostrophe, read back as they were, in every CSV of ours."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raypaml.inference.answer_files import writer
from raypaml.labels import Vocabulary
from raypaml.spreadsheets import as_cell, from_cell, from_cells

FORMULAS = [
    "=1+1",
    "+cmd",
    "-cmd|'/c calc'!A1",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "\n=x",
    "＝1",
    "=",
    "-",
    "-x",
    "'=1",
    "''=1",
    "--1",
]
TEXTS = ["", "cat", "/m/01g317", "a=b", "a-b", "'quoted'", "it's", "-1", "+2.5", "-1e-3", "-.5", "1", " =1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_a_text_to_a_spreadsheet_and_comes_back(text: str) -> None:
    assert as_cell(text) == f"'{text}"
    assert from_cell(f"'{text}") == text


@pytest.mark.parametrize("text", TEXTS)
def test_other_texts_and_numbers_are_written_as_they_are(text: str) -> None:
    assert as_cell(text) == text
    assert from_cell(text) == text
    assert [as_cell(value) for value in (-1.5, -2, None)] == [-1.5, -2, None]


def test_different_texts_are_different_cells() -> None:
    texts = [*FORMULAS, *TEXTS]
    assert len({as_cell(text) for text in texts}) == len(texts)
    column = pa.chunked_array([[*map(as_cell, texts), None]])
    assert from_cells(column).to_pylist() == [*texts, None]
    encoded = column.dictionary_encode()
    assert from_cells(encoded).to_pylist() == [*texts, None]
    assert from_cells(encoded).type == encoded.type


def test_a_vocabulary_comes_back_with_its_digest(tmp_path: Path) -> None:
    ids = tuple(text for text in (*FORMULAS, *TEXTS) if text and "\n" not in text and "\r" not in text)
    counts = np.arange(len(ids))
    written = Vocabulary(class_ids=ids, names=ids[::-1], train_positives=counts, train_negatives=counts)
    written.write(tmp_path / "vocabulary.csv")
    read = Vocabulary.read(tmp_path / "vocabulary.csv")
    assert (read.class_ids, read.names, read.digest) == (ids, ids[::-1], written.digest)
    with (tmp_path / "vocabulary.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row[:2]]
    assert not [
        cell for cell in cells if cell[:1] in "=+@\t\r" and cell and not cell.lstrip("+-").replace(".", "").isdigit()
    ]


def test_a_line_break_that_csv_would_lose_is_refused() -> None:
    with pytest.raises(ValueError, match="class id or name holds a line break"):
        Vocabulary(class_ids=("a",), names=("a\rb",), train_positives=np.ones(1, int), train_negatives=np.ones(1, int))


def test_a_vocabulary_of_an_earlier_version_has_its_texts_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.csv"
    path.write_text("class_id,name,train_positives,train_negatives,class_group\n=a,-b,1,2,1\n'c',+d,3,4,5\n")
    assert Vocabulary.read(path).class_ids == ("=a", "'c'")
    assert Vocabulary.read(path).names == ("-b", "+d")


def test_answers_of_predict_are_texts_and_numbers() -> None:
    file = io.StringIO()
    with writer(file) as answers:
        answers.write("=a.jpg", [("@c", "-name", 0.25)])
        answers.write("-b.jpg", [])
    assert file.getvalue().split("\n")[1:] == ["'=a.jpg,'@c,'-name,0.25", "'-b.jpg,,,", ""]
