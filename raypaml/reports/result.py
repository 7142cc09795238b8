"""The figures of a prediction set and of a finished run: `result.json` and the table G1..G5 and All."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from raypaml.config import TrainConfig
from raypaml.labels import GROUP_NAMES
from raypaml.reports.evaluation import Evaluation


def summary(found: Evaluation) -> dict[str, Any]:
    """Mean AP (0..1) under the convention `paper`, and what it counts."""
    means = found.means("paper")
    assert means is not None
    scored = found.positives + found.negatives > 0
    return {
        "mean_ap": means.pop("All"),
        "groups": means,
        "classes": len(found.vocabulary),
        "classes_scored": int(scored.sum()),
        "classes_without_positives": int((scored & (found.positives == 0)).sum()),
        "convention": "paper",
        "split": found.predictions.split,
        "images": len(found.keys),
        "skipped": len(found.predictions.skipped),
        "positives": int(found.positives.sum()),
        "negatives": int(found.negatives.sum()),
        "vocabulary": found.vocabulary.digest,
    }


def result(found: Evaluation, config: TrainConfig, history: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of `result.json`."""
    best = max(history, key=lambda record: record["validation_mean_ap"])
    return summary(found) | {
        "scheme": config.loss.scheme,
        "alpha": config.model.alpha,
        "delta_rel": config.loss.delta_rel,
        "seed": config.run.seed,
        "epochs": config.optim.epochs,
        "world_size": config.run.workers,
        "best_epoch": best["epoch"],
        "validation_mean_ap": best["validation_mean_ap"],
        "training_seconds": history[-1]["seconds"],
    }


def rejected(history: list[dict[str, Any]]) -> dict[str, float]:
    """Recall and precision of all that was rejected in the rejecting epochs, where the truth is known.

    Each epoch rejects anew, so that recall is the mean over epochs, weighted by what was missed; but what LL-Cp
    corrects stays so: its recall is the share of the missed that it has corrected by the end.
    """
    epochs = [record for record in history if record["rejected"]]
    if not epochs or epochs[0]["missed"] is None:
        return {}
    hits, missed, taken = (sum(record[name] for record in epochs) for name in ("rejected_missed", "missed", "rejected"))
    return {"recall": hits / (epochs[0]["missed"] if epochs[-1]["corrected"] else missed), "precision": hits / taken}


def seed_interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean of at least two paired differences, and the ends of its 95 % interval (Student's t)."""
    mean = statistics.fmean(differences)
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    return mean, mean - float(half), mean + float(half)


def table(result: dict[str, Any]) -> str:
    """The five-group table as Markdown, in percent, with its convention and what it counts."""
    values = [*result["groups"].values(), result["mean_ap"]]
    return f"{markdown([*GROUP_NAMES, 'All'], [[percent(value) for value in values]])}\n\n{caption(result)}"


def caption(result: dict[str, Any]) -> str:
    """What the table's numbers are."""
    broken = f"{result['skipped']:,} broken images skipped; " if result["skipped"] else ""
    skipped = result["classes"] - result["classes_scored"]
    return (
        f"mAP in percent on the {result['split']} split, observed labels only; G1 rarest to G5 most frequent classes; "
        f"{result['classes_scored']} of {result['classes']} classes scored ({skipped} without observed labels skipped, "
        f"{result['classes_without_positives']} without positives count 0: convention '{result['convention']}'); "
        f"{broken}{result['images']:,} images with a label, {result['positives']:,} positives, {result['negatives']:,} "
        f"negatives, vocabulary {result['vocabulary'][:12]}."
    )


def percent(value: float) -> str:
    """0.8123 -> 81.23; a dash where there is no value."""
    return "-" if np.isnan(value) else f"{100 * value:.2f}"


def markdown(names: list[str], rows: list[list[str]], left: int = 0) -> str:
    """A Markdown table; the first `left` columns are aligned left, the others right."""
    widths = [max(len(cell) for cell in column) for column in zip(names, *rows, strict=True)]
    rule = [("-" * width if n < left else "-" * (width - 1) + ":") for n, width in enumerate(widths)]
    lines = [
        [
            cell.ljust(width) if n < left else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in (names, rule, *rows)
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
