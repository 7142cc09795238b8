"""Chooses the alpha that a trained model is used with: one for all classes, one per class group, or one per class.

The logit is `alpha P + N`, and P and N are stored, so that every alpha can be tried without running the model. An alpha
per class fits more of the noise than one for all classes; cross-validation over images decides which is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from raypaml.labels import FloatArray, IntArray

Way = Literal["training", "one", "group", "class"]
WAYS: tuple[Way, ...] = get_args(Way)
"""From the simplest to the richest: the alpha of training, one for all classes, one per class group, one per class."""
GRID = (*np.arange(1, 10.5, 0.5).tolist(), 12.0, 15.0, 20.0, 30.0, 50.0)
"""Alphas that are tried besides that of training: in steps of 0.5 up to 10, then wider; the published one is 5."""
FOLDS = 5
"""The number of folds of the cross-validation over images."""
SHRINKAGE = 30.0
"""Weight, in positives, of the AP over all classes in the choice for a group or a class; our choice, not published."""
_EQUAL = 1e-9
"""Mean APs that differ by no more than this are equal; such differences come from the order of summation."""


@dataclass(frozen=True)
class AlphaTable:
    """The AP of every class with each of A alphas, on F folds of the images; nan where there is no positive."""

    alphas: FloatArray
    """[A] alphas, ascending."""
    training: int
    """Index in `alphas` of the alpha of training."""
    held_out: FloatArray
    """[F, A, K] AP on the images of one fold."""
    others: FloatArray
    """[F, A, K] AP on the images of all other folds."""
    every: FloatArray
    """[A, K] AP on all images."""
    positives: IntArray
    """[F, K] number of positives in each fold."""
    class_group: IntArray
    """[K] class group, 1 to 5."""


@dataclass(frozen=True)
class AlphaCandidate:
    """One way to choose the alphas of classes, and its AP on images that they were not chosen on."""

    way: Way
    alpha: FloatArray
    """[K] alphas, chosen on all images."""
    held_out: float
    """Mean AP on the held-out fold, averaged over folds; nan without positives."""
    gain: float
    """Difference of `held_out` from that of the best simpler way, averaged over folds; 0 for the simplest way."""
    noise: float
    """Standard error of `gain` over folds."""
    wins: bool
    """Whether the gain is above its standard error, so that this way replaces the simpler one."""


def candidates(table: AlphaTable) -> list[AlphaCandidate]:
    """Compare every way, from the simplest to the richest, with the last one before it that won.

    A way wins over a simpler one only where its gain on held-out folds, compared fold by fold, is above the standard
    error of the gain. (One-standard-error rule, Breiman et al., 1984.)
    """
    positives, tried, best = table.positives.sum(0), list[AlphaCandidate](), np.empty(0)
    inside = table.positives.sum(1)
    folds = np.flatnonzero((inside > 0) & (inside < inside.sum())).tolist()  # the others must have positives too
    for way in WAYS:
        places = _places(way, table.every, positives, table) if len(folds) else np.full(len(positives), table.training)
        held_out = np.array([_held_out(way, fold, table) for fold in folds])
        gains = held_out - (best if tried else held_out)
        gain = float(gains.mean()) if len(folds) > 1 else 0.0
        noise = float(gains.std(ddof=1) / len(folds) ** 0.5) if len(folds) > 1 else 0.0
        wins = not tried or gain > noise + _EQUAL
        mean = float(held_out.mean()) if len(folds) else float("nan")
        tried.append(AlphaCandidate(way, table.alphas[places], mean, gain, noise, wins))
        best = held_out if wins else best
    return tried


def _held_out(way: Way, fold: int, table: AlphaTable) -> float:
    """Mean AP on a fold, over its classes with a positive, with the alphas that are chosen on the other folds."""
    positives = table.positives.sum(0) - table.positives[fold]
    places = _places(way, table.others[fold], positives, table)
    seen = np.flatnonzero(table.positives[fold])
    return float(table.held_out[fold, places[seen], seen].mean())


def _places(way: Way, ap: FloatArray, positives: IntArray, table: AlphaTable) -> IntArray:
    """[K] index in `table.alphas` of the alpha chosen for each class.

    Args:
        way: how classes share alphas.
        ap: [A, K] AP to choose by; nan for classes without positives. At least one class has positives.
        positives: [K] number of positives from which this AP was computed.
        table: has the class groups and the alpha of training.
    """
    if way == "training":
        return np.full(len(positives), table.training)
    overall = ap[:, positives > 0].mean(1)
    if way == "one":
        return np.full(len(positives), _highest(overall))
    if way == "class":
        return _highest(_shrunk(np.nan_to_num(ap), positives, overall))
    places = np.full(len(positives), _highest(overall))
    for group in np.unique(table.class_group):
        mine = (table.class_group == group) & (positives > 0)
        if mine.any():
            own = ap[:, mine].mean(1)
            places[table.class_group == group] = _highest(_shrunk(own[:, None], positives[mine].sum(), overall))
    return places


def _shrunk(own: FloatArray, positives: IntArray | np.integer, overall: FloatArray) -> FloatArray:
    """[A, ...] AP shrunk towards that of all classes [A]: wholly without positives, half-way with SHRINKAGE of them."""
    return (positives * own + SHRINKAGE * overall[:, None]) / (positives + SHRINKAGE)


def _highest(curve: FloatArray) -> IntArray:
    """Index of the highest value along the first axis; among equal values that of the smallest alpha."""
    places: IntArray = np.argmax(curve >= curve.max(0) - _EQUAL, axis=0)
    return places


def fold_of_images(num_images: int, seed: int = 0) -> NDArray[np.int64]:
    """[num_images] the fold of each image, 0 to FOLDS - 1: random, from the seed, and of nearly equal size."""
    folds = np.arange(num_images) % FOLDS
    return np.random.default_rng(seed).permutation(folds)
