"""Scores all entries of a split part by part, over processes; of the unobserved ones the likeliest are kept.

Parts are the same for every number of processes, and so are the batches in them, for the last bit of a convolution may
depend on the batch. Memory does not grow with the data set.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from raypaml.auditing.ranking import NOTHING, EntryRanking, ObservedScores, Scored
from raypaml.config import TrainConfig
from raypaml.counting import Count
from raypaml.data.batches import Batch, Reader, read
from raypaml.data.data_folder import DataFolder, open_folder
from raypaml.data.index import Index
from raypaml.explanations.comparing import batch_of
from raypaml.labels import POSITIVE, UNOBSERVED, IntArray
from raypaml.mapper import Mapper
from raypaml.model.cam import CamClassifier
from raypaml.runs.models import checkpoint_model

_BATCH = 64
PART_IMAGES = 4 * _BATCH
"""Images of one call to a process."""
MOST_FITTED = 1_000_000
"""The most observed positives, and the most negatives, of validation that an estimate is fitted to; of more, a sample
of about so many is drawn, the same in every process."""


@dataclass(frozen=True)
class AuditedModel:
    """A checkpoint, its data set and the device: small enough for every call, and loaded once in each process."""

    checkpoint: Path
    weights: str
    """SHA-256 of the weights."""
    config: TrainConfig
    data: str
    """Path or address of the data set."""
    device: str
    """"cuda" or "cpu"."""


@functools.lru_cache(maxsize=1)
def opened_model(audited: AuditedModel) -> tuple[CamClassifier, DataFolder]:
    """The model and its data set, kept for the next part of the same ones; the process computes with one thread."""
    torch.set_num_threads(1)  # as for prediction: the last bit may depend on the number of threads
    data = open_folder(audited.data, **audited.config.data.opening)
    model = checkpoint_model(audited.checkpoint, audited.config.model, len(data.vocabulary)).to(audited.device)
    return model.eval(), data


@dataclass(frozen=True)
class PartFirst:
    """The first entries of a part under each ranking, and the images that could not be read."""

    first: list[Scored]
    images: int
    broken: int


def likeliest(
    audited: AuditedModel, samples: int, rankings: Sequence[EntryRanking], run: Mapper, say: Callable[[str], None]
) -> tuple[list[Scored], int]:
    """The first unobserved entries of the training split under each ranking, and the number of broken images.

    Args:
        audited: the model and its data set.
        samples: number of training samples.
        rankings: the orders.
        run: maps calls over processes.
        say: prints a line of progress.
    """
    calls = [
        (audited, first, min(first + PART_IMAGES, samples), list(rankings)) for first in range(0, samples, PART_IMAGES)
    ]
    best, broken = [NOTHING for _ in rankings], 0
    for part in Count("scoring train", samples, say).each(run(first_of_part, calls), lambda part: part.images):
        best = [order.first(so_far.joined(new)) for order, so_far, new in zip(rankings, best, part.first, strict=True)]
        broken += part.broken
    return best, broken


def first_of_part(audited: AuditedModel, first: int, end: int, rankings: list[EntryRanking]) -> PartFirst:
    """The first unobserved entries of the training samples from `first` to `end` - 1 under each ranking."""
    best, broken = [NOTHING for _ in rankings], 0
    for batch, p, n in _pooled(audited, "train", first, end):
        broken += len(batch.skipped)
        free = batch.labels.numpy() == UNOBSERVED
        for at, ranking in enumerate(rankings):
            columns = ranking.columns
            values = ranking.estimate.log_odds(columns, p[:, columns], n[:, columns])
            position, place = np.nonzero(free[:, columns] & (values >= ranking.least(best[at])))
            classes = columns[place]
            fresh = Scored(
                batch.rows[position] * ranking.num_classes + classes, p[position, classes], n[position, classes]
            )
            best[at] = ranking.first(best[at].joined(fresh))
    return PartFirst(best, end - first, broken)


def observed_scores(audited: AuditedModel, index: Index, run: Mapper, say: Callable[[str], None]) -> ObservedScores:
    """P, N and label of the observed entries of validation, or of a sample of them; the same for any processes.

    Args:
        audited: the model and its data set.
        index: the validation split.
        run: maps calls over processes.
        say: prints a line of progress.
    """
    samples = len(index)
    shares = tuple(min(1.0, MOST_FITTED / max(1, len(labels.values))) for labels in (index.negatives, index.positives))
    calls = [(audited, first, min(first + PART_IMAGES, samples), shares) for first in range(0, samples, PART_IMAGES)]
    parts = Count("scoring validation", samples, say).each(
        run(observed_of_part, calls), lambda part: min(PART_IMAGES, samples - part[0])
    )
    return ObservedScores.concatenated([_NONE_OBSERVED, *(scores for _, scores in sorted(parts, key=lambda p: p[0]))])


_NONE_OBSERVED = ObservedScores(
    np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32), np.empty(0, bool), np.empty(0)
)


def observed_of_part(
    audited: AuditedModel, first: int, end: int, shares: tuple[float, float]
) -> tuple[int, ObservedScores]:
    """The first sample, and the observed entries of the validation samples from `first` to `end` - 1.

    Of negatives and of positives, these shares are drawn.
    """
    parts = [_NONE_OBSERVED]
    for batch, p, n in _pooled(audited, "validation", first, end):
        labels = batch.labels.numpy()
        position, classes = np.nonzero(labels != UNOBSERVED)
        positive = labels[position, classes] == POSITIVE
        share = np.array(shares)[positive.astype(np.int64)]
        drawn = uniform(batch.rows[position] * labels.shape[1] + classes) < share
        position, classes = position[drawn], classes[drawn]
        weight = 1 / share[drawn]
        parts.append(ObservedScores(classes, p[position, classes], n[position, classes], positive[drawn], weight))
    return first, ObservedScores.concatenated(parts)


def uniform(entries: IntArray) -> NDArray[np.float64]:
    """A number of [0, 1) for each entry that looks random and is always the same (the finaliser of splitmix64)."""
    mixed = entries.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53


def _pooled(
    audited: AuditedModel, split: str, first: int, end: int
) -> Iterator[tuple[Batch, NDArray[np.float32], NDArray[np.float32]]]:
    """The batches of the samples from `first` to `end` - 1 of a split, with P and N [B, K].

    Raises:
        ValueError: the model gives a value that is not finite; such a value has no place in a ranking.
    """
    model, data = opened_model(audited)
    index, device = data.splits[split], torch.device(audited.device)
    steps = [batch_of(np.arange(start, min(start + _BATCH, end))) for start in range(first, end, _BATCH)]
    reader = Reader(data.shards, index, steps, skip_broken=True)
    with torch.inference_mode():
        for batch in read(reader, loader_workers=audited.config.data.loader_workers, pin_memory=device.type == "cuda"):
            if not len(batch.rows):
                yield batch, np.empty((0, index.num_classes), np.float32), np.empty((0, index.num_classes), np.float32)
                continue
            p, n = (part.cpu().numpy() for part in model.pooled(batch.images.to(device, non_blocking=True)))
            if not (sound := np.isfinite(p + n).all(1)).all():
                key = batch.keys[int(sound.argmin())]
                raise ValueError(f"{audited.checkpoint}: the scores of image {key!r} are not finite numbers")
            yield batch, p, n
