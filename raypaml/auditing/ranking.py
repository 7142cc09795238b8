"""Ranks unobserved entries by the estimated chance that they are missed positives, with a limit for each class.

The logits of one class cannot be compared with those of another: some classes are learned with too little confidence,
some with too much. The observed labels of validation say which, and how much a map's positive and its negative part
count. The log-odds of an entry are `offset_k + a P + b N`, where `a` and `b` are shared by all classes and the offsets
of classes with few labels stay near that of all: a logistic regression with a random intercept, in other words Platt
scaling (Platt, 1999) with an intercept for each class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raypaml.labels import FloatArray, IntArray, RealArray

FEWEST_LABELS = 30
"""Observed positives, and negatives, of validation below which nothing is estimated; our choice."""
RIDGE = 3.0
"""Weight of the squared offset of a class: one that few labels speak for stays near 0; our choice (see README.md)."""
_WEAK = np.array([0.0, 1e-2, 1e-2])
"""Weights of the squared shared coefficients; they only keep separable labels from infinite slopes."""
_STEPS = 100
_ENOUGH = 1e-9
"""Relative gain of the last step, below which the fit has converged."""


@dataclass(frozen=True)
class ObservedScores:
    """P, N and label of E observed entries; every array is [E]."""

    class_index: IntArray
    P: NDArray[np.float32]
    """Spatial mean of the positive part of the class activation map, >= 0."""
    N: NDArray[np.float32]
    """Spatial mean of the negative part of the map, <= 0."""
    positive: NDArray[np.bool_]
    weight: FloatArray
    """How many entries of the split each stands for, where only a sample of them was drawn."""

    @classmethod
    def concatenated(cls, parts: list[ObservedScores]) -> ObservedScores:
        """The entries of several parts, one after the other."""
        names = ("class_index", "P", "N", "positive", "weight")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True, eq=False)
class ChanceEstimate:
    """Log-odds of entries: `offset[k] + above[k] P + below N`."""

    offset: FloatArray
    """[K]"""
    above: FloatArray
    """[K] weight of P, alpha where the score alone ranks."""
    below: float
    """Weight of N."""

    @classmethod
    def score_alone(cls, alpha: float | list[float], num_classes: int) -> ChanceEstimate:
        """The model's own logits at an alpha, one for all classes or [K]."""
        return cls(np.zeros(num_classes), np.broadcast_to(np.asarray(alpha, np.float64), num_classes), 1.0)

    def log_odds(self, class_index: IntArray, p: RealArray, n: RealArray) -> FloatArray:
        """The log-odds of entries [E] of these classes, or of a matrix [B, K] where `class_index` is `arange(K)`."""
        values: FloatArray = self.offset[class_index] + self.above[class_index] * p + self.below * n
        return values


def fit_estimate(seen: ObservedScores, num_classes: int) -> tuple[ChanceEstimate | None, str]:
    """Fit the log-odds of observed entries, by maximum likelihood with a ridge on the offsets of classes.

    Args:
        seen: the observed entries of validation.
        num_classes: K.

    Returns:
        The estimate; or None, and why there is none, in a sentence.
    """
    counts = int(seen.positive.sum()), int((~seen.positive).sum())
    if min(counts) < FEWEST_LABELS:
        return (
            None,
            f"validation has {counts[0]:,} positives and {counts[1]:,} negatives; {FEWEST_LABELS} each are needed",
        )
    parts = np.stack([seen.P, seen.N], 1).astype(np.float64)
    scale = np.maximum(np.sqrt((parts**2).mean(0)), 1e-30)
    kept = np.ones(2, bool)
    while kept.any():  # a part that would count against an entry is left out: a higher score never lowers the chance
        shared, offset = _newton(np.column_stack([np.ones(len(parts)), parts / scale * kept]), seen, num_classes)
        slopes = shared[1:] / scale
        if (slopes[kept] > 0).all():
            return ChanceEstimate(shared[0] + offset, np.full(num_classes, slopes[0]), float(slopes[1])), ""
        kept &= slopes > 0
    return None, "on validation, positives have no higher scores than negatives"


def _newton(design: FloatArray, seen: ObservedScores, num_classes: int) -> tuple[FloatArray, FloatArray]:
    """The shared coefficients [3] and the offsets [K], by Newton's method with halved steps where one goes too far."""
    shared, offset = np.zeros(design.shape[1]), np.zeros(num_classes)
    loss = _loss(design, seen, shared, offset)
    for _ in range(_STEPS):
        towards, apart = _step(design, seen, shared, offset)
        halvings = (0.5**n for n in range(30))
        tried = ((size, _loss(design, seen, shared + size * towards, offset + size * apart)) for size in halvings)
        size, lower = next(((size, value) for size, value in tried if value <= loss), (0.0, loss))
        shared, offset = shared + size * towards, offset + size * apart
        if loss - lower <= _ENOUGH * loss:
            break
        loss = lower
    return shared, offset


