"""Average precision of all classes at once, from rows of observed entries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypaml.labels import GROUP_NAMES, FloatArray, IntArray, RealArray


def average_precision(class_index: ArrayLike, scores: ArrayLike, positive: ArrayLike, num_classes: int) -> FloatArray:
    """Exact average precision of each class over observed entries, ties as in scikit-learn.

    AP is the mean over positives of the precision among the entries whose score is at least that of the positive. This
    equals the sum over distinct scores of (increase of recall) x precision.

    Args:
        class_index: [R] class column of each observed entry.
        scores: [R] any scores that rank; use logits, because probabilities saturate. Infinities are allowed, NaN is
        not.
        positive: [R] bool.
        num_classes: K.

    Returns:
        [K] AP, 0..1; nan where a class has no observed entry, 0 where it has entries but no positive (convention
        `paper`).
    """
    return rank_entries(class_index, scores, positive, num_classes).ap()


@dataclass(frozen=True)
class Ranking:
    """R observed entries, sorted by class, then by score, best first; H of them are positive, the hits."""

    num_classes: int
    order: IntArray
    """[R] for each place, the row of the entry that stands there."""
    classes: IntArray
    """[R] class of the entry at each place."""
    scores: RealArray
    """[R] score of the entry at each place."""
    positive: NDArray[np.bool_]
    """[R] whether the entry at each place is positive."""
    start: IntArray
    """[K + 1] the first place of each class."""
    hits: IntArray
    """[H] places of the positives."""
    tie_end: IntArray
    """[H] for each hit, the place behind the last entry of the same class and score."""

    @cached_property
    def negatives(self) -> IntArray:
        """[K] number of observed negatives."""
        return np.diff(self.start) - self.positives

    @cached_property
    def positives(self) -> IntArray:
        """[K] number of observed positives."""
        return np.diff(self.hit_start)

    @cached_property
    def hit_start(self) -> IntArray:
        """[K + 1] index in `hits` of the first hit of each class."""
        return np.searchsorted(self.hits, self.start)

    def ap(self) -> FloatArray:
        """[K] average precision, convention `paper`."""
        hit_class, entries, positives = self.counts_at_hits()
        total = np.bincount(hit_class, weights=positives / entries, minlength=self.num_classes)
        return np.where(np.diff(self.start) > 0, total / np.maximum(self.positives, 1), np.nan)

    def counts_at_hits(self) -> tuple[IntArray, IntArray, IntArray]:
        """For each hit [H]: its class, and the entries and positives of that class with its score or a higher one."""
        hit_class = self.classes[self.hits]
        positives = np.searchsorted(self.hits, self.tie_end) - self.hit_start[hit_class]
        return hit_class, self.tie_end - self.start[hit_class], positives


def rank_entries(class_index: ArrayLike, scores: ArrayLike, positive: ArrayLike, num_classes: int) -> Ranking:
    """Sort observed entries by class, then by score, best first. The arguments are those of `average_precision`."""
    classes, scores, positive = np.asarray(class_index), np.asarray(scores), np.asarray(positive)
    _check(classes, scores, positive, num_classes)
    classes, positive = classes.astype(np.int64), positive.astype(bool)
    order = _order(classes, scores)
    classes, scores, positive = classes[order], scores[order], positive[order]
    last = np.ones(len(classes), bool)  # whether an entry is the last of its class and score
    last[:-1] = (classes[1:] != classes[:-1]) | (scores[1:] != scores[:-1])
    ends = np.flatnonzero(last) + 1
    hits = np.flatnonzero(positive)
    return Ranking(
        num_classes=num_classes,
        order=order,
        classes=classes,
        scores=scores,
        positive=positive,
        start=np.searchsorted(classes, np.arange(num_classes + 1)),
        hits=hits,
        tie_end=ends[np.searchsorted(ends, hits, side="right")],
    )


def _order(classes: IntArray, scores: RealArray) -> IntArray:
    """[R] rows sorted by class ascending, then by score descending."""
    if scores.dtype != np.float32:
        return np.lexsort((scores, -classes))[::-1]
    # one integer key is three times as fast: float bits compare as integers once those of negative numbers are flipped;
    # + 0 makes -0 and 0 equal
    bits = (scores + np.float32(0)).view(np.int32)
    rising = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return np.argsort((classes << 32) - rising)


def _check(classes: RealArray, scores: RealArray, positive: RealArray, num_classes: int) -> None:
    if not len(classes) == len(scores) == len(positive):
        raise ValueError(f"rows differ: {len(classes)} classes, {len(scores)} scores, {len(positive)} labels")
    if positive.dtype != bool and not np.isin(positive, (0, 1)).all():
        raise ValueError("positive: values other than 0 and 1; give observed entries only")
    if classes.dtype.kind not in "iu" and not np.equal(classes, np.floor(classes)).all():
        raise ValueError("class_index: not whole numbers; give the column of each entry")
    if len(classes) and not 0 <= classes.min() <= classes.max() < num_classes:
        raise ValueError(f"class_index from {classes.min()} to {classes.max()}: expected 0..{num_classes - 1}")
    if np.isnan(scores).any():
        row = int(np.flatnonzero(np.isnan(scores))[0])
        raise ValueError(f"scores: {int(np.isnan(scores).sum())} are NaN, first in row {row}, class {classes[row]}")


def micro_average_precision(positive_scores: RealArray, negative_scores: RealArray) -> float:
    """Exact average precision of the entries of all classes in one ranking, ties as in scikit-learn.

    Args:
        positive_scores, negative_scores: the scores of positives and of negatives, each sorted ascending. Keeping only
            these takes 4 bytes an entry.

    Returns:
        AP, 0..1; nan without entries, 0 without positives.
    """
    count = len(positive_scores)
    if not count:
        return 0.0 if len(negative_scores) else float("nan")
    total = 0.0
    for start in range(0, count, 1 << 18):
        chunk = positive_scores[start : start + (1 << 18)]
        positives = count - np.searchsorted(positive_scores, chunk)
        negatives = len(negative_scores) - np.searchsorted(negative_scores, chunk)
        total += float(np.sum(positives / (positives + negatives)))
    return total / count


def mean_ap(ap: FloatArray) -> float:
    """Mean over the classes that have an AP; nan if there is none."""
    scored = ap[~np.isnan(ap)]
    return float(scored.mean()) if len(scored) else float("nan")


def group_means(ap: FloatArray, class_group: NDArray[np.int64]) -> dict[str, float]:
    """Mean AP of each class group, G1 (rarest) to G5."""
    return {name: mean_ap(ap[class_group == group]) for group, name in enumerate(GROUP_NAMES, start=1)}
