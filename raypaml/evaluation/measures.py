"""Evaluates a prediction set in one pass: AP by convention and by alpha, bootstrap, thresholds, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypaml.bounds import check_bounds
from raypaml.evaluation.class_details import ClassDetails
from raypaml.evaluation.entries import Alpha, Entries, spilled
from raypaml.evaluation.micro_ap import MicroScores
from raypaml.evaluation.parts import PredictionSet
from raypaml.labels import GROUP_NAMES, POSITIVE, FloatArray, Vocabulary
from raypaml.metrics.average_precision import Ranking, group_means, mean_ap, rank_entries
from raypaml.metrics.bootstrap import bootstrap_ap
from raypaml.metrics.conventions import Convention, under
from raypaml.metrics.own_metrics import METRICS, own_metrics
from raypaml.metrics.thresholds import (
    BINS,
    Decisions,
    best_thresholds,
    calibration_bins,
    decide,
    precision_at_recall,
    sigmoid,
)
from raypaml.runs.alpha_of_use import CHOSEN, ModelClasses, chosen_alpha
from raypaml.settings import LARGEST_ALPHA

GROUPS = (*GROUP_NAMES, "All")
"""Groups of classes whose means are given: G1 (rarest) to G5, and all classes."""
MOST_REPLICATES = 100_000
"""The most bootstrap replicates; 1,000 are usual, and 10,000 are many."""
LARGEST_SEED = 2**32 - 1
"""The largest random seed of the bootstrap."""
_MOST_CELLS = 5 * 10**8
"""The most AP values of all replicates together, of 8 bytes each."""
MOST_ALPHAS = 1000
"""The most values of alpha in one curve: each costs a sort of all entries."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What is computed beside the AP under every convention, and with which alpha."""

    alpha: Alpha | None = None
    """BoostLU's factor, one for all classes or [K]; None takes that of training."""
    alpha_of_use: bool = False
    """Whether the alpha chosen on validation for the weights that predicted is taken instead of `alpha`."""
    alphas: tuple[float, ...] = ()
    """Further values of alpha, at which only the AP is computed, for a curve."""
    replicates: int = 0
    """Bootstrap replicates over images; 0 for no bootstrap."""
    seed: int = 0
    """Random seed of the bootstrap."""
    threads: int = 1
    """Threads that compute bootstrap replicates; their number does not change the result."""
    threshold: float | None = None
    """Probability from which an entry is predicted positive, for precision, recall and F1; None leaves them out."""
    class_thresholds: FloatArray | None = None
    """[K] score of each class from which an entry is predicted positive, in the place of `threshold`."""
    recall: float | None = None
    """Recall at which precision is given; None leaves it out."""
    details: bool = False
    """Whether to keep each class's curve and most surprising images, for a page."""

    def __post_init__(self) -> None:
        if self.replicates == 1:
            raise ValueError("bootstrap=1: needs at least 2 replicates, 1000 for an interval; 0 for none")
        check_bounds("bootstrap", self.replicates, 0, MOST_REPLICATES)
        check_bounds("seed", self.seed, 0, LARGEST_SEED)
        if self.seed and not self.replicates:
            raise ValueError(f"seed={self.seed}: has no effect without --bootstrap N; give it too, or leave --seed out")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold={self.threshold:g}: a probability, must be above 0 and below 1")
        if self.recall is not None and not 0 < self.recall <= 1:
            raise ValueError(f"recall={self.recall}: must be above 0 and at most 1")
        if self.threshold is not None and self.class_thresholds is not None:
            raise ValueError("threshold and thresholds-from: give one of them")


