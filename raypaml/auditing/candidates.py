"""Likely missing positives: unobserved training entries, by how often training rejected them, then by their score."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypaml.counting import Count
from raypaml.data.batches import Batch, Reader, read
from raypaml.data.data_folder import DataFolder
from raypaml.data.index import Index
from raypaml.data.plan import Part
from raypaml.labels import UNOBSERVED, IntArray
from raypaml.model.cam import CamClassifier
from raypaml.training.rejections import read_epochs

POOL = 1_000_000
"""Entries that are scored, at most; all that were rejected as often as the last of them are among them or none."""
_BATCH = 64


@dataclass(frozen=True)
class Rejected:
    """Entries that were rejected at least once."""

    entries: IntArray
    """Sample row x K + class, sorted."""
    times: NDArray[np.int32]
    """Epochs in which each was rejected."""


def rejected_entries(run: Path, index: Index, *, keeping: bool, epochs: int) -> Rejected:
    """What a run rejected, and how often.

    Args:
        keeping: the scheme makes rejected entries positive for good, so that they count as rejected ever after.
        epochs: that the run was trained.

    Raises:
        ValueError: the run rejected nothing, or did not write what.
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
            f"{run}: rejected nothing, or did not write it; an audit needs a run of a large-loss scheme with --history"
        )
    return Rejected(entries, times)


def history(run: Path, index: Index, entries: IntArray) -> dict[int, list[int]]:
    """The epochs in which each of these entries was rejected."""
    found: dict[int, list[int]] = {int(entry): [] for entry in entries}
    for epoch, rejected in read_epochs(run, index):
        for entry in np.intersect1d(entries, rejected).tolist():
            found[entry].append(epoch)
    return found


def most_often(found: Rejected, most: int = POOL) -> Rejected:
    """Those rejected most often, `most` at most, unless all of them were rejected equally often."""
    if len(found.entries) <= most:
        return found
    least = np.sort(found.times)[-most]
    kept = found.times > least
    kept = kept if kept.any() else found.times >= least
    return Rejected(found.entries[kept], found.times[kept])


@dataclass(frozen=True)
class Scored:
    """Logits of entries, and those of highest logit among all unobserved entries of the images that were read."""

    logits: NDArray[np.float32]
    """The logits of the entries asked for; nan where an image is broken."""
    best: IntArray
    """Highest first."""
    broken: int


def score(
    model: CamClassifier,
    data: DataFolder,
    entries: IntArray,
    rows: NDArray[np.int64],
    best: int,
    say: Callable[[str], None] = lambda _: None,
) -> Scored:
    """Logits of these sorted entries, and the `best` unobserved entries of these rows by logit alone; one pass.

    `say` is told how far it is.
    """
    index, device = data.splits["train"], next(model.parameters()).device
    logits = np.full(len(entries), np.nan, np.float32)
    highest, values, broken = np.empty(0, np.int64), np.empty(0, np.float32), 0
    model.eval()
    with torch.inference_mode():
        count = Count("scoring", len(rows), say)
        for batch in count.each(_batches(data, rows), lambda batch: len(batch.rows) + len(batch.skipped)):
            broken += len(batch.skipped)
            if not len(batch.rows):
                continue
            found = model(batch.images.to(device)).cpu().numpy()
            cells = (batch.rows[:, None] * index.num_classes + np.arange(index.num_classes)).ravel()
            places = np.searchsorted(entries, cells).clip(max=len(entries) - 1)
            asked = entries[places] == cells
            logits[places[asked]] = found.ravel()[asked]
            unobserved = (batch.labels.numpy() == UNOBSERVED).ravel()
            highest = np.concatenate([highest, cells[unobserved]])
            values = np.concatenate([values, found.ravel()[unobserved]])
            order = np.lexsort((highest, -values))[:best]
            highest, values = highest[order], values[order]
    return Scored(logits, highest, broken)


def _batches(data: DataFolder, rows: NDArray[np.int64]) -> Iterator[Batch]:
    parts = [part_of(rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH)]
    return read(Reader(data.shards, data.splits["train"], parts, skip_broken=True))


def part_of(rows: NDArray[np.int64]) -> Part:
    """These samples as a batch of their own."""
    flip = np.zeros(len(rows), bool)
    return Part(rows=rows, first_row=0, global_rows=len(rows), lane_sizes=(len(rows),), flip=flip)


def ranking(found: Rejected, logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Positions in `found`, the likeliest missing positive first: most often rejected, of these the highest logit."""
    order = np.lexsort((found.entries, -logits, -found.times))
    ranked: NDArray[np.int64] = order[~np.isnan(logits[order])]
    return ranked


def precision(index: Index, entries: IntArray, at: int) -> float:
    """The share of the first `at` entries that are positive in the full labels."""
    first = entries[:at]
    return float(_truth(index, first).mean()) if len(first) else 0.0


def chance(index: Index) -> float:
    """The share of all unobserved entries that are positive in the full labels."""
    rows = np.arange(len(index))
    positive, _ = index.truth_cells(rows)
    observed, _ = index.label_cells(rows)
    missed = len(np.setdiff1d(positive, observed))
    return missed / max(1, len(index) * index.num_classes - len(observed))


def _truth(index: Index, entries: IntArray) -> NDArray[np.bool_]:
    rows, place = np.unique(entries // index.num_classes, return_inverse=True)
    positive, _ = index.truth_cells(rows)
    return np.isin(place * index.num_classes + entries % index.num_classes, positive)


def audit_figures(index: Index, ranked: IntArray, by_score: IntArray, ats: tuple[int, ...]) -> dict[str, Any]:
    """Precision of the ranking at several lengths, against score alone and against chance; needs the full labels."""
    return {
        "chance": chance(index),
        "precision": {at: precision(index, ranked, at) for at in ats if at <= len(ranked)},
        "score_alone": {at: precision(index, by_score, at) for at in ats if at <= len(by_score)},
    }
