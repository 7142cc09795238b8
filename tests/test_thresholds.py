"""Precision, recall, F1, thresholds and calibration against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_curve, precision_recall_fscore_support

from raypaml.metrics.average_precision import Ranking, rank_entries
from raypaml.metrics.thresholds import (
    best_thresholds,
    calibration_bins,
    calibration_error,
    decide,
    precision_at_recall,
    sigmoid,
)

K = 8


@pytest.fixture(params=[0, 1])
def ranking(request: pytest.FixtureRequest) -> Ranking:
    """K classes with ties; class 6 has no positive, class 7 no entry."""
    rng = np.random.default_rng(request.param)
    classes = rng.integers(0, K - 1, 400)
    scores = rng.normal(size=400).round(1)
    positive = (rng.random(400) < 0.4) & (classes != 6)
    return rank_entries(classes, scores, positive, K)


def one(ranking: Ranking, k: int) -> tuple[np.ndarray, np.ndarray]:
    own = ranking.classes == k
    return ranking.positive[own], ranking.scores[own]


def test_precision_recall_f1_are_scikit_learns(ranking: Ranking) -> None:
    found = decide(ranking, ranking.scores, 0.3)
    for k in range(6):
        positive, scores = one(ranking, k)
        expected = precision_recall_fscore_support(positive, scores >= 0.3, average="binary")[:3]
        np.testing.assert_allclose([values[k] for values in found.per_class()], expected, atol=1e-12)
    together = precision_recall_fscore_support(ranking.positive, ranking.scores >= 0.3, average="binary")[:3]
    overall = found.overall()
    np.testing.assert_allclose([overall["OP"], overall["OR"], overall["OF1"]], together, atol=1e-12)
    assert overall["CR"] == pytest.approx(np.nanmean(found.per_class()[1]))
    assert all(np.isnan(values[7]) for values in found.per_class())
    assert np.isnan(found.per_class()[1][6])


def test_decisions_of_parts_add_up(ranking: Ranking) -> None:
    both = decide(ranking, ranking.scores, 0.0) + decide(ranking, ranking.scores, 1.0)
    assert both.true_positives.sum() == sum((ranking.scores[ranking.positive] >= t).sum() for t in (0.0, 1.0))


def test_precision_at_recall_is_the_best_on_scikit_learns_curve(ranking: Ranking) -> None:
    found = precision_at_recall(ranking, 0.5)
    for k in range(6):
        precision, recall, _ = precision_recall_curve(*one(ranking, k))
        assert found[k] == pytest.approx(precision[recall >= 0.5].max(), abs=1e-12)
    assert np.isnan(found[6:]).all()


def test_best_thresholds_give_the_best_f1(ranking: Ranking) -> None:
    found = best_thresholds(ranking)
    reached = decide(ranking, ranking.scores, found).per_class()[2]
    for k in range(6):
        positive, scores = one(ranking, k)
        assert reached[k] == pytest.approx(max(f1_score(positive, scores >= t) for t in np.unique(scores)), abs=1e-12)
    assert np.isinf(found[6:]).all()


def test_a_recall_that_cannot_be_is_refused(ranking: Ranking) -> None:
    with pytest.raises(ValueError, match="recall=0: must be above 0 and at most 1"):
        precision_at_recall(ranking, 0)


def test_calibration_by_hand_and_in_parts() -> None:
    said, positive = np.array([0.0, 0.01, 0.99, 1.0]), np.array([False, True, True, True])
    bins = calibration_bins(said, positive)
    assert calibration_error(bins) == pytest.approx((abs(0.01 - 1) + abs(1.99 - 2)) / 4)
    parts = calibration_bins(said[:1], positive[:1]) + calibration_bins(said[1:], positive[1:])
    np.testing.assert_allclose(parts, bins)
    assert np.isnan(calibration_error(calibration_bins(np.empty(0), np.empty(0, bool))))


def test_perfect_calibration_is_almost_0() -> None:
    rng = np.random.default_rng(0)
    said = rng.random(200_000)
    assert calibration_error(calibration_bins(said, rng.random(200_000) < said)) < 0.01


def test_sigmoid_takes_what_a_float_can_be() -> None:
    found = sigmoid(np.array([-np.inf, -1e4, 0, 1, 1e4, np.inf], np.float32))
    np.testing.assert_allclose(found, [0, 0, 0.5, 1 / (1 + np.exp(-1)), 1, 1], rtol=1e-15)