def _loss(design: FloatArray, seen: ObservedScores, shared: FloatArray, offset: FloatArray) -> float:
    odds = design @ shared + offset[seen.class_index]
    fit = (seen.weight * (np.logaddexp(0, odds) - seen.positive * odds)).sum()
    return float(fit + (RIDGE * (offset**2).sum() + (_WEAK * shared**2).sum()) / 2)


def _step(
    design: FloatArray, seen: ObservedScores, shared: FloatArray, offset: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Newton's step: the offsets, whose part of the Hessian is diagonal, are eliminated (Schur complement)."""
    classes, k = seen.class_index, len(offset)
    chance = 1 / (1 + np.exp(-np.clip(design @ shared + offset[classes], -40, 40)))
    residual, curve = seen.weight * (seen.positive - chance), seen.weight * chance * (1 - chance)
    own = np.bincount(classes, curve, k) + RIDGE  # [K]
    cross = np.stack([np.bincount(classes, curve * column, k) for column in design.T], 1)  # [K, 3]
    slope, own_slope = design.T @ residual - _WEAK * shared, np.bincount(classes, residual, k) - RIDGE * offset
    hessian = (design * curve[:, None]).T @ design + np.diag(_WEAK + 1e-12)
    solved = np.linalg.solve(hessian - cross.T @ (cross / own[:, None]), slope - cross.T @ (own_slope / own))
    towards: FloatArray = solved.astype(np.float64)
    return towards, (own_slope - cross @ towards) / own


@dataclass(frozen=True)
class Scored:
    """P and N of n entries; every array is [n]."""

    entries: IntArray
    """Sample number x K + class column."""
    P: NDArray[np.float32]
    N: NDArray[np.float32]

    def take(self, positions: NDArray[np.integer] | NDArray[np.bool_]) -> Scored:
        """The entries at these positions."""
        return Scored(self.entries[positions], self.P[positions], self.N[positions])

    def joined(self, other: Scored) -> Scored:
        """These entries and others."""
        return Scored(*(np.concatenate([getattr(s, n) for s in (self, other)]) for n in ("entries", "P", "N")))


NOTHING = Scored(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))


@dataclass(frozen=True, eq=False)
class EntryRanking:
    """An order of entries: the likeliest first; of each class, all beyond its quota stand after everything else.

    The first `most` entries of two sets together are among the first `most` of each, because further entries of a class
    only push its others back. So sets can be ranked part by part, in any order, with the same result.
    """

    estimate: ChanceEstimate
    most: int
    """Number of entries that are kept."""
    quota: int
    """Entries of one class that stand in front."""
    only: IntArray | None = None
    """Columns of the classes whose entries are ranked; None for all."""

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.estimate.offset)

    @property
    def columns(self) -> IntArray:
        """The columns of the classes whose entries are ranked, in ascending order."""
        return np.arange(self.num_classes) if self.only is None else self.only

    def log_odds(self, scored: Scored) -> FloatArray:
        """The log-odds of entries [n]."""
        return self.estimate.log_odds(scored.entries % self.num_classes, scored.P, scored.N)

    def first(self, scored: Scored) -> Scored:
        """The first `most` entries, in order; of equal log-odds, the smaller entry stands in front."""
        order = np.lexsort((scored.entries, -self.log_odds(scored)))
        beyond = self._place_in_class(scored.entries[order]) >= self.quota
        return scored.take(order[np.argsort(beyond, kind="stable")[: self.most]])

    def _place_in_class(self, entries: IntArray) -> IntArray:
        """How many entries of the same class stand in front of each."""
        classes = entries % self.num_classes
        by_class = np.argsort(classes, kind="stable")
        places = np.empty(len(entries), np.int64)
        in_order = classes[by_class]
        places[by_class] = np.arange(len(entries)) - np.searchsorted(in_order, in_order)
        return places

    def least(self, first: Scored) -> float:
        """The log-odds below which no further entry is among the first, given the first ones so far."""
        full = len(first.entries) == self.most and (self._place_in_class(first.entries) < self.quota).all()
        return float(self.log_odds(first).min()) if full else -np.inf
