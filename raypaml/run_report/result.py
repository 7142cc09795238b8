"""The content of `result.json`: the figures of a finished run."""

from __future__ import annotations

from typing import Any

from raypaml.config import TrainConfig
from raypaml.evaluation.measures import Evaluation
from raypaml.evaluation.summary import summary
from raypaml.runs.history import VALIDATION_MEAN_AP, History
from raypaml.training.early_stopping import early_stop


def run_result(found: Evaluation, config: TrainConfig, history: History) -> dict[str, Any]:
    """The content of `result.json`."""
    best = max(history, key=lambda record: record[VALIDATION_MEAN_AP])
    return summary(found) | {
        "scheme": config.loss.scheme,
        "alpha": config.model.alpha,
        "delta_rel": config.loss.delta_rel,
        "seed": config.run.seed,
        "epochs": config.optim.epochs,
        "epochs_trained": len(history),
        "stopped_early": early_stop(history, config.optim) or None,
        "world_size": config.run.workers,
        "best_epoch": best["epoch"],
        VALIDATION_MEAN_AP: best[VALIDATION_MEAN_AP],
        "training_seconds": history[-1]["seconds"],
    }