@dataclass(kw_only=True)
class Evaluation:
    """The figures of one prediction set, per class."""

    predictions: PredictionSet
    vocabulary: Vocabulary
    alpha: Alpha | None
    keys: pa.Array
    """Sorted keys of the images with an entry."""
    tally: NDArray[np.int64]
    """[K, 3] positive, negative and unobserved entries."""
    ap: FloatArray
    """[K] AP under the convention `paper`."""
    micro: dict[str, float]
    """Micro AP of G1..G5 and All, by name."""
    bins: FloatArray
    """[bins, 3] sums from which the calibration error follows, see `metrics.thresholds.calibration_bins`."""
    best_thresholds: FloatArray
    """[K] the score at which the F1 of each class is highest."""
    pooled_threshold: float = float("inf")
    """The score at which the F1 of all entries of all classes together is highest."""
    curve: dict[float, FloatArray] = field(default_factory=dict)
    """[K] AP under the convention `paper`, by alpha."""
    unobserved_ap: FloatArray | None = None
    """[K] AP with unobserved entries as negatives; None where the set does not hold them all."""
    replicates: FloatArray | None = None
    """[R, K] AP in bootstrap replicates."""
    decisions: Decisions | None = None
    """Counts of true and false predictions at the thresholds of `EvaluationOptions`; None where these name none."""
    at_recall: FloatArray | None = None
    """[K] precision at the recall of `EvaluationOptions`; None where these name none."""
    details: ClassDetails | None = None
    """What a page shows of each class; None where `EvaluationOptions` do not ask for it."""
    metrics: dict[str, FloatArray] = field(default_factory=dict)
    """[K] values of every registered metric, by its name."""

    @property
    def positives(self) -> NDArray[np.int64]:
        """[K] observed positives of each class."""
        return self.tally[:, 0]

    @property
    def negatives(self) -> NDArray[np.int64]:
        """[K] observed negatives of each class."""
        return self.tally[:, 1]

    def class_ap(self, convention: Convention) -> FloatArray | None:
        """[K] AP of the classes a convention counts, nan elsewhere; None where it has no AP per class."""
        ap = self.unobserved_ap if convention == "unobserved-negative" else self.ap
        return None if convention == "micro" or ap is None else under(convention, ap, *self.tally[:, :2].T)

    def means(self, convention: Convention) -> dict[str, float] | None:
        """Mean AP of G1..G5 and All, by name; None where the predictions do not suffice for this convention."""
        ap = self.class_ap(convention)
        if ap is None:
            return self.micro if convention == "micro" else None
        return group_means(ap, self.vocabulary.class_group) | {"All": mean_ap(ap)}

    def metric_means(self) -> dict[str, dict[str, float]]:
        """Means over G1..G5 and All of every registered metric, by its name; a class without a value is left out."""
        groups = self.vocabulary.class_group
        return {name: group_means(values, groups) | {"All": mean_ap(values)} for name, values in self.metrics.items()}

    def replicate_means(self, convention: Convention) -> dict[str, FloatArray]:
        """[R] mean AP of G1..G5 and All in every bootstrap replicate.

        A class counts in every replicate exactly if it counts in the mean over all images.
        """
        assert self.replicates is not None
        counts = ~np.isnan(under(convention, self.ap, *self.tally[:, :2].T))
        means = {}
        for name in GROUPS:
            group = GROUPS.index(name) + 1
            mine = np.flatnonzero(counts & ((self.vocabulary.class_group == group) | (name == "All")))
            values = np.where(self.positives[mine] > 0, self.replicates[:, mine], 0.0)
            drawn = ~np.isnan(values)
            with np.errstate(invalid="ignore"):
                means[name] = np.where(drawn, values, 0).sum(1) / drawn.sum(1)
        return means


def evaluate_set(
    predictions: PredictionSet, vocabulary: Vocabulary, options: EvaluationOptions | None = None
) -> Evaluation:
    """Compute what the options name; the entries are read once and sorted a few classes at a time."""
    options = options or EvaluationOptions()
    alpha = _alpha(predictions, options)
    with spilled(predictions) as entries:
        num_classes = predictions.num_classes
        micro = MicroScores(entries, vocabulary)
        evaluation = Evaluation(
            predictions=predictions,
            vocabulary=vocabulary,
            alpha=alpha,
            keys=entries.keys,
            tally=entries.tally,
            ap=np.full(num_classes, np.nan),
            micro={},
            bins=np.zeros((BINS, 3)),
            best_thresholds=np.full(num_classes, np.inf),
            curve={value: np.full(num_classes, np.nan) for value in options.alphas},
            details=ClassDetails.empty(num_classes) if options.details else None,
            metrics={name: np.full(num_classes, np.nan) for name in METRICS},
        )
        _allocate(evaluation, options)
        for bucket in entries.buckets():
            _add(evaluation, options, bucket, micro)
        evaluation.micro, evaluation.pooled_threshold = micro.result(), micro.best_threshold()
    return evaluation


def _alpha(predictions: PredictionSet, options: EvaluationOptions) -> Alpha | None:
    given = [*([] if options.alpha is None else np.atleast_1d(options.alpha).tolist()), *options.alphas]
    if predictions.alpha is None and (given or options.alpha_of_use):
        alpha = CHOSEN if options.alpha_of_use else f"{given[0]:g}"
        raise ValueError(
            f"{predictions.where}: alpha={alpha} needs P and N of every entry, as python -m raypaml.evaluate writes "
            "them; here each entry has one score"
        )
    bad = [value for value in given if not 1 <= value <= LARGEST_ALPHA]
    if bad:
        raise ValueError(
            f"alpha={bad[0]:g}: must be at least 1 (1 switches BoostLU off) and at most {LARGEST_ALPHA:,g}"
        )
    if options.alpha_of_use:
        classes = ModelClasses(predictions.vocabulary, predictions.num_classes)
        return np.asarray(chosen_alpha(Path(predictions.where).parent.parent, predictions.model, classes))
    return predictions.alpha if options.alpha is None else options.alpha


