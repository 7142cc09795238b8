"""What a run has cost: the hours of its workers in all, for each epoch, and for each point of validation mAP gained.

A worker is one GPU, or one process on the CPU; the unit says which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from raypaml.config import TrainConfig
from raypaml.counting import number_of
from raypaml.runs.history import VALIDATION_MEAN_AP, History, best_epoch
from raypaml.runs.worker_time import TimeRecord, held_seconds, read_worker_time, worker_counts

WORKER_UNITS = {frozenset({"cuda"}): "GPU-hours", frozenset({"cpu"}): "CPU worker-hours"}
MIXED = "worker-hours"
"""The unit where CPUs and GPUs were used, or where it is not known which."""


class RunCost(TypedDict):
    """The cost of a run, in hours summed over the workers that there were; None where a figure has no value.

    What is not a worker's counts nothing: the process of the command, and machines that wait for each other before
    Ray has started the workers.
    """

    unit: str
    """GPU-hours, CPU worker-hours, or worker-hours where both were used or an earlier version did not say."""
    in_all: float
    """From the first start of the workers to their end: `training`, `lost`, and all else, which is starting,
    validation, saving, and the predictions of the test."""
    training: float
    """The steps of all epochs, without those that were lost."""
    lost: float
    """Lost to restarts: steps that were done again, waiting for new workers, and starting them."""
    starts: int
    """How often all workers were started, the first time included."""
    workers: list[int]
    """The numbers of workers that there were, in order."""
    per_epoch: float
    """Everything up to the end of the last epoch, what was lost included, over the number of epochs."""
    points: float | None
    """Validation mAP after the best epoch, in points of a hundred."""
    per_point: float | None
    """Everything up to the end of the best epoch over `points`."""
    points_after_first: float | None
    """Points of validation mAP gained from the end of the first epoch to that of the best one."""
    per_point_after_first: float | None
    """Everything between these two ends over `points_after_first`; None where the first epoch is the best one."""
    estimated: float
    """Hours of `in_all` that earlier versions did not count: training time times workers, nothing else."""


@dataclass(frozen=True)
class HeldTimes:
    """Worker-seconds held by a run at the end of each epoch, of which some are estimated."""

    at_epoch: list[float]
    in_all: float
    estimated: float

    @classmethod
    def of(cls, history: History, record: TimeRecord | None, workers: int) -> HeldTimes:
        """Those that were recorded; for epochs of an earlier version, training time times the workers asked for."""
        at_epoch = [one.get("held_worker_seconds", one["seconds"] * workers) for one in history]
        guessed = [one["seconds"] * workers for one in history if "held_worker_seconds" not in one]
        if record is None or not record["attempts"]:
            return cls(at_epoch, at_epoch[-1], max(guessed, default=0.0))
        return cls(at_epoch, max(held_seconds(record), at_epoch[-1]), max(guessed, default=0.0))


def run_cost(folder: Path, config: TrainConfig, history: History) -> RunCost:
    """The cost of a run from what its folder holds; `history` has at least one epoch."""
    record, workers = read_worker_time(folder), config.run.workers
    held = HeldTimes.of(history, record, workers)
    attempts = record["attempts"] if record else []
    best = best_epoch(history)
    scores = [100 * float(one[VALIDATION_MEAN_AP]) for one in history]
    gained = None if best is None or math.isnan(scores[0]) else scores[best] - scores[0]
    return RunCost(
        unit=MIXED if held.estimated else WORKER_UNITS.get(frozenset(attempt["device"] for attempt in attempts), MIXED),
        in_all=_hours(held.in_all),
        training=_hours(_trained(history, workers)),
        lost=_hours(attempts[-1]["lost"] if attempts else 0.0),
        starts=max(1, len(attempts)),
        workers=worker_counts(attempts) or [workers],
        per_epoch=_hours(held.at_epoch[-1] / len(history)),
        points=None if best is None else scores[best],
        per_point=None if best is None else _per_point(held.at_epoch[best], scores[best]),
        points_after_first=gained,
        per_point_after_first=_per_point(held.at_epoch[best] - held.at_epoch[0], gained) if gained and best else None,
        estimated=_hours(held.estimated),
    )


def _trained(history: History, workers: int) -> float:
    """Worker-seconds of the steps of all epochs; for one of an earlier version, its seconds times the workers asked."""
    total, before = 0.0, 0.0
    for record in history:
        counted = record.get("trained_worker_seconds")
        total += (record["seconds"] - before) * workers if counted is None else counted
        before = record["seconds"]
    return total


def _per_point(seconds: float, points: float) -> float | None:
    return _hours(seconds / points) if points > 0 else None


def _hours(seconds: float) -> float:
    return seconds / 3600


def cost_text(cost: RunCost) -> str:
    """The cost in sentences: in all, for each epoch, for each point, what was lost, and what is an estimate."""
    counts = ", then ".join(map(str, cost["workers"]))
    said = [f"{hours_text(cost['in_all'])} {cost['unit']} in all (workers: {counts})"]
    said.append(f"{hours_text(cost['per_epoch'])} an epoch")
    if cost["per_point"] is not None:
        said.append(f"{hours_text(cost['per_point'])} a point of validation mAP up to the best epoch")
    if cost["per_point_after_first"] is not None:
        said.append(f"{hours_text(cost['per_point_after_first'])} a point gained after the first epoch")
    if cost["starts"] > 1:
        said.append(f"{hours_text(cost['lost'])} lost to {number_of(cost['starts'] - 1, 'restart')}")
    if cost["estimated"]:
        said.append(f"{hours_text(cost['estimated'])} of it estimated from training time, which alone was counted")
    return "; ".join(said)


def hours_text(hours: float) -> str:
    """Hours with three figures that count: 0.00421, 0.35, 12.3, 1,234."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
