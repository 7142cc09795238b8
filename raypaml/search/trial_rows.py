"""The trials of a search as a table with a row for each, as in `trials.csv`, in the report and in Python."""

from __future__ import annotations

import csv
from collections.abc import Sequence

from raypaml.files import whole
from raypaml.runs.history import VALIDATION_MEAN_AP
from raypaml.search.search_folder import Outcome, SearchPlan
from raypaml.search.spaces import Value
from raypaml.spreadsheets import as_cell

_COLUMNS = [
    *("trial", "state", "seed", "epochs_done", "epochs_shared", VALIDATION_MEAN_AP, "best_epoch", "test_mean_ap"),
    *("best_alpha", "validation_mean_ap_at_best_alpha", "rejected", "rejection_precision", "rejection_recall"),
    *("seconds", "faults", "error"),
]


def row(one: Outcome) -> dict[str, Value | None]:
    """The figures of a trial by column, without its values of searched fields; rejections are of its last epoch."""
    last = dict(one.history[-1]) if one.history else {}
    best = max(one.curve, key=one.curve.__getitem__, default=None)
    values: dict[str, Value | None] = {
        "trial": one.trial.name,
        "state": one.state,
        "seed": one.trial.seed,
        "epochs_done": len(one.history),
        "epochs_shared": one.shared,
        VALIDATION_MEAN_AP: one.score if one.history else None,
        "best_epoch": one.best_epoch,
        "test_mean_ap": one.test_mean_ap,
        "best_alpha": best,
        "validation_mean_ap_at_best_alpha": one.curve[best] if best else None,
        "seconds": round(one.seconds, 1),
        "faults": len(one.faults),
        "error": one.error,
    }
    return dict.fromkeys(_COLUMNS) | {k: last.get(k) for k in _COLUMNS if k.startswith("reject")} | values


def columns(search: SearchPlan) -> list[str]:
    """The columns of a full row: the trial's name, every searched field, and its figures."""
    return [_COLUMNS[0], *search.fields, *_COLUMNS[1:]]


def full_row(one: Outcome) -> dict[str, Value | None]:
    """The figures of a trial and its values of the searched fields, by column."""
    return row(one) | dict(one.trial.values)


def write_csv(search: SearchPlan, outcomes: Sequence[Outcome]) -> None:
    """Write `trials.csv`, one row a trial in the order of the plan, a column for every searched field."""
    path = search.folder / "trials.csv"
    with whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns(search), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: as_cell(value) for name, value in full_row(one).items()} for one in outcomes)
