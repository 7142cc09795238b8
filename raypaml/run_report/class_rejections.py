"""Counts the rejections of a run class by class over its epochs, for `rejections.csv` and the run's page."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raypaml.files import whole
from raypaml.labels import IntArray, Vocabulary
from raypaml.runs.history import History, RejectedClasses
from raypaml.spreadsheets import as_cell
from raypaml.training.class_counts import COLUMNS

FILE = "rejections.csv"
CLASSES_SHOWN = 25
"""Classes in the table of the page; `rejections.csv` has all of them."""


@dataclass(frozen=True)
class ClassRejections:
    """Sums for one class over the epochs that rejected anything, counted as in `runs.history.rejection_quality`."""

    class_id: str
    name: str
    share: float
    """The share of the run's rejections that fell on this class, 0..1."""
    rejected: int
    rejected_missed: int | None
    """How many of the rejected were missed positives; None where the truth is not known."""
    missed: int | None
    """Missed positives summed over these epochs; where rejected labels stay positive, those in the first of them.
    None where the truth is not known."""

    @property
    def precision(self) -> float | None:
        """The share of the rejected entries that were missed positives."""
        known = self.rejected_missed is not None and self.rejected
        return self.rejected_missed / self.rejected if known else None  # type: ignore[operator]

    @property
    def recall(self) -> float | None:
        """The share of the missed positives that were rejected."""
        return self.rejected_missed / self.missed if self.missed else None  # type: ignore[operator]


def class_rejections(history: History, vocabulary: Vocabulary) -> list[ClassRejections]:
    """Classes with a rejection or a missed positive, those with most rejections first.

    Epochs that an earlier version recorded without counts by class are left out; without any others the list is empty.
    """
    counted = [by_class for record in history if (by_class := record.get("rejections_by_class"))]
    if not counted:
        return []
    rejected, hits, missed = (_sums(counted, name, len(vocabulary)) for name in COLUMNS)
    if history[-1]["corrected"]:
        missed = _sums(counted[:1], "missed", len(vocabulary))
    known = counted[0]["missed"] is not None
    classes = np.flatnonzero(rejected + missed)
    return [
        ClassRejections(
            class_id=vocabulary.class_ids[number],
            name=vocabulary.names[number],
            share=float(rejected[number] / rejected.sum()),
            rejected=int(rejected[number]),
            rejected_missed=int(hits[number]) if known else None,
            missed=int(missed[number]) if known else None,
        )
        for number in classes[np.argsort(-rejected[classes], kind="stable")].tolist()
    ]


def _sums(counted: list[RejectedClasses], column: str, num_classes: int) -> IntArray:
    """[K] the sums of a column over epochs; a column that is not known counts as zeros."""
    sums = np.zeros(num_classes, np.int64)
    for record in counted:
        sums[record["class"]] += np.array(dict(record)[column] or 0, np.int64)
    return sums


def budget_text(rows: list[ClassRejections], num_classes: int) -> str:
    """How few classes take half of all rejections, and how few nine tenths; empty where nothing is counted by class."""
    if not rows:
        return ""
    reached = np.cumsum([row.share for row in rows])
    half, most = (int(np.searchsorted(reached, share - 1e-9)) + 1 for share in (0.5, 0.9))
    untouched = num_classes - sum(row.rejected > 0 for row in rows)
    return (
        f"Half of all rejections fall on {half:,} of {num_classes:,} classes, nine tenths on {most:,}; "
        f"{untouched:,} have none."
    )


def write_class_rejections(folder: Path, rows: list[ClassRejections]) -> None:
    """Write `rejections.csv` of a run, or remove it where there are no rows; cells are empty for unknown values."""
    if not rows:
        (folder / FILE).unlink(missing_ok=True)
        return
    with whole(folder / FILE) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("class", "name", "rejected", "share", "rejected_missed", "missed", "precision", "recall"))
        for row in rows:
            shares = ("" if value is None else f"{value:.4f}" for value in (row.precision, row.recall))
            counts = (row.rejected, f"{row.share:.4f}", row.rejected_missed, row.missed)
            writer.writerow((as_cell(row.class_id), as_cell(row.name), *counts, *shares))
