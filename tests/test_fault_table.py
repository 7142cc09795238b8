"""The table of faults: one for all processes of `make test-cluster`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fault_table import FILE, ROWS, Row, note, rows_of, table

TABLE = """| fault | seconds to recover | result |
| --- | ---: | --- |
| a node, 2 times | 9 at most, 6 as a rule | NOT EQUAL, equal |
| a worker | 3 | equal |
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FILE, str(tmp_path / "rows"))
    monkeypatch.setattr("tests.fault_table.ROWS", list(ROWS))
    return tmp_path / "rows"


def test_the_rows_of_several_processes_are_one_table(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for of, row in (("b", Row("a worker", 3, "equal")), ("a", Row("a node", 3, "equal"))):
        monkeypatch.setenv("PYTEST_CURRENT_TEST", f"tests/test_{of}.py::test_x (call)")
        note(row)
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "tests/test_a.py::test_y (call)")
    other = "from tests.fault_table import *; note(Row('a node', 9, 'NOT EQUAL'))"
    subprocess.run([sys.executable, "-c", other], check=True, env=dict(os.environ))
    command = [sys.executable, "-m", "tests.fault_table", str(file)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == TABLE
    assert table(rows_of(file)) == TABLE


def test_without_any_row_there_is_no_table(file: Path) -> None:
    command = [sys.executable, "-m", "tests.fault_table", str(file)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""
