"""Epochs count from 1 wherever a person reads them, by `counting.epoch_number` alone; code and files count from 0."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import raypaml
from raypaml.auditing.audit_page import write_audit_page, write_candidates
from raypaml.counting import epoch_number, place_text
from tests.test_audit_page import candidates

PACKAGE = Path(raypaml.__file__).parent
OWN_WAY = re.compile(r"epoch'\]|\.epoch\b|\bepoch\b")
"""An epoch that code counts from 0: a record's, a state's, or a variable of that name."""


def test_an_epoch_and_a_step_are_read_from_1() -> None:
    assert (epoch_number(0), place_text(0, 0), place_text(4, 11)) == (1, "epoch 1, step 1", "epoch 5, step 12")


def text_faults(source: str) -> Iterator[str]:
    """Texts that say "epoch" before an epoch that did not go through `epoch_number`."""
    for text in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.JoinedStr)):
        for said, value in zip(text.values, text.values[1:], strict=False):
            if isinstance(said, ast.Constant) and isinstance(value, ast.FormattedValue):
                shown = ast.unparse(value.value)
                if re.search(r"\bepoch $", str(said.value)) and OWN_WAY.search(shown) and "epoch_number(" not in shown:
                    yield f"{text.lineno}: epoch {{{shown}}}"


def page_faults(source: str) -> Iterator[str]:
    """Places of a template that show a record's epoch otherwise than by the filter, or count themselves."""
    for shown in re.findall(r"\{\{(.*?)\}\}", source):
        if re.search(r"epoch \+|epochs?\[|[a-z_]+\.(best_)?epoch\b(?!\|epoch_number)", shown):
            yield shown


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("f\"epoch {record['epoch'] + 1}\"", True),  # as it was: right, but by a way of its own
        ('f"epoch {self.state.epoch}, step {self.state.step}"', True),  # as it was: from 0
        ("f\"epoch {epoch_number(record['epoch'])}\"", False),
        ('f"stopped after epoch {done}"', False),  # a number of epochs
    ],
)
def test_a_text_with_a_count_of_its_own_is_found(text: str, fault: bool) -> None:
    assert bool(list(text_faults(text))) == fault


def test_a_page_with_a_count_of_its_own_is_found() -> None:
    assert list(page_faults("{{ record.epoch + 1 }}{{ epoch.epoch|epoch_number }}{{ result.best_epoch }}")) == [
        " record.epoch + 1 ",
        " result.best_epoch ",
    ]


def test_no_text_and_no_page_counts_epochs_by_itself() -> None:
    sources = {path.name: path.read_text() for path in PACKAGE.rglob("*.py")}
    texts = {name: list(text_faults(source)) for name, source in sources.items() if "epoch {" in source}
    pages = {path.name: list(page_faults(path.read_text())) for path in PACKAGE.rglob("*.j2")}
    assert {name: found for name, found in (texts | pages).items() if found} == {}


def test_the_audit_page_counts_from_1_and_its_table_from_0(tmp_path: Path) -> None:
    (one,) = candidates(1)
    write_audit_page(tmp_path, Path("run"), [one], 4, None, "raypaml audit")
    said = '"rejected in 2 of 4 epochs: 2, 4 · score 1.00"'
    assert said in (tmp_path / "index.html").read_text()
    write_candidates(tmp_path, [one])
    assert pq.read_table(tmp_path / "candidates.parquet")["epochs"].to_pylist() == ["1, 3"]
