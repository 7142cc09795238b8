"""Any table that people may write gives the labels that were written, or a line that refuses it; never other labels."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raypaml.preparation.formats.class_columns import VALUES
from raypaml.preparation.formats.common import Source
from raypaml.preparation.formats.own_labels import TableForm, read_table
from raypaml.preparation.label_overview import check_names, positives_of

NAMES = [
    "cat",
    "dog",
    "Dog",
    "polar bear",
    "grizzly bear",
    "hot dog",
    "traffic light",
    "stop sign",
    "tench, Tinca tinca",
]
NAMES += [
    "a;b",
    "x|y",
    "Käfer",
    "日本",
    "it's",
    'the "big" one',
    "1",
    "nan",
    "bear",
    "[old]",
    "cat/dog",
    "red\tblue",
    "-1",
]
SEPARATORS = [" ", ",", ";", "|", ", ", "; ", "\t", "\n", "/", "\u3001", "\u00a0"]
FORMS = ["separated", "one", "json", "python", "choices", "mixed"]
Labels = list[tuple[list[str], list[str]]]
"""Positives and negatives by image."""


@st.composite
def labellings(draw: st.DrawFn) -> Labels:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=7, unique=True))
    rows = draw(st.integers(1, 12))
    return [(chosen[:cut], chosen[cut:]) for chosen, cut in (draw(_image(names)) for _ in range(rows))]


@st.composite
def _image(draw: st.DrawFn, names: list[str]) -> tuple[list[str], int]:
    chosen = draw(st.lists(st.sampled_from(names), max_size=4, unique=True))
    return chosen, draw(st.integers(0, len(chosen)))


def cell(names: list[str], form: str, separator: str) -> str:
    """One cell, as a program of that kind writes it."""
    if form == "json":
        return json.dumps(names, ensure_ascii=False)
    if form == "python":
        return str(names)
    if form == "mixed" and len(names) % 2:  # several programs, one after another
        return str(names)
    if form == "choices":
        return json.dumps({"choices": names}) if len(names) != 1 else names[0]
    return separator.join(names)


def written(rows: list[list[str]], delimiter: str, quoting: int, end: str, encoding: str) -> bytes:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(rows)  # type: ignore[arg-type]
    return file.getvalue().encode(encoding)


def expected(labels: Labels) -> dict[str, tuple[set[str], set[str]]]:
    return {f"{row}.jpg": (set(yes), set(no)) for row, (yes, no) in enumerate(labels)}


def opened(path: Path, form: TableForm, class_ids: Sequence[str] = ()) -> tuple[Source | None, str]:
    """What the command would take, or the line with which it refuses."""
    try:
        source = read_table(path, form, class_ids=class_ids)
        check_names(source.classes.class_ids, positives_of(source), [], from_text=source.names_from_text)
    except ValueError as refused:
        return None, str(refused)
    return source, ""


def read(path: Path, form: TableForm, class_ids: Sequence[str] = ()) -> dict[str, tuple[set[str], set[str]]] | None:
    """The labels in it; None where it is refused."""
    source, refused = opened(path, form, class_ids)
    if source is None:
        assert "\n" not in refused
        assert str(path) in refused or "--allow" in refused
        return None
    names, split = source.classes.class_ids, source.splits["train"]
    assert split.negatives is not None
    pairs = zip(split.positives, split.negatives, strict=True)
    sides = [({names[k] for k in yes}, {names[k] for k in no}) for yes, no in pairs]
    return dict(zip(split.files, sides, strict=True))


def is_writable(labels: Labels, form: str, separator: str) -> bool:
    """A person who separates names by a sign has none with this sign in it; and who writes one a cell has only one."""
    names = [name for sides in labels for side in sides for name in side]
    longest = max(len(side) for sides in labels for side in sides)
    return (form != "one" or longest <= 1) and (
        form not in ("separated", "mixed") or not any(separator.strip(" ") in n for n in names)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


forms = st.tuples(st.sampled_from(FORMS), st.sampled_from(SEPARATORS))
dialects = st.tuples(
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)


@settings(max_examples=80, deadline=None)
@given(labellings(), forms, dialects)
def test_the_labels_that_were_written_or_a_refusal(
    folder: Path, labels: Labels, how: tuple[str, str], dialect: tuple[str, int, str, str]
) -> None:
    assume(is_writable(labels, *how))
    rows = [[f"{row}.jpg", *(cell(side, *how) for side in sides)] for row, sides in enumerate(labels)]
    path = folder / "t.csv"
    path.write_bytes(written([["image", "labels", "negatives"], *rows], *dialect))
    found = read(path, TableForm())
    assert found is None or found == expected(labels)
    used = sorted({name for sides in labels for side in sides for name in side})
    found = read(path, TableForm(), used)
    assert found is None or found == expected(labels)
    if how[0] in ("separated", "mixed"):  # said, it is read, unless names look wrong
        found = read(path, TableForm(separator=how[1]))
        assert found is None or found == expected(labels)
    if how[0] in ("json", "python") and any(side for sides in labels for side in sides):  # certain, whatever the names
        assert read_table(path, TableForm()).classes.class_ids


states = st.sampled_from(sorted(VALUES))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(states, states, states), min_size=1, max_size=8), dialects)
def test_one_column_a_class_or_a_refusal(
    folder: Path, cells: list[tuple[str, str, str]], dialect: tuple[str, int, str, str]
) -> None:
    names = ["cat", "polar bear", "a,b"]
    path = folder / "c.csv"
    path.write_bytes(
        written([["image", *names], *([f"{row}.jpg", *given] for row, given in enumerate(cells))], *dialect)
    )
    assume(any(VALUES[value] in (0, 1) for row in cells for value in row))
    pairs = [list(zip(names, row, strict=True)) for row in cells]
    labels = [([n for n, v in row if VALUES[v] == 1], [n for n, v in row if VALUES[v] == 0]) for row in pairs]
    source, refused = opened(path, TableForm())
    if source is None:
        assert "never 0; give --uncertain" in refused or "positive in one image only" in refused
        assert not any(no for _, no in labels) or "only" in refused
        return
    found = source.splits["train"]
    if found.negatives is None:
        assert all(len(yes) + len(no) == 3 for yes, no in labels)
    sides = found.negatives or [[k for k in range(3) if k not in yes] for yes in found.positives]
    ids = source.classes.class_ids
    shown = {
        file: ({ids[k] for k in yes}, {ids[k] for k in no})
        for file, yes, no in zip(found.files, found.positives, sides, strict=True)
    }
    assert shown == expected(labels)
