"""Boxes read off class activation maps, against known ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raypaml.labels import RealArray
from raypaml.metrics.maps import Result, box_iou

THRESHOLDS = np.arange(0.05, 1.0, 0.05)
"""Of a map's range, tried one after the other."""
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
    """[n, t] best overlap with a known box, of the box around the largest connected part of the map above a threshold.

    (MaxBoxAcc, Choe et al., CVPR 2020: the share of maps above an IoU of 0.5, at the threshold that is best for all.)

    Args:
        maps: [n, h x w].
        boxes: of each map, pixel corners x0 y0 x1 y1 [b, 4].
        grid, image: h, w and H, W.
        thresholds: [t] of the range between a map's smallest and largest value.
    """
    cell = np.array([image[1] / grid[1], image[0] / grid[0]] * 2)
    found = np.zeros((len(maps), len(thresholds)))
    for start in range(0, len(maps), CHUNK_MAPS):
        part = slice(start, start + CHUNK_MAPS)
        corners = largest_parts(_masks(maps[part], grid, thresholds)) * cell
        for n, known in enumerate(boxes[part], start):
            found[n] = box_iou(corners[n - start], known).max(axis=1, initial=0)
    return found


def _masks(maps: RealArray, grid: tuple[int, int], thresholds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[n, t, h, w] where each map is at least each threshold of its range."""
    low, high = maps.min(1), maps.max(1)
    levels = low[:, None] + thresholds * (high - low)[:, None]
    masks: NDArray[np.bool_] = maps[:, None, :] >= levels[:, :, None]
    return masks.reshape(len(maps), len(thresholds), *grid)


def largest_parts(masks: NDArray[np.bool_]) -> Result:
    """[..., 4] cell corners x0 y0 x1 y1 around the largest connected part of each mask [..., h, w]; none is empty.

    Cells are connected by their sides; of parts of the same size the first in reading order is taken.
    """
    from scipy import ndimage  # slow to import, and only where boxes are known

    stack = masks.reshape(-1, *masks.shape[-2:])
    parts, count = ndimage.label(stack, _WITHIN_A_MASK)  # all masks at once: numbers ascend through the stack
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    first = parts.reshape(len(stack), -1).max(1)  # the last number in each mask
    largest = np.array([np.argmax(sizes[a:b]) + a for a, b in zip(np.r_[0, first[:-1]] + 1, first + 1, strict=True)])
    chosen = parts == largest[:, None, None]
    corners = []
    for axis, size in ((1, stack.shape[2]), (2, stack.shape[1])):  # columns, rows
        there = chosen.any(axis)
        corners.append((there.argmax(1), size - there[:, ::-1].argmax(1)))
    (x0, x1), (y0, y1) = corners
    return np.stack([x0, y0, x1, y1], 1).astype(np.float64).reshape(*masks.shape[:-2], 4)
