"""Where the map of a class is large in an image: a box around it, and its outline for the page to draw."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from raypaml.labels import RealArray


def place(cam: RealArray, height: int, width: int) -> tuple[int, int, int, int]:
    """The box x0 y0 x1 y1, in pixels, around all cells with at least half the largest attribution.

    Args:
        cam: [h, w] the map; where none of its values is positive, the box is the whole image.
        height, width: of the image, in pixels.
    """
    peak = float(cam.max())
    rows, columns = np.nonzero(cam >= peak / 2 if peak > 0 else np.ones_like(cam, bool))
    down, across = height / cam.shape[0], width / cam.shape[1]
    x0, y0, x1, y1 = columns.min() * across, rows.min() * down, (columns.max() + 1) * across, (rows.max() + 1) * down
    return int(x0), int(y0), int(np.ceil(x1)), int(np.ceil(y1))


def outline(cam: RealArray, height: int, width: int) -> str:
    """The line along which the map, interpolated between its cells, is half its largest attribution, as an SVG path.

    The map counts as 0 outside the image, so that the line stays within it (marching squares).

    Args:
        cam: [h, w] the map; where none of its values is positive, the path is empty.
        height, width: of the image, in pixels, which are the units of the path.
    """
    level = float(cam.max()) / 2
    if level <= 0:
        return ""
    down, across = height / cam.shape[0], width / cam.shape[1]
    segments = _segments(np.pad(cam.clip(0) - level, 1, constant_values=-level))
    return "".join(
        "".join(
            f"{sign}{(x - 0.5) * across:.4g} {(y - 0.5) * down:.4g}" for sign, (x, y) in zip("ML", ends, strict=True)
        )
        for ends in segments
    )


def _segments(values: RealArray) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """The segments, from (x, y) to (x, y), of the line along which values at whole numbers are 0."""
    above = values >= 0
    corners = np.stack([above[:-1, :-1], above[:-1, 1:], above[1:, 1:], above[1:, :-1]])  # clockwise
    for y, x in np.argwhere(corners.any(0) & ~corners.all(0)).tolist():
        square = [(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)]
        ends: list[tuple[float, float]] = []
        for (x0, y0), (x1, y1) in zip(square, [*square[1:], square[0]], strict=True):
            if above[y0, x0] != above[y1, x1]:
                part = float(values[y0, x0] / (values[y0, x0] - values[y1, x1]))
                ends.append((x0 + part * (x1 - x0), y0 + part * (y1 - y0)))
        yield from zip(ends[::2], ends[1::2], strict=True)  # two segments where opposite corners are above
