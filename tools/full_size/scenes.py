"""Scenes of which everything is known: which classes are in them, where, and what they look like.

The classes are numbered by frequency, 0 the most frequent, and are a tree: above class k is class k // BRANCH, from
BRANCH on. A scene has up to SLOTS objects, four of them in its quadrants and one over its middle; what is true of it
are the classes of its objects and all classes above them. An object has the colours and the texture of its class, of
which it shares the first colour with its whole branch, and is more often in the quadrant that its class prefers.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import simplejpeg
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ranks = NDArray[np.int16]
"""Numbers of classes by frequency; EMPTY where there is no object."""

CLASSES = 5_000
BRANCH = 8
SLOTS = 5
QUADRANTS = 4
EMPTY = -1
SIDE, HALF = 32, 16
"""Pixels of a side of a picture, and of an object."""
QUALITY = 84
"""Quality at which the pictures are written as JPEG; they are about 1 kB large then."""
_INNER = slice(2, 14)
"""The pixels of an object that are seen where it lies over the middle of the picture."""
_MIDDLE = slice(10, 22)


def parents() -> NDArray[np.int64]:
    """Returns [CLASSES] the class above each, or EMPTY."""
    ranks = np.arange(CLASSES)
    return np.where(ranks < BRANCH, EMPTY, ranks // BRANCH)


@cache
def lineages() -> NDArray[np.int64]:
    """Returns [CLASSES, depth] each class and those above it; the one at the top is repeated."""
    levels = [np.arange(CLASSES)]
    while (levels[-1] >= BRANCH).any():
        levels.append(np.where(levels[-1] < BRANCH, levels[-1], levels[-1] // BRANCH))
    return np.stack(levels, 1)


def _digits() -> NDArray[np.int64]:
    """Returns [CLASSES, depth] which child of which child each class is, from 1; 0 below its own level."""
    lineage = lineages()
    digits = np.zeros_like(lineage)
    for level in range(lineage.shape[1]):
        own = np.flatnonzero((lineage >= BRANCH).sum(1) >= level)  # as deep as this level
        depth = (lineage[own] >= BRANCH).sum(1)
        digits[own, level] = lineage[own, depth - level] % BRANCH + 1
    return digits


def _colours(hues: NDArray[np.float64], lightness: float) -> NDArray[np.float64]:
    """Returns [n, 3] colours of these hues, 0 to 1, as levels 0 to 255."""
    waves = np.cos(2 * np.pi * (hues[:, None] - np.array([0, 1 / 3, 2 / 3])))
    colours: NDArray[np.float64] = lightness + 95 * waves
    return colours


@cache
def patterns() -> Bytes:
    """Returns [CLASSES, HALF, HALF, 3] what an object of each class looks like."""
    top, second, third, fourth, fifth = _digits().T
    angle, cycles = np.pi * third / (BRANCH + 1), 1 + 0.5 * fourth
    y, x = np.mgrid[:HALF, :HALF] / HALF
    across = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    wave = np.sin(2 * np.pi * (cycles[:, None, None] * across + fifth[:, None, None] / (BRANCH + 1)))
    share = (0.62 + 0.38 * wave)[..., None]
    first, other = _colours(top / BRANCH, 145), _colours(second / (BRANCH + 1), 110)
    both = share * first[:, None, None] + (1 - share) * other[:, None, None]
    levels: Bytes = both.clip(0, 255).astype(np.uint8)
    return levels


def arranged(quadrants: Ranks, rng: np.random.Generator) -> Ranks:
    """Returns the objects of [n, QUADRANTS] in the order of their quadrants, most often as their classes prefer it."""
    wish = np.where(quadrants == EMPTY, rng.uniform(0, QUADRANTS, quadrants.shape), quadrants % QUADRANTS)
    return np.take_along_axis(quadrants, np.argsort(wish + rng.normal(0, 0.7, wish.shape), axis=1), axis=1)


def draw(objects: Ranks, rng: np.random.Generator) -> Bytes:
    """Returns [n, SIDE, SIDE, 3] pictures of scenes, [n, SLOTS] objects."""
    count = len(objects)
    ground = rng.integers(60, 180, (count, 1, 1, 1, 1, 3), np.uint8)
    corners = objects[:, :QUADRANTS].reshape(count, 2, 2)
    seen = np.where((corners == EMPTY)[..., None, None, None], ground, patterns()[corners])
    pictures = seen.transpose(0, 1, 3, 2, 4, 5).reshape(count, SIDE, SIDE, 3)
    over = np.flatnonzero(objects[:, QUADRANTS] != EMPTY)
    pictures[over, _MIDDLE, _MIDDLE] = patterns()[objects[over, QUADRANTS], _INNER, _INNER]
    light = rng.integers(205, 257, (count, 1, 1, 1), np.uint16)
    grain = rng.integers(0, 14, (count, SIDE, SIDE, 1), np.uint8)
    lit: Bytes = np.minimum((pictures * light >> 8) + grain, 255).astype(np.uint8)
    return lit


def encoded(picture: Bytes) -> bytes:
    """Returns a picture as JPEG."""
    subsampling = "420" if picture.shape[-1] == 3 else "Gray"
    space = "RGB" if picture.shape[-1] == 3 else "GRAY"
    content: bytes = simplejpeg.encode_jpeg(picture, QUALITY, space, subsampling)
    return content
