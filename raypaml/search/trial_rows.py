"""The trials of a search as a table, one row a trial: in `trials.csv`, in the report and in Python."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

from raypaml.files import whole
from raypaml.runs.history import VALIDATION_MEAN_AP
from raypaml.search.search_folder import Outcome, SearchPlan

_COLUMNS = [
    *("trial", "state", "seed", "epochs_done", "epochs_shared", VALIDATION_MEAN_AP, "best_epoch", "test_mean_ap"),
    *("best_alpha", "validation_mean_ap_at_best_alpha", "rejected", "rejection_precision", "rejection_recall"),
    *("seconds", "error"),
]


def row(found: Outcome) -> dict[str, Any]:
    """What is told of a trial, without its values; rejections are those of its last epoch."""
    last = dict(found.history[-1]) if found.history else {}
    best = max(found.curve, key=found.curve.__getitem__, default=None)
    values = {
        "trial": found.trial.name,
        "state": found.state,
        "seed": found.trial.seed,
        "epochs_done": len(found.history),
        "epochs_shared": found.shared,
        VALIDATION_MEAN_AP: found.score if found.history else None,
        "best_epoch": found.result.get("best_epoch"),
        "test_mean_ap": found.result.get("mean_ap"),
        "best_alpha": best,
        "validation_mean_ap_at_best_alpha": found.curve[best] if best else None,
        "seconds": round(found.seconds, 1),
        "error": found.error,
    }
    return dict.fromkeys(_COLUMNS) | {k: last.get(k) for k in _COLUMNS if k.startswith("reject")} | values


def columns(search: SearchPlan) -> list[str]:
    """The names of a full row: the trial's, every searched field, and what is told of it."""
    return [_COLUMNS[0], *search.fields, *_COLUMNS[1:]]


def full_row(found: Outcome) -> dict[str, Any]:
    """What is told of a trial, and its values of the searched fields."""
    return row(found) | dict(found.trial.values)


def write_csv(search: SearchPlan, outcomes: Sequence[Outcome]) -> None:
    """Write `trials.csv`, one row a trial in the order of the plan, a column for every searched field."""
    path = search.folder / "trials.csv"
    with whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns(search), lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(full_row, outcomes))
