"""The content of `result.json`: the figures of a finished run."""

from __future__ import annotations

from typing import cast

from raypaml.config import TrainConfig
from raypaml.evaluation.measures import Evaluation
from raypaml.evaluation.result_records import RunResult, Training
from raypaml.evaluation.summary import summary
from raypaml.runs.history import VALIDATION_MEAN_AP, History, best_epoch
from raypaml.training.early_stopping import early_stop


def run_result(evaluation: Evaluation, config: TrainConfig, history: History) -> RunResult:
    """The test figures of a run, its settings, and how its training ended.

    `best_epoch` is the epoch whose checkpoint is tested: the last one where no epoch has a validation mAP.
    """
    judged = best_epoch(history)
    best = history[-1 if judged is None else judged]
    training = Training(
        scheme=config.loss.scheme,
        alpha=config.model.alpha,
        delta_rel=config.loss.delta_rel,
        seed=config.run.seed,
        epochs=config.optim.epochs,
        epochs_trained=len(history),
        stopped_early=early_stop(history, config.optim) or None,
        world_size=config.run.workers,
        best_epoch=best["epoch"],
        validation_mean_ap=best[VALIDATION_MEAN_AP],
        training_seconds=history[-1]["seconds"],
    )
    return cast("RunResult", {**summary(evaluation), **training})  # a TypedDict cannot be built from two others