def _allocate(evaluation: Evaluation, options: EvaluationOptions) -> None:
    num_classes = len(evaluation.ap)
    images = evaluation.predictions.samples or len(evaluation.keys)
    if (evaluation.tally.sum(1) == images).all():  # the set holds an entry for every image and class
        evaluation.unobserved_ap = np.full(num_classes, np.nan)
    if options.replicates:
        check_bounds(f"{num_classes:,} classes, bootstrap", options.replicates, 2, _MOST_CELLS // num_classes)
        evaluation.replicates = np.full((options.replicates, num_classes), np.nan)
    if options.threshold is not None or options.class_thresholds is not None:
        evaluation.decisions = Decisions(*np.zeros((3, num_classes), np.int64))
    if options.recall is not None:
        evaluation.at_recall = np.full(num_classes, np.nan)


def _add(evaluation: Evaluation, options: EvaluationOptions, bucket: Entries, micro: MicroScores) -> None:
    """Fill in the figures of the classes in one bucket, which holds all their entries."""
    if evaluation.unobserved_ap is not None:
        _put(evaluation.unobserved_ap, _rank(bucket, evaluation.alpha, len(evaluation.ap)).ap())
    entries = bucket.observed
    for alpha, ap in evaluation.curve.items():
        _put(ap, _rank(entries, alpha, len(ap)).ap())
    ranking = _rank(entries, evaluation.alpha, len(evaluation.ap))
    _put(evaluation.ap, ranking.ap())
    micro.add(ranking)
    probabilities = ranking.scores if evaluation.predictions.probabilities else sigmoid(ranking.scores)
    evaluation.bins += calibration_bins(probabilities, ranking.positive)
    evaluation.best_thresholds = np.minimum(evaluation.best_thresholds, best_thresholds(ranking))
    for name, values in own_metrics(ranking).items():
        _put(evaluation.metrics[name], values)
    if evaluation.details is not None:
        evaluation.details.add(ranking, entries.image)
    if evaluation.at_recall is not None and options.recall is not None:
        _put(evaluation.at_recall, precision_at_recall(ranking, options.recall))
    if evaluation.decisions is not None:
        least: float | FloatArray | None = options.class_thresholds
        if least is None:
            assert options.threshold is not None
            odds = options.threshold / (1 - options.threshold)
            least = options.threshold if evaluation.predictions.probabilities else float(np.log(odds))
        evaluation.decisions += decide(ranking, ranking.scores, least)
    if evaluation.replicates is not None:
        # a bootstrap draws images; those without an entry would add nothing, so only the others are drawn
        _put(
            evaluation.replicates,
            bootstrap_ap(
                ranking,
                entries.image,
                len(evaluation.keys),
                replicates=options.replicates,
                seed=options.seed,
                threads=options.threads,
            ),
        )


def _rank(entries: Entries, alpha: Alpha | None, num_classes: int) -> Ranking:
    return rank_entries(entries.class_index, entries.scores(alpha), entries.label == POSITIVE, num_classes)


def _put(values: FloatArray, new: FloatArray) -> None:
    """Copy the columns [..., K] of `new` that are not NaN."""
    np.copyto(values, new, where=~np.isnan(new))


def read_alphas(text: str) -> tuple[float | None, tuple[float, ...]]:
    """The one alpha of a text `A`, or the alphas of a text `A:B` in steps of 1; an empty text gives neither.

    Raises:
        ValueError: another text, or more than MOST_ALPHAS values.
    """
    try:
        ends = [float(value) for value in text.split(":")] if text else []
        count = int(ends[1] - ends[0]) + 1 if ends[1:] else 0
    except (ValueError, OverflowError):
        raise ValueError(f"alpha={text!r}: expected A or A:B, such as 5 or 1:10, training or chosen") from None
    if len(ends) > 2 or (ends[1:] and (ends[1] < ends[0] or count > MOST_ALPHAS)):
        raise ValueError(f"alpha={text!r}: expected A or A:B with B >= A; at most {MOST_ALPHAS:,} values")
    return (ends[0] if len(ends) == 1 else None), tuple(ends[0] + step for step in range(count))


def alpha_curve(predictions: PredictionSet, vocabulary: Vocabulary, alphas: Sequence[float]) -> dict[str, float]:
    """Mean AP (0..1, convention `paper`) by alpha, from the P and N of a prediction set: nothing is predicted again."""
    curve = evaluate_set(predictions, vocabulary, EvaluationOptions(alphas=tuple(alphas))).curve
    return {f"{alpha:g}": mean_ap(ap) for alpha, ap in curve.items()}
