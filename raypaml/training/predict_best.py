"""Predictions of a split by the best checkpoint, at the end of training."""

from __future__ import annotations

from pathlib import Path

from raypaml.counting import Count
from raypaml.evaluation.prediction_plan import check_skipped, clear_folder, plan_prediction, predict_part
from raypaml.runs import checkpoint
from raypaml.runs.kept_features import keeps_test_features
from raypaml.training.worker import Worker, kept_features


def predict_with_best(worker: Worker, split: str, best: Path) -> bool:
    """Predict a split with the best checkpoint, which the worker's model has loaded. Parts already there are kept.

    The ranks share the parts.

    Returns:
        False where the worker was asked to stop while it computed features of the split.
    """
    worker.now(f"predicting {split}")
    store, folder = worker.store, worker.run_folder / "predictions" / split
    evaluation = plan_prediction(best, worker.config, worker.data, split, folder)
    if worker.ranks.rank == 0:  # remove predictions of another checkpoint
        clear_folder(evaluation, worker.data, replace=True)
    worker.ranks.barrier()
    unfinished = evaluation.unfinished()
    worker.ranks.barrier()  # all have looked before anyone writes
    features = None
    if unfinished and keeps_test_features(worker.config, checkpoint.read_state(best).epoch):
        worker.model.freeze(True)
        features = kept_features(worker, split)
        if features is None:
            return False
    mine = unfinished[worker.ranks.rank :: worker.ranks.world_size]
    each = f", worker {worker.ranks.rank + 1} of {worker.ranks.world_size}" if worker.ranks.group else ""
    count = Count(f"predicting {split}{each}", sum(part.part_samples for part in mine), worker.say)
    for part in count.each(mine, lambda part: part.part_samples):
        worker.now(f"predicting part {part.part} of {split}")
        predict_part(evaluation, part, worker.model, worker.data, worker.ranks.device, features)
    if store:
        store.push(f"predictions/{split}")
    worker.ranks.barrier()
    if store:
        store.pull(f"predictions/{split}")
    check_skipped(evaluation)
    return True
