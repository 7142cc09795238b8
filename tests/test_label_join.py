"""The label join against a dictionary filled row by row in plain Python."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypaml.preparation.findings import EXAMPLES, Findings
from raypaml.preparation.label_join import (
    MAX_CLASSES,
    ConflictRule,
    Labels,
    join_labels,
    merged,
    pack,
    records,
    without,
)
from raypaml.preparation.openimages.image_ids import hex_keys, parse_ids

Row = tuple[int, int, int, bool]
"""Image, class, source, positive."""
Cells = dict[tuple[int, int], bool]

CLASSES = st.sampled_from([0, 1, 2, MAX_CLASSES - 1])
IMAGES = st.sampled_from([0, 1, 2, 3, 2**31, 2**32 - 1])
ROWS = st.lists(st.tuples(IMAGES, CLASSES, st.sampled_from([0, 1, 2, 127]), st.booleans()), max_size=40)
CELLS = st.dictionaries(st.tuples(IMAGES, CLASSES), st.booleans(), max_size=20)
RULES: tuple[ConflictRule, ...] = get_args(ConflictRule)


def joined(rows: list[Row], rule: ConflictRule, findings: Findings) -> Labels:
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    image, class_index, source = (np.array(column, np.int64) for column in columns[:3])
    return join_labels(pack(image, class_index, source, np.array(columns[3], bool)), rule, findings)


def by_hand(rows: list[Row], rule: str) -> tuple[Cells, dict[str, int]]:
    """What each rule says, cell by cell, and the counts."""
    seen: dict[tuple[int, int], list[tuple[int, bool]]] = defaultdict(list)
    for image, class_index, source, positive in rows:
        seen[image, class_index].append((source, positive))
    cells, counts = {}, {"duplicate labels": 0, "conflicting labels": 0, "conflicting labels dropped": 0}
    for cell, votes in seen.items():
        values = {positive for _, positive in votes}
        best = {positive for source, positive in votes if source == min(votes)[0]}
        counts["duplicate labels"] += len(votes) - len(values)
        counts["conflicting labels"] += len(values) == 2
        if len(values) == 2:
            decided = {"source": best, "negative": {False}, "positive": {True}, "drop": set[bool]()}[rule]
        else:
            decided = values
        if len(decided) == 1:
            cells[cell] = decided.pop()
        else:
            counts["conflicting labels dropped"] += 1
    return cells, counts


def as_cells(labels: Labels) -> Cells:
    rows = zip(labels.image.tolist(), labels.class_index.tolist(), labels.positive.tolist(), strict=True)
    return {(image, class_index): positive for image, class_index, positive in rows}


def as_labels(cells: Cells) -> Labels:
    order = sorted(cells)
    return Labels(
        np.array([image for image, _ in order], np.int64),
        np.array([class_index for _, class_index in order], np.int32),
        np.array([cells[cell] for cell in order], bool),
    )


@given(rows=ROWS, rule=st.sampled_from(RULES))
@settings(max_examples=500, deadline=None)
def test_the_join_is_that_of_a_dictionary(rows: list[Row], rule: ConflictRule) -> None:
    findings = Findings()
    labels = joined(rows, rule, findings)
    cells, counts = by_hand(rows, rule)
    assert list(as_cells(labels)) == sorted(cells)
    assert as_cells(labels) == cells
    assert len(labels) == len(cells)
    assert findings.counts == counts


@given(rows=ROWS.filter(bool), rule=st.sampled_from(RULES), seed=st.integers(0, 9))
@settings(deadline=None)
def test_the_order_of_the_rows_does_not_matter(rows: list[Row], rule: ConflictRule, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(rows))
    shuffled = joined([rows[k] for k in order], rule, Findings())
    assert as_cells(shuffled) == as_cells(joined(rows, rule, Findings()))


def test_examples_of_conflicts_are_named_in_order() -> None:
    rows = [(image, 3, 0, positive) for image in range(9, 0, -1) for positive in (True, False)]
    findings = Findings()
    joined(rows, "source", findings)
    assert findings.examples["conflicting labels"] == [f"{image}:3" for image in range(1, 1 + EXAMPLES)]
    assert findings.to_dict()["duplicate labels"] == {"count": 0}


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"conflicts='newest': must be one of source, negative, positive, drop"):
        join_labels(np.zeros(0, np.uint64), "newest", Findings())  # type: ignore[arg-type]


@given(added=CELLS, known=CELLS)
@settings(deadline=None)
def test_without_and_merged_are_those_of_a_dictionary(added: Cells, known: Cells) -> None:
    new = without(as_labels(added), as_labels(known))
    assert as_cells(new) == {cell: value for cell, value in added.items() if cell not in known}
    both = merged(as_labels(known), new)
    assert as_cells(both) == added | known
    assert list(as_cells(both)) == sorted(added | known)


@given(cells=CELLS)
@settings(deadline=None)
def test_records_hold_every_label_of_every_image_once(cells: Cells) -> None:
    table = records(as_labels(cells), lambda images: pa.array([f"i{image}" for image in images]))
    expected = [
        {
            "key": f"i{image}",
            "positives": [c for i, c in sorted(cells) if i == image and cells[i, c]],
            "negatives": [c for i, c in sorted(cells) if i == image and not cells[i, c]],
        }
        for image in sorted({image for image, _ in cells})
    ]
    assert table.to_pylist() == expected


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20))
@settings(deadline=None)
def test_ids_are_written_as_sixteen_digits(ids: list[int]) -> None:
    assert hex_keys(np.array(ids, np.uint64)).to_pylist() == [format(value, "016x") for value in ids]


@given(st.lists(st.text(max_size=18) | st.text("0123456789abcdefAFg", min_size=15, max_size=17), max_size=20))
@settings(deadline=None)
def test_only_ids_of_sixteen_digits_are_read(texts: list[str]) -> None:
    findings = Findings()
    ids, shaped = parse_ids(pa.array(texts, pa.string()), "bad", findings)
    good = [re.fullmatch("[0-9a-f]{16}", text) is not None for text in texts]
    assert shaped.tolist() == good
    assert hex_keys(ids).to_pylist() == [text for text, is_good in zip(texts, good, strict=True) if is_good]
    assert findings.counts["bad"] == len(texts) - sum(good)
