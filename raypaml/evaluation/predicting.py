"""Predict the entries of samples with a model: observed ones, or all; never a dense matrix of a whole split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raypaml.data.batches import Reader, read
from raypaml.data.data_folder import DataFolder
from raypaml.data.plan import Part, Plan, lane_slices
from raypaml.labels import POSITIVE, UNOBSERVED, FloatArray
from raypaml.metrics.average_precision import average_precision
from raypaml.model.cam import CamClassifier
from raypaml.runs.kept_features import Features
from raypaml.runs.models import evaluating
from raypaml.runs.ranks import Ranks
from raypaml.runs.skips import Skip
from raypaml.settings import OptimConfig


@dataclass(frozen=True)
class Predictions:
    """R entries: the sample, the class, its label, and the score's parts P and N."""

    row: NDArray[np.int64]
    class_index: NDArray[np.int64]
    label: NDArray[np.int8]
    P: NDArray[np.float32]
    N: NDArray[np.float32]
    skipped: tuple[Skip, ...] = ()
    """Broken samples of this rank, which have no entry."""

    def ap(self, alpha: float, num_classes: int) -> FloatArray:
        """[K] average precision of observed entries with this alpha, convention `paper`."""
        logits = np.float32(alpha) * self.P + self.N
        return average_precision(self.class_index, logits, self.label == POSITIVE, num_classes)

    def gather(self, ranks: Ranks) -> Predictions:
        """The entries of all ranks, on every rank; what they skipped is gathered by `skips.gather`."""
        columns = (self.row, self.class_index, self.label, self.P, self.N)
        return Predictions(*(ranks.gather(column) for column in columns))  # type: ignore[arg-type]


def predict_split(
    model: CamClassifier,
    data: DataFolder,
    split: str,
    ranks: Ranks,
    *,
    optim: OptimConfig,
    lanes: int,
    batch_size: int,
    loader_workers: int,
    features: Features | None = None,
    skip_broken: bool = False,
    moved: Callable[[], None] = lambda: None,
) -> Predictions:
    """Predict this rank's share of a split, from kept features if there are any; each sample belongs to one rank.

    `optim` says in which precision; `moved` is called for every batch.
    """
    plan = Plan(num_samples=len(data.splits[split]), global_batch_size=batch_size, lanes=lanes, shuffle=False)
    steps = plan.epoch(0, ranks.rank, ranks.world_size)
    return predict_steps(
        model,
        data,
        split,
        steps,
        ranks.device,
        optim=optim,
        loader_workers=loader_workers,
        features=features,
        skip_broken=skip_broken,
        moved=moved,
    )


def predict_steps(
    model: CamClassifier,
    data: DataFolder,
    split: str,
    steps: Sequence[Part],
    device: torch.device,
    *,
    optim: OptimConfig,
    loader_workers: int,
    unobserved: bool = False,
    features: Features | None = None,
    skip_broken: bool = False,
    moved: Callable[[], None] = lambda: None,
) -> Predictions:
    """Predict the samples of some steps of a plan, in the precision of `optim`: their observed entries, or all."""
    index = data.splits[split]
    reader = Reader(data.shards, index, steps, skip_broken=skip_broken, with_images=features is None)
    columns, skipped = [_empty()], list[Skip]()
    model.eval()
    with torch.inference_mode(), evaluating(optim, device):
        threads, pin = loader_workers if features is None else 0, device.type == "cuda"
        batches = read(reader, loader_workers=threads, pin_memory=pin)
        if features is not None:
            batches = features.instead(batches, pin_memory=pin)
        pooled = model.pooled if features is None else model.pooled_features
        for batch in batches:
            moved()
            skipped += batch.skipped
            if not len(batch.rows):
                continue
            # lane by lane: a convolution's last bit may depend on the batch's shape, not so the lanes'
            lanes = lane_slices(batch.lane_sizes)
            parts = [pooled(batch.images[lane].to(device, non_blocking=True)) for lane in lanes]
            p, n = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
            labels = batch.labels.numpy()
            cell = position, classes = np.nonzero((labels != UNOBSERVED) | unobserved)
            columns.append((batch.rows[position], classes, labels[cell], p[cell], n[cell]))
    model.train()
    row, class_index, label, p, n = (np.concatenate(column) for column in zip(*columns, strict=True))
    return Predictions(row, class_index, label, p, n, tuple(skipped))


def _empty() -> tuple[NDArray[np.generic], ...]:
    return tuple(np.empty(0, kind) for kind in (np.int64, np.int64, np.int8, np.float32, np.float32))
