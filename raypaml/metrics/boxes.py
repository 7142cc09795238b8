"""Boxes read off class activation maps, against known ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from raypaml.metrics.explanations import Floats, Result, box_iou

THRESHOLDS = np.arange(0.05, 1.0, 0.05)
"""Of a map's range, tried one after the other."""


def max_box_iou(
    maps: Floats,
    boxes: list[Floats],
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
    cell = np.array([image[1] / grid[1], image[0] / grid[0]])
    found = np.zeros((len(maps), len(thresholds)))
    for n, (values, known) in enumerate(zip(maps, boxes, strict=True)):
        low, high = float(values.min()), float(values.max())
        for t, threshold in enumerate(thresholds):
            corners = _largest_part(values.reshape(grid) >= low + threshold * (high - low))
            found[n, t] = box_iou(corners * np.tile(cell, 2), known).max(initial=0)
    return found


def _largest_part(mask: NDArray[np.bool_]) -> Result:
    """The cell corners x0 y0 x1 y1 around the largest connected part of a mask that is not empty."""
    parts, _ = ndimage.label(mask)
    largest = int(np.bincount(parts[mask]).argmax())
    rows, columns = ndimage.find_objects((parts == largest).astype(np.int8))[0]
    return np.array([columns.start, rows.start, columns.stop, rows.stop], np.float64)
