"""Ranks likely missing positives: unobserved training entries, by how often training rejected them, then by score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from raypaml.counting import Count
from raypaml.data.batches import Reader, read
from raypaml.data.data_folder import DataFolder
from raypaml.data.index import Index
from raypaml.explanations.comparing import batch_of
from raypaml.labels import UNOBSERVED, IntArray
from raypaml.model.cam import CamClassifier
from raypaml.training.rejections import read_epochs

POOL = 1_000_000
"""The most entries that are scored; of entries that were rejected equally often, all are scored or none."""
_BATCH = 64


@dataclass(frozen=True)
class Rejected:
    """The n entries that a run rejected at least once."""

    entries: IntArray
    """[n] sample number x K + class column, sorted."""
    times: NDArray[np.int32]
    """[n] number of epochs in which each entry was rejected."""


class AuditFigures(TypedDict):
    """How good a ranking of missing positives is, judged by the full labels; shares of 0..1."""

    chance: float
    """Share of all unobserved entries that are positive."""
    precision: dict[int, float]
    """Share of positives in the first so many entries of the ranking, by length of the list."""
    score_alone: dict[int, float]
    """The same for a ranking of all unobserved entries by the model's score alone."""


def rejected_entries(run: Path, index: Index, *, keeping: bool, epochs: int) -> Rejected:
    """The entries that a run rejected, and how often.

    Args:
        run: folder of the run.
        index: the training split.
        keeping: whether the scheme keeps rejected entries positive, so that they count as rejected in all later epochs.
        epochs: epochs that the run was trained.

    Raises:
        ValueError: the run rejected nothing, or did not record what it rejected.
    """
    entries, times = np.empty(0, np.int64), np.empty(0, np.int32)
    for epoch, fresh in read_epochs(run, index):
        both = np.union1d(entries, fresh)
        counts = np.zeros(len(both), np.int32)
        counts[np.searchsorted(both, entries)] = times
        counts[np.searchsorted(both, fresh)] += max(1, epochs - epoch) if keeping else 1
        entries, times = both, counts
    if not len(entries):
        raise ValueError(
            f"{run}: rejected nothing, or did not record it; an audit needs a run of a large-loss scheme with --history"
        )
    return Rejected(entries, times)


def history(run: Path, index: Index, entries: IntArray) -> dict[int, list[int]]:
    """The epochs, from 0, in which each of these entries was rejected."""
    epochs: dict[int, list[int]] = {int(entry): [] for entry in entries}
    for epoch, rejected in read_epochs(run, index):
        for entry in np.intersect1d(entries, rejected).tolist():
            epochs[entry].append(epoch)
    return epochs


def most_often(rejected: Rejected, most: int = POOL) -> Rejected:
    """The at most `most` entries that were rejected most often, without splitting entries rejected equally often.

    Where more than `most` entries share the highest number of rejections, all of these are returned.
    """
    if len(rejected.entries) <= most:
        return rejected
    least = np.sort(rejected.times)[-most]
    kept = rejected.times > least
    kept = kept if kept.any() else rejected.times >= least
    return Rejected(rejected.entries[kept], rejected.times[kept])


@dataclass(frozen=True)
class Scored:
    """Logits of given entries, and the unobserved entries with the highest logits in the images that were read."""

    logits: NDArray[np.float32]
    """[n] logits of the given entries; NaN where an image is broken."""
    best: IntArray
    """The unobserved entries with the highest logits, the highest first."""
    broken: int
    """Images that could not be read."""


def score(
    model: CamClassifier,
    data: DataFolder,
    entries: IntArray,
    rows: NDArray[np.int64],
    best: int,
    say: Callable[[str], None] = lambda _: None,
) -> Scored:
    """Compute the logits of some entries and find the unobserved entries with the highest logits, in one pass.

    Args:
        model: the model, on its device.
        data: the data set, whose training split is read.
        entries: sorted entries, each sample number x K + class column.
        rows: the samples that are read.
        best: how many unobserved entries with the highest logits are returned.
        say: prints a line of progress.
    """
    index, device = data.splits["train"], next(model.parameters()).device
    logits = np.full(len(entries), np.nan, np.float32)
    highest, values, broken = np.empty(0, np.int64), np.empty(0, np.float32), 0
    model.eval()
    with torch.inference_mode():
        count = Count("scoring", len(rows), say)
        steps = [batch_of(rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH)]
        batches = read(Reader(data.shards, index, steps, skip_broken=True))
        for batch in count.each(batches, lambda batch: len(batch.rows) + len(batch.skipped)):
            broken += len(batch.skipped)
            if not len(batch.rows):
                continue
            predicted = model(batch.images.to(device)).cpu().numpy()
            cells = (batch.rows[:, None] * index.num_classes + np.arange(index.num_classes)).ravel()
            places = np.searchsorted(entries, cells).clip(max=len(entries) - 1)
            asked = entries[places] == cells
            logits[places[asked]] = predicted.ravel()[asked]
            unobserved = (batch.labels.numpy() == UNOBSERVED).ravel()
            highest = np.concatenate([highest, cells[unobserved]])
            values = np.concatenate([values, predicted.ravel()[unobserved]])
            order = np.lexsort((highest, -values))[:best]
            highest, values = highest[order], values[order]
    return Scored(logits, highest, broken)


def ranking(rejected: Rejected, logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Positions among the rejected entries, the likeliest missing positive first.

    Entries that were rejected more often come first, and among equals those with the higher logit. Entries without a
    logit (NaN) are left out.
    """
    order = np.lexsort((rejected.entries, -logits, -rejected.times))
    ranked: NDArray[np.int64] = order[~np.isnan(logits[order])]
    return ranked


def precision(index: Index, entries: IntArray, at: int) -> float:
    """The share of the first `at` entries that are positive in the full labels."""
    first = entries[:at]
    if not len(first):
        return 0.0
    rows, place = np.unique(first // index.num_classes, return_inverse=True)
    positive, _ = index.truth_cells(rows)
    return float(np.isin(place * index.num_classes + first % index.num_classes, positive).mean())


def chance(index: Index) -> float:
    """The share of all unobserved entries that are positive in the full labels."""
    rows = np.arange(len(index))
    positive, _ = index.truth_cells(rows)
    observed, _ = index.label_cells(rows)
    missed = len(np.setdiff1d(positive, observed))
    return missed / max(1, len(index) * index.num_classes - len(observed))


def audit_figures(index: Index, ranked: IntArray, by_score: IntArray, ats: tuple[int, ...]) -> AuditFigures:
    """The precision of a ranking at several lengths of the list, beside that of the score alone and that of chance.

    Args:
        index: a split with full labels.
        ranked: entries, the likeliest missing positive first.
        by_score: unobserved entries by the model's score alone, the highest first.
        ats: lengths of the list.
    """
    return {
        "chance": chance(index),
        "precision": {at: precision(index, ranked, at) for at in ats if at <= len(ranked)},
        "score_alone": {at: precision(index, by_score, at) for at in ats if at <= len(by_score)},
    }
