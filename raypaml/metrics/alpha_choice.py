"""Which alpha a trained model is used with: the best on validation, for all classes, by class group or by class.

The logit is `alpha P + N`, and P and N are stored, so every alpha is free. An alpha for each class fits more of the
noise than one for all; which of the two is better is decided by cross-validation over images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from raypaml.labels import FloatArray, IntArray

Way = Literal["training", "one", "group", "class"]
WAYS: tuple[Way, ...] = get_args(Way)
"""From the simplest to the richest: the alpha of training, one for all classes, by class group, by class."""
GRID = (*np.arange(1, 10.5, 0.5).tolist(), 12.0, 15.0, 20.0, 30.0, 50.0)
"""Alphas that are tried, beside that of training: in steps of a half to 10, then wider; published is 5."""
FOLDS = 5
"""Parts of the images of the cross-validation."""
SHRINKAGE = 30.0
"""Positives that all classes together count for in the choice for a group or a class; not published, ours."""
_EQUAL = 1e-9
"""Mean AP that differ by no more are equal: they differ in the order of a sum."""


@dataclass(frozen=True)
class AlphaTable:
    """AP of every class with each of A alphas, on F folds of the images; nan where there is no positive."""

    alphas: FloatArray
    """[A] ascending."""
    training: int
    """Place of the alpha of training among them."""
    held_out: FloatArray
    """[F, A, K] on the images of one fold."""
    others: FloatArray
    """[F, A, K] on the images of all other folds."""
    every: FloatArray
    """[A, K] on all images."""
    positives: IntArray
    """[F, K] in each fold."""
    class_group: IntArray
    """[K] 1 to 5."""


@dataclass(frozen=True)
class AlphaCandidate:
    """One way to give alphas to classes, and how good it is on images that it was not chosen on."""

    way: Way
    alpha: FloatArray
    """[K] chosen on all images."""
    held_out: float
    """Mean AP on the folds left out, the mean over folds; nan without positives."""
    gain: float
    """Mean over folds of what it has more than the simpler way that stood before it; 0 for the simplest."""
    noise: float
    """Standard error of that gain over folds."""
    wins: bool
    """Its gain is above its noise, so that it replaces the simpler way."""


def candidates(table: AlphaTable) -> list[AlphaCandidate]:
    """Every way, from the simplest to the richest, each compared with the richest winner before it.

    A way replaces a simpler one only where its gain on the folds left out is above one standard error of the gain, the
    folds taken as pairs; ties go to the simpler one. (One-standard-error rule, Breiman et al., 1984.)
    """
    folds = _usable(table)
    positives, found, standing = table.positives.sum(0), list[AlphaCandidate](), np.empty(0)
    for way in WAYS:
        places = _places(way, table.every, positives, table) if len(folds) else np.full(len(positives), table.training)
        figures = np.array([_held_out(way, fold, table) for fold in folds])
        gains = figures - (standing if found else figures)
        gain = float(gains.mean()) if len(folds) > 1 else 0.0
        noise = float(gains.std(ddof=1) / len(folds) ** 0.5) if len(folds) > 1 else 0.0
        wins = not found or gain > noise + _EQUAL
        mean = float(figures.mean()) if len(folds) else float("nan")
        found.append(AlphaCandidate(way, table.alphas[places], mean, gain, noise, wins))
        standing = figures if wins else standing
    return found


def _usable(table: AlphaTable) -> list[int]:
    """The folds that have positives, and leave some to choose by."""
    inside = table.positives.sum(1)
    return np.flatnonzero((inside > 0) & (inside < inside.sum())).tolist()


def _held_out(way: Way, fold: int, table: AlphaTable) -> float:
    """Mean AP on a fold, over the classes with a positive there, of what is chosen on the others."""
    positives = table.positives.sum(0) - table.positives[fold]
    places = _places(way, table.others[fold], positives, table)
    seen = np.flatnonzero(table.positives[fold])
    return float(table.held_out[fold, places[seen], seen].mean())


def _places(way: Way, ap: FloatArray, positives: IntArray, table: AlphaTable) -> IntArray:
    """[K] the alpha of each class, by its place among the alphas.

    Args:
        way: how classes share alphas.
        ap: [A, K] to choose by; nan for classes without positives, of which there is at least one with.
        positives: [K] that this AP is of.
        table: names the groups, and the alpha of training.
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
    """[A, ...] AP drawn towards that of all classes [A]: no positive leaves nothing of its own, SHRINKAGE the half."""
    return (positives * own + SHRINKAGE * overall[:, None]) / (positives + SHRINKAGE)


def _highest(curve: FloatArray) -> IntArray:
    """The place of the highest value along the first axis, the smallest alpha of equals."""
    places: IntArray = np.argmax(curve >= curve.max(0) - _EQUAL, axis=0)
    return places


def fold_of_images(num_images: int, seed: int = 0) -> NDArray[np.int64]:
    """[num_images] the fold of each image, 0 to FOLDS - 1, of nearly equal size, drawn by the seed."""
    folds = np.arange(num_images) % FOLDS
    return np.random.default_rng(seed).permutation(folds)
