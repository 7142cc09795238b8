"""Bounding boxes made from class activation maps, compared with annotated ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raypaml.labels import RealArray
from raypaml.metrics.maps import Result, box_iou

THRESHOLDS = np.arange(0.05, 1.0, 0.05)
"""The thresholds that are tried, as shares of the range of a map's values."""
CHUNK_MAPS = 500
_WITHIN_A_MASK = np.zeros((3, 3, 3), np.int8)
_WITHIN_A_MASK[1] = [[0, 1, 0], [1, 1, 1], [0, 1, 0]]


def max_box_iou(
    maps: RealArray,
    boxes: list[RealArray],
    grid: tuple[int, int],
    image: tuple[int, int],
    thresholds: NDArray[np.float64] = THRESHOLDS,
) -> Result:
    """[n, t] greatest IoU of an annotated box with the box around the map's largest component above each threshold.

    (MaxBoxAcc, Choe et al., CVPR 2020: the share of maps above an IoU of 0.5, at the threshold that is best for all.)

    Args:
        maps: [n, h x w].
        boxes: for each map, the corners x0 y0 x1 y1 in pixels of its annotated boxes [b, 4].
        grid, image: h, w and H, W.
        thresholds: [t] shares of the range between a map's smallest and largest value.
    """
    cell = np.array([image[1] / grid[1], image[0] / grid[0]] * 2)
    best = np.zeros((len(maps), len(thresholds)))
    for start in range(0, len(maps), CHUNK_MAPS):
        part = slice(start, start + CHUNK_MAPS)
        low, high = maps[part].min(1), maps[part].max(1)
        levels = low[:, None] + thresholds * (high - low)[:, None]
        masks = maps[part, None, :] >= levels[:, :, None]  # [n, t, h x w]
        corners = largest_parts(masks.reshape(*levels.shape, *grid)) * cell
        for n, annotated in enumerate(boxes[part], start):
            best[n] = box_iou(corners[n - start], annotated).max(axis=1, initial=0)
    return best


def largest_parts(masks: NDArray[np.bool_]) -> Result:
    """[..., 4] corners x0 y0 x1 y1, in cells, of the box around the largest connected component of each mask.

    Cells are connected by their sides; among components of the same size the first in reading order is taken.

    Args:
        masks: bool [..., h, w], each with at least one cell.
    """
    from scipy import ndimage  # slow to import, and only where boxes are known

    stack = masks.reshape(-1, *masks.shape[-2:])
    parts, count = ndimage.label(stack, _WITHIN_A_MASK)  # labels ascend from mask to mask
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    first = parts.reshape(len(stack), -1).max(1)  # the last label in each mask
    largest = np.array([np.argmax(sizes[a:b]) + a for a, b in zip(np.r_[0, first[:-1]] + 1, first + 1, strict=True)])
    chosen = parts == largest[:, None, None]
    corners = []
    for axis, size in ((1, stack.shape[2]), (2, stack.shape[1])):  # columns, rows
        there = chosen.any(axis)
        corners.append((there.argmax(1), size - there[:, ::-1].argmax(1)))
    (x0, x1), (y0, y1) = corners
    return np.stack([x0, y0, x1, y1], 1).astype(np.float64).reshape(*masks.shape[:-2], 4)
