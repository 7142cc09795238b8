"""Evaluate a prediction set in one pass: AP under every convention, alpha curve, bootstrap, thresholds, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypaml.evaluation.entries import Alpha, Entries, SpilledSet, spilled
from raypaml.evaluation.parts import PredictionSet
from raypaml.labels import GROUP_NAMES, POSITIVE, FloatArray, Vocabulary
from raypaml.metrics.average_precision import Ranking, group_means, mean_ap, micro_average_precision, rank_entries
from raypaml.metrics.bootstrap import bootstrap_ap
from raypaml.metrics.conventions import Convention, under
from raypaml.metrics.own_metrics import METRICS, own_metrics
from raypaml.metrics.thresholds import (
    BINS,
    Decisions,
    best_threshold,
    best_thresholds,
    calibration_bins,
    decide,
    precision_at_recall,
    sigmoid,
)
from raypaml.runs.alpha_of_use import CHOSEN, ModelClasses, chosen_alpha

GROUPS = (*GROUP_NAMES, "All")
"""Groups of classes whose means are given: G1 (rarest) to G5, and all classes."""
MOST_ALPHAS = 1000  # of a curve; each costs a sort of all entries


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What to work out beside the AP under every convention."""

    alpha: Alpha | None = None
    """BoostLU's factor, one or [K]; None: that of training."""
    alpha_of_use: bool = False
    """Whether it is the one chosen on validation for the weights that predicted, instead of `alpha`."""
    alphas: tuple[float, ...] = ()
    """Factors at which the AP is worked out too, for a curve."""
    replicates: int = 0
    """Draws of the bootstrap over images; 0: none."""
    seed: int = 0
    threads: int = 1
    threshold: float | None = None
    """Probability at which precision, recall and F1 are counted."""
    class_thresholds: FloatArray | None = None
    """[K] scores to count them at instead."""
    recall: float | None = None
    """Recall at which precision is worked out."""


@dataclass(kw_only=True)
class Evaluation:
    """The figures of one prediction set, per class."""

    predictions: PredictionSet
    vocabulary: Vocabulary
    alpha: Alpha | None
    keys: Any
    """The images with an entry, sorted (pyarrow strings)."""
    tally: NDArray[np.int64]
    """[K, 3] positive, negative and unobserved entries."""
    ap: FloatArray
    """[K] convention `paper`."""
    micro: dict[str, float]
    """Micro AP of G1..G5 and All, by name."""
    bins: FloatArray
    """Bins of the calibration error."""
    best: FloatArray
    """[K] the threshold of each class's best F1."""
    best_of_all: float = float("inf")
    """The one threshold of the best F1 of all entries together."""
    curve: dict[float, FloatArray] = field(default_factory=dict)
    """[K] AP by alpha."""
    unobserved_ap: FloatArray | None = None
    """[K] AP with unobserved entries as negatives; None where the set does not hold them all."""
    replicates: FloatArray | None = None
    """[R, K] AP in bootstrap replicates."""
    decisions: Decisions | None = None
    at_recall: FloatArray | None = None
    """[K] precision at the recall asked for."""
    own: dict[str, FloatArray] = field(default_factory=dict)
    """[K] of every registered metric, by name."""

    @property
    def positives(self) -> NDArray[np.int64]:
        """[K] observed."""
        return self.tally[:, 0]

    @property
    def negatives(self) -> NDArray[np.int64]:
        """[K] observed."""
        return self.tally[:, 1]

    def class_ap(self, convention: Convention) -> FloatArray | None:
        """[K] AP of the classes a convention counts, nan elsewhere; None where it has no AP per class."""
        found = self.unobserved_ap if convention == "unobserved-negative" else self.ap
        return None if convention == "micro" or found is None else under(convention, found, *self.tally[:, :2].T)

    def means(self, convention: Convention) -> dict[str, float] | None:
        """G1..G5 and All; None where the predictions do not give this convention."""
        ap = self.class_ap(convention)
        if ap is None:
            return self.micro if convention == "micro" else None
        return group_means(ap, self.vocabulary.class_group) | {"All": mean_ap(ap)}

    def own_means(self) -> dict[str, dict[str, float]]:
        """G1..G5 and All of every registered metric, by name; classes for which it has no value are left out."""
        groups = self.vocabulary.class_group
        return {name: group_means(values, groups) | {"All": mean_ap(values)} for name, values in self.own.items()}

    def replicate_means(self, convention: Convention) -> dict[str, FloatArray]:
        """[R] G1..G5 and All in every bootstrap replicate; classes count as they do in the figure itself."""
        assert self.replicates is not None
        counts = ~np.isnan(under(convention, self.ap, *self.tally[:, :2].T))
        found = {}
        for name in GROUPS:
            group = GROUPS.index(name) + 1
            mine = np.flatnonzero(counts & ((self.vocabulary.class_group == group) | (name == "All")))
            values = np.where(self.positives[mine] > 0, self.replicates[:, mine], 0.0)
            drawn = ~np.isnan(values)
            with np.errstate(invalid="ignore"):
                found[name] = np.where(drawn, values, 0).sum(1) / drawn.sum(1)
        return found


