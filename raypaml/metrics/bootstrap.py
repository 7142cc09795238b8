"""Bootstrap over images: how far a mean AP, or the difference of two, would move on another test set of this size.

Labels of one image move together, so whole images are drawn, with replacement (Efron, 1979). A replicate is a weight
per image: how often it was drawn. The entries stay sorted; only their weights change, so a replicate costs cumulative
sums instead of a sort.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypaml.labels import FloatArray, IntArray
from raypaml.metrics.average_precision import Ranking

REPLICATES_AT_ONCE = 10
BLOCK_ENTRIES = 1 << 15
"""Entries weighted at once, for the processor's cache."""


def image_weights(seed: int, first: int, count: int, num_images: int) -> NDArray[np.uint8]:
    """[count, num_images] how often replicates `first`, `first + 1`, ... drew each image; each draws num_images.

    A replicate depends on (seed, number, num_images) alone: two runs on the same images get the same draws.
    """
    draws = (np.random.default_rng([seed, number]) for number in range(first, first + count))
    return np.stack([_draw(rng, num_images) for rng in draws])


def _draw(rng: np.random.Generator, num_images: int) -> NDArray[np.uint8]:
    counts = np.bincount(rng.integers(0, num_images, num_images), minlength=num_images)
    return counts.clip(max=255).astype(np.uint8)  # of 1e9 images, one in 1e400 is drawn so often


def bootstrap_ap(
    ranking: Ranking, image: IntArray, num_images: int, *, replicates: int, seed: int = 0, threads: int = 1
) -> FloatArray:
    """AP of every class in every replicate.

    Args:
        ranking: of R observed entries.
        image: [R] number of each entry's image, in the order of the rows that were ranked.
        num_images: images that can be drawn, also those without an entry in this ranking.
        replicates: how many.
        seed: of the draws.
        threads: NumPy's work runs beside itself on this many.

    Returns:
        [replicates, K]; nan where a replicate drew no positive of the class. The mean over classes leaves these out:
        to count them 0 would pull rare classes far below the figure that the interval is of.
    """
    where = _in_order(ranking, image)
    found = np.full((replicates, ranking.num_classes), np.nan)
    blocks = _blocks(ranking)

    def fill(first: int) -> None:
        weights = image_weights(seed, first, min(REPLICATES_AT_ONCE, replicates - first), num_images)
        for low, high in blocks:
            found[first : first + len(weights), low:high] = _weighted_ap(ranking, where, weights, low, high)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(0, replicates, REPLICATES_AT_ONCE)))
    return found


def weighted_ap(ranking: Ranking, image: IntArray, weights: NDArray[np.uint8]) -> FloatArray:
    """AP of every class where images count a number of times, such as 0 and 1 for a part of them.

    Args:
        ranking: of R observed entries.
        image: [R] number of each entry's image, in the order of the rows that were ranked.
        weights: [r, images] how often each image counts.

    Returns:
        [r, K]; nan where no positive of the class counts.
    """
    where = _in_order(ranking, image)
    return np.concatenate([_weighted_ap(ranking, where, weights, low, high) for low, high in _blocks(ranking)], 1)


def _in_order(ranking: Ranking, image: IntArray) -> NDArray[np.int32]:
    """[R] the image of each entry, best first, as the entries stand in the ranking."""
    return np.asarray(image)[ranking.order].astype(np.int32)


def _blocks(ranking: Ranking) -> list[tuple[int, int]]:
    """Runs of whole classes [low, high) of about BLOCK_ENTRIES entries."""
    number = (ranking.start[1:] - 1).clip(min=0) // BLOCK_ENTRIES
    lows = np.flatnonzero(np.diff(number, prepend=-1))
    return list(zip(lows.tolist(), [*lows[1:].tolist(), ranking.num_classes], strict=True))


def _weighted_ap(
    ranking: Ranking, where: NDArray[np.int32], weights: NDArray[np.uint8], low: int, high: int
) -> FloatArray:
    """[r, high - low] AP of some classes when entries count `weights` [r, images] times."""
    first, end = ranking.start[low], ranking.start[high]
    hit_start = ranking.hit_start[low : high + 1]
    mine = slice(hit_start[0], hit_start[-1])
    hits, tie_end = ranking.hits[mine] - first, ranking.tie_end[mine] - first
    hit_class = ranking.classes[ranking.hits[mine]] - low
    weight = weights[:, where[first:end]]
    hit_weight = weight[:, hits]
    seen, found = _sums(weight), _sums(hit_weight)
    hit_start = hit_start - hit_start[0]
    entries = seen[:, tie_end] - seen[:, (ranking.start[low:high] - first)[hit_class]]
    positives = found[:, np.searchsorted(hits, tie_end)] - found[:, hit_start[:-1][hit_class]]
    gain = _sums(hit_weight * (positives / np.maximum(entries, 1)), np.float64)
    drawn = found[:, hit_start[1:]] - found[:, hit_start[:-1]]
    total = gain[:, hit_start[1:]] - gain[:, hit_start[:-1]]
    return np.where(drawn > 0, total / np.maximum(drawn, 1), np.nan)


def _sums(values: NDArray[Any], kind: type = np.int32) -> NDArray[Any]:
    """[r, n + 1] sums of the first 0, 1, ... n values of each row."""
    sums = np.zeros((values.shape[0], values.shape[1] + 1), kind)
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def interval(figure: float, values: FloatArray, level: float = 0.95) -> tuple[float, float]:
    """Where the figure would lie on other test sets of this size: the spread of its replicates, about itself.

    A positive that is drawn twice ranks beside itself, so replicates of a rare class's AP lie above the figure; only
    their spread about their own mean is used, not their place.

    Args:
        figure: of the images as they are.
        values: [replicates] of it; nan where a replicate has none.
        level: share of replicates within.

    Returns:
        Lower and upper end; nan, nan where no replicate has a value.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = figure - values.mean() + np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
