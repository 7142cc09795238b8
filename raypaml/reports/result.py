"""The figures of a finished run, from its predictions: `result.json` and the table G1..G5 and All."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypaml.config import TrainConfig
from raypaml.labels import GROUP_NAMES, Vocabulary
from raypaml.metrics.average_precision import average_precision, group_means, mean_ap

Floats = NDArray[np.float64]


def ap_of(predictions: pa.Table, alpha: float, num_classes: int) -> Floats:
    """[K] AP of stored predictions (columns class, positive, P, N) with this alpha."""
    logits = np.float32(alpha) * predictions["P"].to_numpy() + predictions["N"].to_numpy()
    return average_precision(predictions["class"].to_numpy(), logits, predictions["positive"].to_numpy(), num_classes)


def result(
    predictions: pa.Table, vocabulary: Vocabulary, config: TrainConfig, history: list[dict[str, Any]]
) -> dict[str, Any]:
    """The content of `result.json`; mAP in 0..1."""
    ap = ap_of(predictions, config.model.alpha, len(vocabulary))
    best = max(history, key=lambda record: record["validation_mean_ap"])
    positives = np.bincount(
        predictions["class"].to_numpy()[predictions["positive"].to_numpy()], minlength=len(vocabulary)
    )
    return {
        "mean_ap": mean_ap(ap),
        "groups": group_means(ap, vocabulary.class_group),
        "classes": len(vocabulary),
        "classes_scored": int((~np.isnan(ap)).sum()),
        "classes_without_positives": int(((positives == 0) & ~np.isnan(ap)).sum()),
        "convention": "paper",
        "scheme": config.loss.scheme,
        "alpha": config.model.alpha,
        "delta_rel": config.loss.delta_rel,
        "seed": config.run.seed,
        "epochs": config.optim.epochs,
        "world_size": config.run.workers,
        "best_epoch": best["epoch"],
        "validation_mean_ap": best["validation_mean_ap"],
        "training_seconds": history[-1]["seconds"],
        "vocabulary": vocabulary.digest,
    }


def table(result: dict[str, Any]) -> str:
    """The five-group table as Markdown, in percent, with its convention and what it counts."""
    names = [*GROUP_NAMES, "All"]
    cells = [f"{100 * value:.2f}" for value in (*result["groups"].values(), result["mean_ap"])]
    widths = [max(len(name), len(cell)) for name, cell in zip(names, cells, strict=True)]
    rows = [names, ["-" * width for width in widths], cells]
    lines = ["| " + " | ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([*lines, "", caption(result)])


def caption(result: dict[str, Any]) -> str:
    """What the table's numbers are."""
    skipped = result["classes"] - result["classes_scored"]
    return (
        f"mAP in percent on the test split, observed labels only; G1 rarest to G5 most frequent classes; "
        f"{result['classes_scored']} of {result['classes']} classes scored ({skipped} without observed labels skipped, "
        f"{result['classes_without_positives']} without positives count 0: convention '{result['convention']}')."
    )