def evaluate_set(predictions: PredictionSet, vocabulary: Vocabulary, asked: Questions | None = None) -> Evaluation:
    """Work out everything asked for; the entries are read once and sorted a few classes at a time."""
    asked = asked or Questions()
    alpha = _alpha(predictions, asked)
    with spilled(predictions) as entries:
        num_classes = predictions.num_classes
        micro = _Micro(entries, vocabulary)
        found = Evaluation(
            predictions=predictions,
            vocabulary=vocabulary,
            alpha=alpha,
            keys=entries.keys,
            tally=entries.tally,
            ap=np.full(num_classes, np.nan),
            micro={},
            bins=np.zeros((BINS, 3)),
            best=np.full(num_classes, np.inf),
            curve={value: np.full(num_classes, np.nan) for value in asked.alphas},
            own={name: np.full(num_classes, np.nan) for name in METRICS},
        )
        _allocate(found, asked)
        for bucket in entries.buckets():
            _add(found, asked, bucket, micro)
        found.micro, found.best_of_all = micro.result(), micro.best_threshold()
    return found


def _alpha(predictions: PredictionSet, asked: Questions) -> Alpha | None:
    alone = [] if asked.alpha is None else np.atleast_1d(asked.alpha).tolist()
    given = [*alone, *asked.alphas]
    if predictions.alpha is None and (given or asked.alpha_of_use):
        alpha = CHOSEN if asked.alpha_of_use else f"{given[0]:g}"
        raise ValueError(
            f"{predictions.where}: alpha={alpha} needs the parts P and N of python -m raypaml.evaluate; this is "
            "one score an entry"
        )
    bad = [value for value in given if not 1 <= value < float("inf")]
    if bad:
        raise ValueError(f"alpha={bad[0]:g}: must be at least 1 (1 switches BoostLU off)")
    if asked.alpha_of_use:
        classes = ModelClasses(predictions.vocabulary, predictions.num_classes)
        return np.asarray(chosen_alpha(Path(predictions.where).parent.parent, predictions.model, classes))
    return predictions.alpha if asked.alpha is None else asked.alpha


def _allocate(found: Evaluation, asked: Questions) -> None:
    num_classes = len(found.ap)
    images = found.predictions.samples or len(found.keys)
    if (found.tally.sum(1) == images).all():  # nothing of images x classes is missing
        found.unobserved_ap = np.full(num_classes, np.nan)
    if asked.replicates:
        found.replicates = np.full((asked.replicates, num_classes), np.nan)
    if asked.threshold is not None or asked.class_thresholds is not None:
        found.decisions = Decisions(*np.zeros((3, num_classes), np.int64))
    if asked.recall is not None:
        found.at_recall = np.full(num_classes, np.nan)


def _add(found: Evaluation, asked: Questions, bucket: Entries, micro: _Micro) -> None:
    """Put in the figures of one bucket's classes; all their entries are in it."""
    if found.unobserved_ap is not None:
        _put(found.unobserved_ap, _rank(bucket, found.alpha, len(found.ap)).ap())
    entries = bucket.observed
    for alpha, ap in found.curve.items():
        _put(ap, _rank(entries, alpha, len(ap)).ap())
    ranking = _rank(entries, found.alpha, len(found.ap))
    _put(found.ap, ranking.ap())
    micro.add(ranking)
    probabilities = ranking.scores if found.predictions.probabilities else sigmoid(ranking.scores)
    found.bins += calibration_bins(probabilities, ranking.positive)
    found.best = np.minimum(found.best, best_thresholds(ranking))
    for name, values in own_metrics(ranking).items():
        _put(found.own[name], values)
    if found.at_recall is not None and asked.recall is not None:
        _put(found.at_recall, precision_at_recall(ranking, asked.recall))
    if found.decisions is not None:
        found.decisions += decide(ranking, ranking.scores, _limit(found, asked))
    if found.replicates is not None:
        # the images without an entry are drawn too, and count nothing: leave them out and draw among the others
        _put(
            found.replicates,
            bootstrap_ap(
                ranking,
                entries.image,
                len(found.keys),
                replicates=asked.replicates,
                seed=asked.seed,
                threads=asked.threads,
            ),
        )


