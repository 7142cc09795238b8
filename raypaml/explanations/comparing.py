"""Compares the maps of a model with those of another, image by image, and keeps only the figures of each pair.

A pair is an image and a class that is observed in it. Attributions are those of the raw map, before BoostLU, and those
of the boosted map, each model at its own alpha. BoostLU keeps the order of attributions, so that rank correlations and
all figures that depend on places are the same for both. (BoostLU, CVPR 2023, section 3.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from raypaml.data.batches import Batch, Reader, read
from raypaml.data.data_folder import DataFolder
from raypaml.data.index import Index
from raypaml.data.index_table import BOX_SIDES
from raypaml.data.plan import Part
from raypaml.explanations.boxes import Boxes
from raypaml.explanations.pairs import Pairs
from raypaml.labels import POSITIVE, UNOBSERVED, RealArray
from raypaml.metrics.localisation import max_box_iou
from raypaml.metrics.maps import (
    centred_gaussian,
    chance_level,
    energy_inside,
    extremes,
    pointing_game,
    spearman,
)
from raypaml.model.cam import CamClassifier, boostlu, pool_parts

Grid = tuple[int, int]
"""Height and width of a map, in cells."""
REPORT_IMAGES = 100
"""Images whose maps are computed for a report."""
REPORT_BATCH = 4
"""Images of a batch for a report: the maps of 5,000 classes at 14 x 14 take 4 MB an image."""


def explain_steps(
    model: CamClassifier,
    other: CamClassifier | None,
    data: DataFolder,
    split: str,
    steps: Sequence[Part],
    device: torch.device,
    *,
    boxes: Boxes | None = None,
    skip_broken: bool = False,
) -> Pairs:
    """The figures of every observed pair of image and class in some steps of a plan, computed batch by batch.

    Args:
        model: the model that is explained.
        other: the model that it is compared with, usually trained on full labels; its maps are resized to the first's.
        data, split, steps: the images.
        device: where both models are.
        boxes: known boxes, in the place of the data set's own.
        skip_broken: leave broken images out, instead of raising.
    """
    reader = Reader(data.shards, data.splits[split], steps, skip_broken=skip_broken)
    for each in (model, other):
        if each is not None:
            each.eval()
    with torch.inference_mode():
        known = boxes or data.splits[split]
        parts = [_explain_batch(model, other, known, batch, device) for batch in read(reader) if len(batch.rows)]
    return Pairs.concatenated([Pairs.empty(), *parts])


def explain_some(model: CamClassifier, data: DataFolder, split: str, *, skip_broken: bool) -> Pairs:
    """The figures of REPORT_IMAGES images, evenly spaced over a split, for a report; computed on the CPU."""
    steps = evenly_spaced(len(data.splits[split]), REPORT_IMAGES, REPORT_BATCH)
    return explain_steps(model, None, data, split, steps, torch.device("cpu"), skip_broken=skip_broken)


def evenly_spaced(total: int, count: int, size: int) -> list[Part]:
    """Batches of `size` samples that hold at most `count` of `total` samples, evenly spaced."""
    rows = np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))
    return [batch_of(rows[start : start + size]) for start in range(0, len(rows), size)]


def batch_of(rows: NDArray[np.int64]) -> Part:
    """A batch of these samples, in one lane and without flips."""
    n = len(rows)
    return Part(rows=rows, first_row=0, global_rows=n, lane_sizes=(n,), flip=np.zeros(n, bool))


def _explain_batch(
    model: CamClassifier, other: CamClassifier | None, known: Index | Boxes, batch: Batch, device: torch.device
) -> Pairs:
    images = batch.images.to(device)
    cam = model.cam(images).float()
    above, below = pool_parts(cam)
    scores = torch.sigmoid(model.alpha * above + below).double().cpu().numpy()
    labels = batch.labels.numpy()
    position, class_index = np.nonzero(labels != UNOBSERVED)
    maps, grid = _maps(cam, position, class_index), (cam.shape[2], cam.shape[3])
    top, bottom = extremes(maps)
    nothing = np.full(len(maps), np.nan)
    positive = labels[position, class_index] == POSITIVE
    compared = _compare(other, images, grid, maps, position, class_index, positive) if other else [nothing] * 6
    places = _locate(known, batch, maps, grid, position, class_index, positive)
    score, boosted = scores[position, class_index], extremes(_boosted(maps, model, class_index))
    figures = [top, bottom, *compared[:4], *places, *boosted, *compared[4:]]
    return Pairs(batch.rows[position], class_index, positive, score, *figures)


def _boosted(maps: NDArray[np.float32], model: CamClassifier, class_index: NDArray[np.int64]) -> NDArray[np.float32]:
    """The maps [n, h x w] after BoostLU with the alpha of their classes."""
    alpha = model.alpha.cpu()[class_index] if isinstance(model.alpha, Tensor) else model.alpha
    boosted: NDArray[np.float32] = boostlu(torch.from_numpy(maps)[..., None], alpha)[..., 0].numpy()
    return boosted


def _maps(cam: Tensor, position: NDArray[np.int64], class_index: NDArray[np.int64]) -> NDArray[np.float32]:
    """The maps [n, h x w] of n pairs, from the maps of all classes [B, K, h, w]."""
    chosen = cam[torch.from_numpy(position), torch.from_numpy(class_index)]
    maps: NDArray[np.float32] = chosen.flatten(1).cpu().numpy()
    return maps


def _compare(
    other: CamClassifier,
    images: Tensor,
    grid: Grid,
    maps: NDArray[np.float32],
    position: NDArray[np.int64],
    class_index: NDArray[np.int64],
    positive: NDArray[np.bool_],
) -> list[NDArray[np.float64]]:
    cam = other.cam(images).float()
    if cam.shape[-2:] != grid:
        cam = F.interpolate(cam, grid, mode="bilinear", antialias=True)
    compared = _maps(cam, position, class_index)
    correlation, control = np.full((2, len(maps)), np.nan)
    correlation[positive] = spearman(maps[positive], compared[positive])
    bell = np.broadcast_to(centred_gaussian(*grid), compared[positive].shape)
    control[positive] = spearman(bell, compared[positive])
    return [*extremes(compared), correlation, control, *extremes(_boosted(compared, other, class_index))]


def _locate(
    known_boxes: Index | Boxes,
    batch: Batch,
    maps: NDArray[np.float32],
    grid: Grid,
    position: NDArray[np.int64],
    class_index: NDArray[np.int64],
    positive: NDArray[np.bool_],
) -> list[NDArray[np.float64]]:
    """Pointing game, its chance level, energy and box overlap; NaN for pairs without a known box."""
    boxes_of = [known_boxes.boxes(int(row)) for row in batch.rows]
    boxes = list[NDArray[np.float64]]()  # for each pair the corners [n, 4] x0 y0 x1 y1 of its class, in pixels
    for i, k in zip(position, class_index, strict=True):
        corners = [[box[side] for side in BOX_SIDES] for box in boxes_of[i] if box["class"] == k]
        boxes.append(np.array(corners, np.float64).reshape(-1, 4))
    known = np.flatnonzero(np.array([len(corners) > 0 for corners in boxes], bool) & positive)
    image = (batch.images.shape[2], batch.images.shape[3])
    targets: list[RealArray] = [boxes[n] for n in known]
    figures = np.full((4, len(maps)), np.nan)
    if len(known):
        figures[0, known] = pointing_game(maps[known], targets, grid, image)
        figures[1, known] = chance_level(targets, grid, image)
        figures[2, known] = energy_inside(maps[known], targets, grid, image)
        figures[3, known] = max_box_iou(maps[known], targets, grid, image).max(1)
    return list(figures)
