"""Average precision of all classes at once, from rows of observed entries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypaml.labels import GROUP_NAMES, FloatArray, IntArray


def average_precision(class_index: ArrayLike, scores: ArrayLike, positive: ArrayLike, num_classes: int) -> FloatArray:
    """Exact average precision per class over observed entries, ties as in scikit-learn.

    AP = mean over the positives of the precision among all entries of that score or a higher one, which is the sum
    over distinct scores of (recall gained there) x (precision there).

    Args:
        class_index: [R] class column of each observed entry.
        scores: [R] anything that ranks; use logits, for probabilities saturate. Infinite is fine, NaN is not.
        positive: [R] bool.
        num_classes: K.

    Returns:
        [K] in 0..1; nan where a class has no observed entry, 0 where it has entries but no positive (convention
        `paper`).
    """
    return rank_entries(class_index, scores, positive, num_classes).ap()


@dataclass(frozen=True)
class Ranking:
    """R observed entries, class by class, best score first. H of them are positive, the hits."""

    num_classes: int
    order: IntArray
    """[R] the row that stands at each place."""
    classes: IntArray
    """[R]"""
    scores: NDArray[Any]
    """[R]"""
    positive: NDArray[np.bool_]
    """[R]"""
    start: IntArray
    """[K + 1] place where each class starts."""
    hits: IntArray
    """[H] places of the positives."""
    tie_end: IntArray
    """[H] places up to the last one of the same class and score: the entries that count there are all before."""

    @cached_property
    def negatives(self) -> IntArray:
        """[K] observed negatives."""
        return np.diff(self.start) - self.positives

    @cached_property
    def positives(self) -> IntArray:
        """[K] observed positives."""
        return np.diff(self.hit_start)

    @cached_property
    def hit_start(self) -> IntArray:
        """[K + 1] where each class starts among the hits."""
        return np.searchsorted(self.hits, self.start)

    def ap(self) -> FloatArray:
        """[K] average precision, convention `paper`."""
        hit_start = self.hit_start
        hit_class = self.classes[self.hits]
        seen = self.tie_end - self.start[hit_class]
        found = np.searchsorted(self.hits, self.tie_end) - hit_start[hit_class]
        total = np.bincount(hit_class, weights=found / seen, minlength=self.num_classes)
        return np.where(np.diff(self.start) > 0, total / np.maximum(np.diff(hit_start), 1), np.nan)


def rank_entries(class_index: ArrayLike, scores: ArrayLike, positive: ArrayLike, num_classes: int) -> Ranking:
    """Sort observed entries by class, then by score, best first; arguments as of `average_precision`."""
    classes, scores, positive = np.asarray(class_index), np.asarray(scores), np.asarray(positive)
    _check(classes, scores, positive, num_classes)
    classes, positive = classes.astype(np.int64), positive.astype(bool)
    order = _order(classes, scores)
    classes, scores, positive = classes[order], scores[order], positive[order]
    last = np.ones(len(classes), bool)  # of each run of equal (class, score): where a threshold can lie
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


def _order(classes: IntArray, scores: NDArray[Any]) -> IntArray:
    """[R] rows by class ascending, then score descending."""
    if scores.dtype != np.float32:
        return np.lexsort((scores, -classes))[::-1]
    # one integer key, three times as fast: a float's bits rise with its value, below 0 they fall; + 0 unites -0 and 0
    bits = (scores + np.float32(0)).view(np.int32)
    rising = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return np.argsort((classes << 32) - rising)


def _check(classes: NDArray[Any], scores: NDArray[Any], positive: NDArray[Any], num_classes: int) -> None:
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


def micro_average_precision(positive_scores: NDArray[Any], negative_scores: NDArray[Any]) -> float:
    """Exact average precision of all entries as one ranking, from the scores of both kinds, each sorted ascending.

    Two plain arrays of scores are all that one ranking over every class needs: 4 bytes an entry.

    Returns:
        0..1; nan without entries, 0 without positives.
    """
    count = len(positive_scores)
    if not count:
        return 0.0 if len(negative_scores) else float("nan")
    total = 0.0
    for start in range(0, count, 1 << 18):
        chunk = positive_scores[start : start + (1 << 18)]
        found = count - np.searchsorted(positive_scores, chunk)
        wrong = len(negative_scores) - np.searchsorted(negative_scores, chunk)
        total += float(np.sum(found / (found + wrong)))
    return total / count


def mean_ap(ap: FloatArray) -> float:
    """Mean over the scored classes, nan if there is none."""
    scored = ap[~np.isnan(ap)]
    return float(scored.mean()) if len(scored) else float("nan")


def group_means(ap: FloatArray, class_group: NDArray[np.int64]) -> dict[str, float]:
    """Mean AP of each class group, G1 (rarest) to G5."""
    return {name: mean_ap(ap[class_group == group]) for group, name in enumerate(GROUP_NAMES, start=1)}