def _rank(entries: Entries, alpha: Alpha | None, num_classes: int) -> Ranking:
    return rank_entries(entries.class_index, entries.scores(alpha), entries.label == POSITIVE, num_classes)


def _put(values: FloatArray, new: FloatArray) -> None:
    """Fill in the classes [..., K] that `new` knows."""
    np.copyto(values, new, where=~np.isnan(new))


def _limit(found: Evaluation, asked: Questions) -> float | FloatArray:
    if asked.class_thresholds is not None:
        return asked.class_thresholds
    assert asked.threshold is not None
    if not 0 < asked.threshold < 1:
        raise ValueError(f"threshold={asked.threshold:g}: a probability, must be above 0 and below 1")
    odds = asked.threshold / (1 - asked.threshold)
    return asked.threshold if found.predictions.probabilities else float(np.log(odds))


class _Micro:
    """The scores of all observed entries, of both labels and five groups, in one array: 4 bytes an entry."""

    def __init__(self, entries: SpilledSet, vocabulary: Vocabulary):
        self._group = vocabulary.class_group - 1
        counts = [np.bincount(self._group, weights=entries.tally[:, column], minlength=5) for column in (1, 0)]
        # negatives G1..G5, then positives G1..G5
        self._ends = np.cumsum(np.concatenate(counts).astype(np.int64))
        self._next = self._ends - np.concatenate(counts).astype(np.int64)
        self._starts = self._next.copy()
        self._scores: NDArray[Any] = np.empty(0, np.float32)

    def add(self, ranking: Ranking) -> None:
        if not len(self._scores):
            self._scores = np.empty(int(self._ends[-1]), ranking.scores.dtype)
        place = self._group[ranking.classes] + len(GROUP_NAMES) * ranking.positive
        for number in range(len(self._ends)):
            mine = ranking.scores[place == number]
            self._scores[self._next[number] : self._next[number] + len(mine)] = mine
            self._next[number] += len(mine)

    def result(self) -> dict[str, float]:
        """The micro AP of every group, then of all classes; sorts the groups' scores, then all of them, in place."""
        count = len(GROUP_NAMES)
        cuts = [slice(start, end) for start, end in zip(self._starts, self._ends, strict=True)]
        pairs: Sequence[tuple[slice, slice]] = list(zip(cuts[:count], cuts[count:], strict=True))
        pairs = [*pairs, (slice(0, self._ends[count - 1]), slice(self._ends[count - 1], self._ends[-1]))]
        found = {}
        for name, (negative, positive) in zip(GROUPS, pairs, strict=True):
            self._scores[negative].sort()
            self._scores[positive].sort()
            found[name] = micro_average_precision(self._scores[positive], self._scores[negative])
        return found

    def best_threshold(self) -> float:
        """The threshold of the best F1 of all entries; after `result`, which sorts them."""
        middle = self._ends[len(GROUP_NAMES) - 1]
        return best_threshold(self._scores[middle:], self._scores[:middle])


def read_alphas(text: str) -> tuple[float | None, tuple[float, ...]]:
    """The alpha of `A`, or those of `A:B`, in steps of 1; ValueError for anything else, or for too many."""
    try:
        ends = [float(value) for value in text.split(":")] if text else []
        count = int(ends[1] - ends[0]) + 1 if ends[1:] else 0
    except (ValueError, OverflowError):
        raise ValueError(f"alpha={text!r}: expected A or A:B, such as 5 or 1:10, training or chosen") from None
    if len(ends) > 2 or (ends[1:] and (ends[1] < ends[0] or count > MOST_ALPHAS)):
        raise ValueError(f"alpha={text!r}: expected A or A:B with B >= A; at most {MOST_ALPHAS:,} values")
    return (ends[0] if len(ends) == 1 else None), tuple(ends[0] + step for step in range(count))


def alpha_curve(predictions: PredictionSet, vocabulary: Vocabulary, alphas: Sequence[float]) -> dict[str, float]:
    """Mean AP (0..1, convention `paper`) by alpha; the set holds P and N, so that nothing is predicted again."""
    found = evaluate_set(predictions, vocabulary, Questions(alphas=tuple(alphas)))
    return {f"{alpha:g}": mean_ap(ap) for alpha, ap in found.curve.items()}
