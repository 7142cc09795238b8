"""What papers and users quote beside AP, over observed entries: precision, recall, F1, thresholds, calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypaml.labels import FloatArray, IntArray
from raypaml.metrics.average_precision import Ranking

BINS = 15
"""Of the calibration error, of equal width (Guo et al., ICML 2017)."""


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
        """[K] precision (nan where nothing is predicted), recall (nan without positives), F1 (nan without either)."""
        return _measures(self.true_positives, self.false_positives, self.false_negatives)

    def overall(self) -> dict[str, float]:
        """OP, OR, OF1 over all entries; CP, CR the means over the classes that have one, CF1 from these two."""
        entries = _measures(*(x.sum() for x in (self.true_positives, self.false_positives, self.false_negatives)))
        found = dict(zip(("OP", "OR", "OF1"), map(float, entries), strict=True))
        precision, recall = (_mean(values) for values in self.per_class()[:2])
        both = precision + recall
        return found | {"CP": precision, "CR": recall, "CF1": 2 * precision * recall / both if both else 0.0}


def _measures(hit: Any, wrong: Any, lost: Any) -> tuple[FloatArray, FloatArray, FloatArray]:
    with np.errstate(invalid="ignore"):
        return hit / (hit + wrong), hit / (hit + lost), 2 * hit / (2 * hit + wrong + lost)


def _mean(values: FloatArray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def decide(ranking: Ranking, scores: NDArray[Any], threshold: float | FloatArray) -> Decisions:
    """Count the decisions `score >= threshold`.

    Args:
        ranking: of R observed entries.
        scores: [R] in the ranking's order.
        threshold: one for all classes, or [K].
    """
    limits = np.broadcast_to(np.asarray(threshold, np.float64), ranking.num_classes)
    said = scores >= limits[ranking.classes]

    def count(chosen: NDArray[np.bool_]) -> IntArray:
        return np.bincount(ranking.classes[chosen], minlength=ranking.num_classes)

    return Decisions(count(said & ranking.positive), count(said & ~ranking.positive), count(~said & ranking.positive))


def _at_hits(ranking: Ranking) -> tuple[IntArray, IntArray, IntArray]:
    """[H] class of each hit, entries and positives of its class with its score or a higher one."""
    classes = ranking.classes[ranking.hits]
    found = np.searchsorted(ranking.hits, ranking.tie_end) - ranking.hit_start[classes]
    return classes, ranking.tie_end - ranking.start[classes], found


def precision_at_recall(ranking: Ranking, recall: float) -> FloatArray:
    """[K] the best precision among the thresholds that reach this recall; nan for a class without positives."""
    if not 0 < recall <= 1:
        raise ValueError(f"recall={recall}: must be above 0 and at most 1")
    classes, seen, found = _at_hits(ranking)
    enough = found / ranking.positives[classes] >= recall
    best = np.full(ranking.num_classes, np.nan)
    np.fmax.at(best, classes[enough], (found / seen)[enough])
    return best


def best_thresholds(ranking: Ranking) -> FloatArray:
    """[K] the score whose threshold gives each class its best F1, the highest of equals; inf without positives.

    Choose them on validation: on the test split they would flatter.
    """
    classes, seen, found = _at_hits(ranking)
    f1 = 2 * found / (seen + ranking.positives[classes])
    # the first of each class when sorted by F1 falling; a class's hits stand best score first
    order = np.lexsort((-f1, classes))
    first = order[np.diff(classes[order], prepend=-1) != 0]
    best = np.full(ranking.num_classes, np.inf)
    best[classes[first]] = ranking.scores[ranking.hits[first]]
    return best


def best_threshold(positive_scores: NDArray[Any], negative_scores: NDArray[Any]) -> float:
    """The score whose threshold gives all entries together their best F1, the highest of equals; inf without positives.

    Args:
        positive_scores, negative_scores: each sorted ascending.
    """
    if not len(positive_scores):
        return float("inf")
    hits = len(positive_scores) - np.searchsorted(positive_scores, positive_scores)
    wrong = len(negative_scores) - np.searchsorted(negative_scores, positive_scores)
    f1 = 2 * hits / (hits + wrong + len(positive_scores))
    return float(positive_scores[len(f1) - 1 - np.argmax(f1[::-1])])


def calibration_bins(probabilities: NDArray[Any], positive: NDArray[np.bool_]) -> FloatArray:
    """[BINS, 3] per bin of probability: entries, sum of probabilities, positives. Bins of several sets add up."""
    number = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    sums = (None, probabilities, positive)
    return np.stack([np.bincount(number, weights=w, minlength=BINS).astype(np.float64) for w in sums], axis=1)


def calibration_error(bins: FloatArray) -> float:
    """Expected calibration error, 0..1: mean over entries of |mean probability - share of positives| of their bin."""
    entries, said, positives = bins.T
    return float(np.abs(said - positives).sum() / entries.sum()) if entries.sum() else float("nan")


def sigmoid(logits: NDArray[Any]) -> FloatArray:
    """Probabilities of logits, infinities included, without overflow."""
    small = np.exp(-np.abs(logits.astype(np.float64)))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small))
