"""Compare the maps of a model with those of another, image by image: only the figures of each pair are kept.

A pair is an image and a class that was observed in it. Attributions are the raw map's, before BoostLU, and beside them
the boosted map's, each with its own model's alpha. BoostLU keeps the order of attributions, so that rank correlations
and what follows from places are the same for both. (BoostLU, CVPR 2023, section 3.)
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
from raypaml.data.plan import Part
from raypaml.explanations.boxes import Boxes
from raypaml.explanations.pairs import Pairs
from raypaml.labels import POSITIVE, UNOBSERVED
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
SOME = 100
SOME_AT_ONCE = 4
"""Whole maps of 5,000 classes at 14 x 14: 4 MB an image."""


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
    """The figures of every observed (image, class) of some steps of a plan, streaming.

    Args:
        model: whose maps are looked at.
        other: the one compared with, usually trained on full labels; its grid is resized to the first's.
        data, split, steps: which images.
        boxes: known ones, instead of the data set's own.
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
    """The figures of SOME images, evenly spaced over a split, for a report: on the CPU, a few at a time."""
    steps = evenly_spaced(len(data.splits[split]), SOME, SOME_AT_ONCE)
    return explain_steps(model, None, data, split, steps, torch.device("cpu"), skip_broken=skip_broken)


def evenly_spaced(total: int, count: int, size: int) -> list[Part]:
    """Steps of `size` over at most `count` of `total` samples."""
    rows = np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))
    return [_step(rows[start : start + size]) for start in range(0, len(rows), size)]


def _step(rows: NDArray[np.int64]) -> Part:
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
    """[n, h x w] these maps after BoostLU with the alpha of their classes."""
    alpha = model.alpha.cpu()[class_index] if isinstance(model.alpha, Tensor) else model.alpha
    boosted: NDArray[np.float32] = boostlu(torch.from_numpy(maps)[..., None], alpha)[..., 0].numpy()
    return boosted


def _maps(cam: Tensor, position: NDArray[np.int64], class_index: NDArray[np.int64]) -> NDArray[np.float32]:
    """[n, h x w] the maps of these pairs."""
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
    """Pointing game, its chance level, energy and box overlap, where boxes of the class are known."""
    boxes_of = [_boxes_by_class(known_boxes.boxes(int(row))) for row in batch.rows]
    boxes = [boxes_of[i].get(int(k), np.empty((0, 4))) for i, k in zip(position, class_index, strict=True)]
    known = np.flatnonzero([len(found) > 0 for found in boxes] & positive)
    image = (batch.images.shape[2], batch.images.shape[3])
    found, figures = [boxes[n] for n in known], np.full((4, len(maps)), np.nan)
    if len(known):
        figures[0, known] = pointing_game(maps[known], found, grid, image)
        figures[1, known] = chance_level(found, grid, image)
        figures[2, known] = energy_inside(maps[known], found, grid, image)
        figures[3, known] = max_box_iou(maps[known], found, grid, image).max(1)
    return list(figures)


def _boxes_by_class(boxes: Sequence[dict[str, float]]) -> dict[int, NDArray[np.float64]]:
    found: dict[int, list[list[float]]] = {}
    for box in boxes:
        found.setdefault(int(box["class"]), []).append([box["x0"], box["y0"], box["x1"], box["y1"]])
    return {k: np.array(corners) for k, corners in found.items()}
