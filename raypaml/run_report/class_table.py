"""The classes of a run as its page shows them: the best, the worst, and all of them for a table that sorts itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np

from raypaml.cli import visible
from raypaml.evaluation.measures import Evaluation
from raypaml.labels import IntArray
from raypaml.run_report.class_rejections import ClassRejections

EXTREMES_SHOWN = 10
"""Classes in each of the tables of the best and of the worst."""


@dataclass(frozen=True)
class ClassFigures:
    """One class in the tables of the best and of the worst."""

    name: str
    ap: float
    """0..1, convention `paper`."""
    group: int
    """1 (rarest) to 5."""
    positives: int
    """Observed positives of the test split; the next is alike."""
    negatives: int
    train_positives: int
    train_negatives: int


class Column(TypedDict):
    """A column of the table of all classes, with a value for each class; None where a class has none."""

    title: str
    values: Sequence[str | float | None]
    digits: NotRequired[int]
    """Digits after the point of a number; a column of text has none of this."""


class ClassTable(TypedDict):
    """What the page's program gets: the table of all classes, and their precision-recall curves."""

    columns: list[Column]
    curves: list[list[int]]
    """By class, as `evaluation.class_details.ClassDetails.curves`."""


def best_and_worst(evaluation: Evaluation) -> tuple[list[ClassFigures], list[ClassFigures]]:
    """The classes of highest and of lowest AP among those with a positive and a negative in the test split.

    Without a negative AP is 1, and without a positive 0, whatever is predicted. A class is in one of the lists at most.
    """
    ap = np.where((evaluation.positives > 0) & (evaluation.negatives > 0), evaluation.ap, np.nan)
    order = np.argsort(-ap, kind="stable")  # NaN last
    order = order[: np.isfinite(ap).sum()]
    shown = min(EXTREMES_SHOWN, (len(order) + 1) // 2)
    best, worst = order[:shown], order[shown:][::-1][:EXTREMES_SHOWN]
    return _figures(evaluation, best), _figures(evaluation, worst)


def _figures(evaluation: Evaluation, classes: IntArray) -> list[ClassFigures]:
    vocabulary = evaluation.vocabulary
    return [
        ClassFigures(
            name=vocabulary.names[k],
            ap=float(evaluation.ap[k]),
            group=int(vocabulary.class_group[k]),
            positives=int(evaluation.positives[k]),
            negatives=int(evaluation.negatives[k]),
            train_positives=int(vocabulary.train_positives[k]),
            train_negatives=int(vocabulary.train_negatives[k]),
        )
        for k in classes.tolist()
    ]


def class_table(evaluation: Evaluation, rejections: Sequence[ClassRejections]) -> ClassTable:
    """All classes in the order of the vocabulary; an evaluation with details has the curves."""
    vocabulary, details = evaluation.vocabulary, evaluation.details
    assert details is not None
    ap = [None if math.isnan(value) else round(100 * value, 2) for value in evaluation.ap.tolist()]
    columns = [
        Column(title="class", values=list(map(visible, vocabulary.names))),
        Column(title="AP, %", values=ap, digits=2),
        _counts("test positives", evaluation.positives),
        _counts("test negatives", evaluation.negatives),
        _counts("train positives", vocabulary.train_positives),
        _counts("train negatives", vocabulary.train_negatives),
        _counts("group", vocabulary.class_group),
        *_rejection_columns(rejections, vocabulary.index_of),
        Column(title="id", values=list(map(visible, vocabulary.class_ids))),
    ]
    return {"columns": columns, "curves": details.curves}


def _counts(title: str, values: IntArray) -> Column:
    return Column(title=title, values=values.tolist(), digits=0)


def _rejection_columns(rejections: Sequence[ClassRejections], index_of: dict[str, int]) -> Iterator[Column]:
    """How many entries of each class were rejected, and how well where the truth is known; nothing without any."""
    if not rejections:
        return
    by_class = {index_of[row.class_id]: row for row in rejections}
    rows = [by_class.get(k) for k in range(len(index_of))]
    yield Column(title="rejected", values=[row.rejected if row else 0 for row in rows], digits=0)
    if rejections[0].missed is None:
        return
    yield Column(title="missed positives", values=[row.missed if row else 0 for row in rows], digits=0)
    for title, shares in (
        ("rejection precision, %", [row.precision if row else None for row in rows]),
        ("rejection recall, %", [row.recall if row else None for row in rows]),
    ):
        yield Column(title=title, values=[None if one is None else round(100 * one, 1) for one in shares], digits=1)
