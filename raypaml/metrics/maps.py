"""Measures that compare the class activation maps of two models, or a map with the boxes of its class.

A map is a row: n maps of m = h x w cells are [n, m]. (BoostLU, CVPR 2023, sections 3 and 5: models trained on full and
on partial labels attend to the same places, with smaller scores in the latter.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raypaml.labels import RealArray

EXTREME_SHARE = 0.05
"""Share of a map's cells, at each end of its values, whose mean the papers take as its maximum or minimum."""
CHUNK_CELLS = 1 << 18
"""Cells that are ranked together, few enough to bound memory."""

Result = NDArray[np.float64]


def average_ranks(values: RealArray) -> Result:
    """[n, m] rank of each cell within its map, from 1; equal values share the mean of their ranks."""
    order = np.argsort(values, axis=1)
    ascending = np.take_along_axis(values, order, axis=1)
    place = np.arange(1.0, values.shape[1] + 1)
    starts = np.ones(values.shape, bool)
    starts[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
    shared = np.broadcast_to(place, values.shape) if starts.all() else _shared(starts, place)
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, shared, axis=1)
    return ranks


def _shared(starts: NDArray[np.bool_], place: Result) -> Result:
    """[n, m] the mean rank within each run of equal values, whose first value `starts` marks."""
    first = np.maximum.accumulate(np.where(starts, place, 0), axis=1)
    ends = np.ones(starts.shape, bool)
    ends[:, :-1] = starts[:, 1:]
    last = np.minimum.accumulate(np.where(ends, place, np.inf)[:, ::-1], axis=1)[:, ::-1]
    mean: Result = (first + last) / 2
    return mean


def spearman(a: RealArray, b: RealArray) -> Result:
    """[n] Spearman's rank correlation of each map of a and b [n, m], ties averaged; nan where either is constant."""
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"maps {a.shape} and {b.shape}: give both as [n, m]; resize one model's grid to the other's")
    rows = max(1, CHUNK_CELLS // max(1, a.shape[1]))
    chunks = [_spearman(a[start : start + rows], b[start : start + rows]) for start in range(0, len(a), rows)]
    return np.concatenate([*chunks, np.empty(0)])


def _spearman(a: RealArray, b: RealArray) -> Result:
    centred_a, centred_b = (average_ranks(maps) - (maps.shape[1] + 1) / 2 for maps in (a, b))
    products, squares_a, squares_b = (
        np.einsum("nm,nm->n", x, y) for x, y in ((centred_a, centred_b), (centred_a, centred_a), (centred_b, centred_b))
    )
    norm = np.sqrt(squares_a * squares_b)
    correlation: Result = np.divide(products, norm, out=np.full(len(a), np.nan), where=norm > 0)
    return correlation


def extremes(maps: RealArray, share: float = EXTREME_SHARE) -> tuple[Result, Result]:
    """[n] means of the largest and of the smallest `share` of each map's cells, of at least one cell each."""
    count = max(1, round(share * maps.shape[1]))
    ordered = np.partition(maps, (count - 1, maps.shape[1] - count), axis=1)
    return ordered[:, -count:].mean(1, dtype=np.float64), ordered[:, :count].mean(1, dtype=np.float64)


def centred_gaussian(height: int, width: int, spread: float = 0.25) -> Result:
    """[h x w] a 2-D Gaussian in the middle of the grid: the control, a map that only assumes centred objects.

    Args:
        spread: standard deviation, as a share of each side; our choice, not published.
    """
    y, x = (((np.arange(n) + 0.5) / n - 0.5) / spread for n in (height, width))
    bell: Result = np.exp(-(y[:, None] ** 2 + x[None, :] ** 2) / 2).ravel()
    return bell


def scale_ratio(partial: RealArray, full: RealArray) -> float:
    """The ratio of the median top attributions of two models; nan where the second's median is not positive.

    Args:
        partial, full: [n] top attributions of the two models for the same (image, class) pairs.
    """
    below = float(np.median(full)) if len(full) else np.nan
    return float(np.median(partial)) / below if below > 0 else float("nan")


def coverage(boxes: RealArray, grid: tuple[int, int], image: tuple[int, int], points: int = 8) -> Result:
    """[h x w] the share of each grid cell that lies inside any of the boxes, from points x points samples in it.

    Args:
        boxes: [b, 4] corners x0 y0 x1 y1 in pixels.
        grid: h, w.
        image: H, W in pixels.
    """
    (h, w), (height, width) = grid, image
    y = (np.arange(h * points) + 0.5) * height / (h * points)
    x = (np.arange(w * points) + 0.5) * width / (w * points)
    inside = np.zeros((h * points, w * points), bool)
    for x0, y0, x1, y1 in boxes:
        inside |= ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))[None, :]
    share: Result = inside.reshape(h, points, w, points).mean((1, 3)).ravel()
    return share


def pointing_game(maps: RealArray, boxes: list[RealArray], grid: tuple[int, int], image: tuple[int, int]) -> Result:
    """[n] 1 where the centre of the map's largest cell lies in a box of its class, else 0; ties: the first cell.

    (Zhang et al., Excitation backprop, ECCV 2016; without its tolerance of 15 pixels.)
    """
    (h, w), (height, width) = grid, image
    peak = maps.argmax(1)
    y, x = (peak // w + 0.5) * height / h, (peak % w + 0.5) * width / w
    hits = [
        ((b[:, 0] <= i) & (i < b[:, 2]) & (b[:, 1] <= j) & (j < b[:, 3])).any()
        for b, i, j in zip(boxes, x, y, strict=True)
    ]
    return np.array(hits, np.float64)


def chance_level(boxes: list[RealArray], grid: tuple[int, int], image: tuple[int, int]) -> Result:
    """[n] the expected score in the pointing game of a cell chosen at random."""
    return np.array([coverage(corners, grid, image, points=1).mean() for corners in boxes], np.float64)


def energy_inside(maps: RealArray, boxes: list[RealArray], grid: tuple[int, int], image: tuple[int, int]) -> Result:
    """[n] share of a map's positive attribution inside boxes of its class; nan where it has no positive attribution.

    (Energy-based pointing game, Wang et al., Score-CAM, CVPR workshops 2020.)
    """
    positive = np.maximum(maps, 0).astype(np.float64)
    inside = np.stack([coverage(corners, grid, image) for corners in boxes]) if boxes else positive
    total = positive.sum(1)
    share: Result = np.divide((positive * inside).sum(1), total, out=np.full(len(maps), np.nan), where=total > 0)
    return share


def box_iou(some: RealArray, boxes: RealArray) -> Result:
    """[a, b] intersection over union of each of some boxes [a, 4] with each of others [b, 4], corners x0 y0 x1 y1."""
    some, boxes = some[:, None], boxes[None]
    sides = np.minimum(some[..., 2:], boxes[..., 2:]) - np.maximum(some[..., :2], boxes[..., :2])
    shared = np.clip(sides, 0, None).prod(-1)
    areas = [(corners[..., 2:] - corners[..., :2]).prod(-1) for corners in (some, boxes)]
    union = areas[0] + areas[1] - shared
    iou: Result = np.divide(shared, union, out=np.zeros(shared.shape), where=union > 0)
    return iou
