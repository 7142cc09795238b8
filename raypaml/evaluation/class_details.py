"""What a page shows of each class besides its AP: its precision-recall curve, and its most surprising images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raypaml.labels import FloatArray, IntArray
from raypaml.metrics.average_precision import Ranking

CURVE_POINTS = 33
"""The most points of a stored curve; AP is never computed from them."""
NOBODY = -1
"""Stands for the image of a class that has no such entry."""


@dataclass(frozen=True)
class Surprises:
    """[K] of each class one entry that the scores get most wrong."""

    image: IntArray
    """[K] number of the image among the sorted keys of the set; NOBODY where a class has no such entry."""
    score: FloatArray
    """[K] its score; NaN where there is none."""

    @classmethod
    def empty(cls, num_classes: int) -> Surprises:
        """Nothing for every class."""
        return cls(np.full(num_classes, NOBODY), np.full(num_classes, np.nan))

    def put(self, classes: IntArray, places: IntArray, ranking: Ranking, image: IntArray) -> None:
        """Note the entries at these places of a ranking, one for each of these classes."""
        self.image[classes] = image[ranking.order[places]]
        self.score[classes] = ranking.scores[places]


@dataclass(frozen=True)
class ClassDetails:
    """Details of the K classes of a prediction set."""

    curves: list[list[int]]
    """Recall and precision of each class in turn, in thousandths, from the highest threshold to that of the last
    positive, at no more than CURVE_POINTS positives evenly spaced in rank; empty for a class without positives."""
    negatives: Surprises
    """The observed negative with the highest score of each class."""
    positives: Surprises
    """The positive with the lowest score of each class."""

    @classmethod
    def empty(cls, num_classes: int) -> ClassDetails:
        """Details of a set of which no entry is added yet."""
        return cls([[] for _ in range(num_classes)], Surprises.empty(num_classes), Surprises.empty(num_classes))

    def add(self, ranking: Ranking, image: IntArray) -> None:
        """Fill in the classes of a ranking, which has all their entries; image [R] is in the order before ranking."""
        wrong = np.flatnonzero(~ranking.positive)
        classes, first = np.unique(ranking.classes[wrong], return_index=True)
        self.negatives.put(classes, wrong[first], ranking, image)
        scored = np.flatnonzero(ranking.positives)
        self.positives.put(scored, ranking.hits[ranking.hit_start[scored + 1] - 1], ranking, image)
        hit_class, entries, positives = ranking.counts_at_hits()
        recall = _thousandths(positives / ranking.positives[hit_class])
        precision = _thousandths(positives / entries)
        for k in scored.tolist():
            start, end = ranking.hit_start[k], ranking.hit_start[k + 1]
            chosen = np.unique(np.linspace(start, end - 1, min(CURVE_POINTS, end - start)).astype(np.int64))
            points = np.stack([recall[chosen], precision[chosen]], axis=1)
            is_new = np.append(True, (points[1:] != points[:-1]).any(axis=1))  # positives of one score share a point
            self.curves[k] = points[is_new].ravel().tolist()


def _thousandths(shares: FloatArray) -> IntArray:
    return np.rint(1000 * shares).astype(np.int64)
