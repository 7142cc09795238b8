"""The record of a finished epoch, made by all ranks together, and what callbacks answer to it."""

from __future__ import annotations

import math
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray

from raypaml.files import number_or_null
from raypaml.metrics.average_precision import group_means, mean_ap
from raypaml.runs.history import VALIDATION_MEAN_AP, EpochRecord
from raypaml.training.class_counts import rejections_by_class
from raypaml.training.learning_rates import learning_rates
from raypaml.training.usage import epoch_usage
from raypaml.training.worker import TALLY, TIMES, Worker


def add_up(before: list[float], more: list[float]) -> list[float]:
    """Add the sums of further steps to an epoch's; NaN for sums that an earlier version did not count."""
    return [a + b for a, b in zip_longest(before or [0.0] * len(more), more, fillvalue=math.nan)]


def by_name(sums: list[float]) -> dict[str, float]:
    """Sums over steps and ranks by the names in TALLY and TIMES."""
    return dict(zip((*TALLY, *TIMES), sums, strict=True))


def epoch_record(worker: Worker, ap: NDArray[np.float64], validation_skipped: int) -> EpochRecord:
    """Make the record of the epoch just trained; a collective.

    Args:
        worker: the worker, whose state still counts this epoch.
        ap: [K] AP of the validation split, 0..1, NaN where a class cannot be scored.
        validation_skipped: the number of broken samples of that split.
    """
    state, index = worker.state, worker.data.splits["train"]
    totals = by_name(state.tally)
    rejected, hits, missed = (int(totals[name]) for name in ("rejected", "rejected_missed", "missed"))
    known = index.has_truth
    seconds = state.seconds - (state.history[-1]["seconds"] if state.history else 0.0)
    rates, usage = learning_rates(worker.optimizer), epoch_usage(worker, totals, seconds)
    record: EpochRecord = {
        "epoch": state.epoch,
        "loss": totals["loss"] / totals["samples"],
        "expected": worker.plan.num_samples,
        "samples": int(totals["samples"]),
        "skipped": sum(epoch == state.epoch for epoch, _, _ in state.skipped),
        "rejected": rejected,
        "rejection_rate": rejected / max(1, int(totals["samples"]) * index.num_classes),
        "rejected_missed": hits if known else None,
        "missed": missed if known else None,
        "rejection_precision": hits / rejected if known and rejected else None,
        "rejection_recall": hits / missed if known and missed else None,
        "rejections_by_class": rejections_by_class(state.class_counts, known=known),
        "corrected": len(worker.corrections.entries),
        "validation_skipped": validation_skipped,
        VALIDATION_MEAN_AP: mean_ap(ap),
        "validation_groups": group_means(ap, worker.data.vocabulary.class_group),
        "seconds": round(state.seconds, 3),
        "learning_rate": rates.backbone,
        "head_learning_rate": rates.head,
        "micro_batch_size": worker.config.optim.micro_batch_size,
        "epoch_seconds": usage["epoch_seconds"],
        "images_per_second": usage["images_per_second"],
        "data_wait_share": usage["data_wait_share"],
        "collective_share": usage["collective_share"],
        "peak_memory_bytes": usage["peak_memory_bytes"],
        "model_flop_utilisation": usage["model_flop_utilisation"],
        "workers": worker.ranks.world_size,
        "trained_worker_seconds": number_or_null(totals["rank_seconds"]),
    }
    if worker.held is not None:
        record["held_worker_seconds"], record["lost_worker_seconds"] = worker.held.look(), worker.held.lost
    if worker.probe is not None:
        record["drift"] = worker.probe.measure(worker.evaluated, seconds)
    return record


def hear_callbacks(worker: Worker, record: EpochRecord) -> None:
    """Ask rank 0's callbacks about an epoch, and note in its record, on every rank, whether they stop training."""
    why, keeps = worker.calls.on_epoch(record)
    if worker.ranks.sum(torch.tensor([float(why is not None)])).item():
        record["stop"] = {"why": why or "", "epochs": worker.config.optim.epochs}
    if keeps:
        worker.state.kept.append(worker.state.name)
