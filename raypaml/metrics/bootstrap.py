"""Bootstrap over images: how much a mean AP, or the difference of two, would vary between test sets of this size.

The labels of an image are not independent, so whole images are drawn, with replacement (Efron, 1979). A replicate is a
weight per image: how often it was drawn. The ranking stays the same and only the weights of its entries change, so that
a replicate costs cumulative sums instead of a sort.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from raypaml.labels import FloatArray, IntArray
from raypaml.metrics.average_precision import Ranking

REPLICATES_AT_ONCE = 10
BLOCK_ENTRIES = 1 << 15
"""Entries that are weighted together, few enough for the processor's cache."""

_Kind = TypeVar("_Kind", np.int32, np.float64)


def image_weights(seed: int, first: int, count: int, num_images: int) -> NDArray[np.uint8]:
    """[count, num_images] how often replicates `first`, `first + 1`, ... drew each image; each draws num_images.

    A replicate depends on (seed, number, num_images) alone, so that two runs on the same images get the same draws.
    """
    generators = (np.random.default_rng([seed, number]) for number in range(first, first + count))
    draws = (rng.integers(0, num_images, num_images) for rng in generators)
    counts = np.stack([np.bincount(images, minlength=num_images) for images in draws])
    return counts.clip(max=255).astype(np.uint8)  # an image is drawn more often with a probability below 1e-400


def bootstrap_ap(
    ranking: Ranking, image: IntArray, num_images: int, *, replicates: int, seed: int = 0, threads: int = 1
) -> FloatArray:
    """The AP of every class in every replicate.

    Args:
        ranking: the ranking of R observed entries.
        image: [R] number of each entry's image, in the order of the rows that were ranked.
        num_images: number of images that can be drawn, also those without an entry in this ranking.
        replicates: number of replicates.
        seed: seed of the draws.
        threads: number of threads; NumPy releases the interpreter's lock.

    Returns:
        [replicates, K] AP; nan where a replicate drew no positive of the class. Means over classes leave these out:
        counted as 0, they would pull rare classes far below the AP whose interval is wanted.
    """
    where = _in_order(ranking, image)
    ap = np.full((replicates, ranking.num_classes), np.nan)
    blocks = _blocks(ranking)

    def fill(first: int) -> None:
        weights = image_weights(seed, first, min(REPLICATES_AT_ONCE, replicates - first), num_images)
        for low, high in blocks:
            ap[first : first + len(weights), low:high] = _weighted_ap(ranking, where, weights, low, high)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(0, replicates, REPLICATES_AT_ONCE)))
    return ap


def weighted_ap(ranking: Ranking, image: IntArray, weights: NDArray[np.uint8]) -> FloatArray:
    """The AP of every class with weighted images; weights of 0 and 1 select a part of the images.

    Args:
        ranking: the ranking of R observed entries.
        image: [R] number of each entry's image, in the order of the rows that were ranked.
        weights: [r, images] how often each image counts.

    Returns:
        [r, K] AP; nan where no positive of the class counts.
    """
    where = _in_order(ranking, image)
    return np.concatenate([_weighted_ap(ranking, where, weights, low, high) for low, high in _blocks(ranking)], 1)


def _in_order(ranking: Ranking, image: IntArray) -> NDArray[np.int32]:
    """[R] the image of each entry, in the order of the ranking."""
    return np.asarray(image)[ranking.order].astype(np.int32)


def _blocks(ranking: Ranking) -> list[tuple[int, int]]:
    """Runs of whole classes [low, high) of about BLOCK_ENTRIES entries."""
    number = (ranking.start[1:] - 1).clip(min=0) // BLOCK_ENTRIES
    lows = np.flatnonzero(np.diff(number, prepend=-1))
    return list(zip(lows.tolist(), [*lows[1:].tolist(), ranking.num_classes], strict=True))


def _weighted_ap(
    ranking: Ranking, where: NDArray[np.int32], weights: NDArray[np.uint8], low: int, high: int
) -> FloatArray:
    """[r, high - low] AP of the classes [low, high) where the images count `weights` [r, images] times."""
    first, end = ranking.start[low], ranking.start[high]
    hit_start = ranking.hit_start[low : high + 1]
    mine = slice(hit_start[0], hit_start[-1])
    hits, tie_end = ranking.hits[mine] - first, ranking.tie_end[mine] - first
    hit_class = ranking.classes[ranking.hits[mine]] - low
    weight = weights[:, where[first:end]]
    hit_weight = weight[:, hits]
    entry_sums, hit_sums = _sums(weight, np.int32), _sums(hit_weight, np.int32)
    hit_start = hit_start - hit_start[0]
    entries = entry_sums[:, tie_end] - entry_sums[:, (ranking.start[low:high] - first)[hit_class]]
    positives = hit_sums[:, np.searchsorted(hits, tie_end)] - hit_sums[:, hit_start[:-1][hit_class]]
    gain = _sums(hit_weight * (positives / np.maximum(entries, 1)), np.float64)
    drawn = hit_sums[:, hit_start[1:]] - hit_sums[:, hit_start[:-1]]
    total = gain[:, hit_start[1:]] - gain[:, hit_start[:-1]]
    return np.where(drawn > 0, total / np.maximum(drawn, 1), np.nan)


def _sums(values: NDArray[np.generic], kind: type[_Kind]) -> NDArray[_Kind]:
    """[r, n + 1] sums of the first 0, 1, ... n values of each row."""
    sums = np.zeros((values.shape[0], values.shape[1] + 1), kind)
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def interval(figure: float, values: FloatArray, level: float = 0.95) -> tuple[float, float]:
    """A confidence interval: the figure, plus the spread of its replicates about their mean.

    A positive that is drawn twice is ranked next to itself, so that the replicates of a rare class's AP are biased
    upwards. Their mean is therefore not used, only their spread about it.

    Args:
        figure: the figure on the images as they are.
        values: [replicates] the figure in each replicate; nan where it has none.
        level: share of the replicates that the interval contains.

    Returns:
        The lower and the upper end; nan, nan where no replicate has a value.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = figure - values.mean() + np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
