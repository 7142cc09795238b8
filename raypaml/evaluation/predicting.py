"""Predicts the entries of samples with a model, the observed ones or all, without a dense matrix of a whole split."""

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
    """R predicted entries; every array is [R]."""

    row: NDArray[np.int64]
    """Number of the sample in its split."""
    class_index: NDArray[np.int64]
    """Column of the class in the vocabulary."""
    label: NDArray[np.int8]
    """1 positive, 0 negative, -1 unobserved."""
    P: NDArray[np.float32]
    """Spatial mean of the positive part of the class activation map."""
    N: NDArray[np.float32]
    """Spatial mean of the negative part of the map; the logit is `alpha P + N`."""
    skipped: tuple[Skip, ...] = ()
    """Broken samples of this rank, which have no entry."""

    def ap(self, alpha: float, num_classes: int) -> FloatArray:
        """[K] average precision over observed entries at this alpha, under the convention `paper`."""
        logits = np.float32(alpha) * self.P + self.N
        return average_precision(self.class_index, logits, self.label == POSITIVE, num_classes)

    def gather(self, ranks: Ranks) -> Predictions:
        """The entries of all ranks, on every rank; `runs.skips.gather` gathers the skipped samples."""
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
    """Predict this rank's share of a split; each sample belongs to one rank.

    Args:
        model: the model; its device is that of `ranks`.
        data, split: the samples.
        ranks: the processes that share the split.
        optim: the precision in which the model computes.
        lanes: sizes of the parts of a batch, as in training, so that the number of processes changes no bit.
        batch_size: samples of a global batch.
        loader_workers: threads that read images.
        features: features of a frozen backbone that were kept, in the place of images; None computes them.
        skip_broken: leave broken samples out, instead of raising.
        moved: called after every batch, for a watchdog.
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
    """Predict the observed entries of the samples of some steps of a plan, or with `unobserved` all entries.

    The other arguments are those of `predict_split`.
    """
    index = data.splits[split]
    reader = Reader(data.shards, index, steps, skip_broken=skip_broken, with_images=features is None)
    no_entries = tuple(np.empty(0, kind) for kind in (np.int64, np.int64, np.int8, np.float32, np.float32))
    columns, skipped = [no_entries], list[Skip]()
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
            # lane by lane: the last bit of a convolution may depend on the batch's shape, and lanes keep theirs
            lanes = lane_slices(batch.lane_sizes)
            parts = [pooled(batch.images[lane].to(device, non_blocking=True)) for lane in lanes]
            p, n = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
            labels = batch.labels.numpy()
            cell = position, classes = np.nonzero((labels != UNOBSERVED) | unobserved)
            columns.append((batch.rows[position], classes, labels[cell], p[cell], n[cell]))
    model.train()
    row, class_index, label, p, n = (np.concatenate(column) for column in zip(*columns, strict=True))
    return Predictions(row, class_index, label, p, n, tuple(skipped))
