"""Measures besides AP over observed entries: precision, recall, F1, thresholds, calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raypaml.labels import FloatArray, IntArray, RealArray
from raypaml.metrics.average_precision import Ranking, mean_ap

BINS = 15
"""The number of bins, of equal width, of the calibration error (Guo et al., ICML 2017)."""


@dataclass(frozen=True)
class Decisions:
    """[K] counts of observed entries, split by decision and label."""

    true_positives: IntArray
    false_positives: IntArray
    false_negatives: IntArray

    def __add__(self, other: Decisions) -> Decisions:
        return Decisions(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
        )

    def per_class(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """[K] precision (nan where nothing is predicted), recall (nan without positives), F1 (nan where both are)."""
        return _measures(self.true_positives, self.false_positives, self.false_negatives)

    def overall(self) -> dict[str, float]:
        """OP, OR, OF1 over all entries; CP and CR, the means over the classes that have a value; CF1 of these two."""
        counts = (self.true_positives, self.false_positives, self.false_negatives)
        over_entries = _measures(*(np.atleast_1d(count.sum()) for count in counts))
        precision, recall = (mean_ap(values) for values in self.per_class()[:2])
        both = precision + recall
        f1 = 2 * precision * recall / both if both else 0.0
        overall = {name: float(value[0]) for name, value in zip(("OP", "OR", "OF1"), over_entries, strict=True)}
        return overall | {"CP": precision, "CR": recall, "CF1": f1}


def _measures(
    true_positives: IntArray, false_positives: IntArray, false_negatives: IntArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Precision, recall and F1 from counts of the same shape."""
    predicted, labelled = true_positives + false_positives, true_positives + false_negatives
    with np.errstate(invalid="ignore"):
        return true_positives / predicted, true_positives / labelled, 2 * true_positives / (predicted + labelled)


def decide(ranking: Ranking, scores: RealArray, threshold: float | FloatArray) -> Decisions:
    """Count the decisions `score >= threshold`.

    Args:
        ranking: the ranking of R observed entries.
        scores: [R] in the order of the ranking.
        threshold: one for all classes, or [K].
    """
    limits = np.broadcast_to(np.asarray(threshold, np.float64), ranking.num_classes)
    predicted = scores >= limits[ranking.classes]

    def count(chosen: NDArray[np.bool_]) -> IntArray:
        return np.bincount(ranking.classes[chosen], minlength=ranking.num_classes)

    return Decisions(
        count(predicted & ranking.positive),
        count(predicted & ~ranking.positive),
        count(~predicted & ranking.positive),
    )


def precision_at_recall(ranking: Ranking, recall: float) -> FloatArray:
    """[K] the best precision among the thresholds that reach this recall; nan for a class without positives."""
    if not 0 < recall <= 1:
        raise ValueError(f"recall={recall}: must be above 0 and at most 1")
    classes, entries, positives = ranking.counts_at_hits()
    enough = positives / ranking.positives[classes] >= recall
    best = np.full(ranking.num_classes, np.nan)
    np.fmax.at(best, classes[enough], (positives / entries)[enough])
    return best


def best_thresholds(ranking: Ranking) -> FloatArray:
    """[K] the threshold that gives each class its best F1, the highest one if several do; inf without positives.

    Choose them on the validation split: F1 of the split that they were chosen on is biased upwards.
    """
    classes, entries, positives = ranking.counts_at_hits()
    f1 = 2 * positives / (entries + ranking.positives[classes])
    # sorted by class, then F1 descending; the sort is stable and hits are in the order of descending scores
    order = np.lexsort((-f1, classes))
    first = order[np.diff(classes[order], prepend=-1) != 0]
    best = np.full(ranking.num_classes, np.inf)
    best[classes[first]] = ranking.scores[ranking.hits[first]]
    return best


def best_threshold(positive_scores: RealArray, negative_scores: RealArray) -> float:
    """The threshold with the best F1 over all entries, the highest one if several have it; inf without positives.

    Args:
        positive_scores, negative_scores: the scores of positives and of negatives, each sorted ascending.
    """
    if not len(positive_scores):
        return float("inf")
    hits = len(positive_scores) - np.searchsorted(positive_scores, positive_scores)
    wrong = len(negative_scores) - np.searchsorted(negative_scores, positive_scores)
    f1 = 2 * hits / (hits + wrong + len(positive_scores))
    return float(positive_scores[len(f1) - 1 - np.argmax(f1[::-1])])


def calibration_bins(probabilities: RealArray, positive: NDArray[np.bool_]) -> FloatArray:
    """[BINS, 3] the entries, the sum of probabilities and the positives of each bin. Bins of several sets add up."""
    number = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    sums = (None, probabilities, positive)
    return np.stack([np.bincount(number, weights=w, minlength=BINS).astype(np.float64) for w in sums], axis=1)


def calibration_error(bins: FloatArray) -> float:
    """Expected calibration error, 0..1: mean over entries of |mean probability - share of positives| in their bin."""
    entries, probabilities, positives = bins.T
    return float(np.abs(probabilities - positives).sum() / entries.sum()) if entries.sum() else float("nan")


def sigmoid(logits: RealArray) -> FloatArray:
    """Probabilities of logits, which may be infinite, computed without overflow."""
    small = np.exp(-np.abs(logits.astype(np.float64)))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small))
