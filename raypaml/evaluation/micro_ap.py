"""Micro AP: the average precision of all observed entries as one ranking, by class group and over all classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raypaml.evaluation.entries import SpilledSet
from raypaml.labels import GROUP_NAMES, RealArray, Vocabulary
from raypaml.metrics.average_precision import Ranking, micro_average_precision
from raypaml.metrics.thresholds import best_threshold


class MicroScores:
    """Collects the scores of all observed entries in one array, by label and class group: 4 bytes an entry."""

    def __init__(self, entries: SpilledSet, vocabulary: Vocabulary):
        self._group = vocabulary.class_group - 1
        counts = [np.bincount(self._group, weights=entries.tally[:, column], minlength=5) for column in (1, 0)]
        # where the scores of the negatives of G1..G5, then of the positives of G1..G5, end in the array
        self._ends = np.cumsum(np.concatenate(counts).astype(np.int64))
        self._next = self._ends - np.concatenate(counts).astype(np.int64)
        self._starts = self._next.copy()
        self._scores: RealArray = np.empty(0, np.float32)

    def add(self, ranking: Ranking) -> None:
        """Add the scores of some classes, all entries of which are in the ranking."""
        if not len(self._scores):
            self._scores = np.empty(int(self._ends[-1]), ranking.scores.dtype)
        place = self._group[ranking.classes] + len(GROUP_NAMES) * ranking.positive
        for number in range(len(self._ends)):
            mine = ranking.scores[place == number]
            self._scores[self._next[number] : self._next[number] + len(mine)] = mine
            self._next[number] += len(mine)

    def result(self) -> dict[str, float]:
        """The micro AP of every group and of all classes, by name; sorts the scores in place."""
        count = len(GROUP_NAMES)
        cuts = [slice(start, end) for start, end in zip(self._starts, self._ends, strict=True)]
        pairs: Sequence[tuple[slice, slice]] = list(zip(cuts[:count], cuts[count:], strict=True))
        pairs = [*pairs, (slice(0, self._ends[count - 1]), slice(self._ends[count - 1], self._ends[-1]))]
        micro_ap = {}
        for name, (negative, positive) in zip((*GROUP_NAMES, "All"), pairs, strict=True):
            self._scores[negative].sort()
            self._scores[positive].sort()
            micro_ap[name] = micro_average_precision(self._scores[positive], self._scores[negative])
        return micro_ap

    def best_threshold(self) -> float:
        """The score at which the F1 of all entries is highest; `result`, which sorts the scores, comes first."""
        middle = self._ends[len(GROUP_NAMES) - 1]
        return best_threshold(self._scores[middle:], self._scores[:middle])
