"""The published conventions on one set of predictions; 10,000 random rankings against scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve

from raypaml.metrics.average_precision import average_precision, mean_ap, micro_average_precision, rank_entries
from raypaml.metrics.conventions import CONVENTIONS, MEANING, counted, skipped, under

CASES = 10_000
# classes: both labels, no observed, no positive, no negative
POSITIVES, NEGATIVES = np.array([2, 0, 0, 3]), np.array([4, 0, 5, 0])
AP = np.array([0.5, np.nan, 0.0, 1.0])


def scores_of(rng: np.random.Generator, rows: int, kind: int) -> NDArray[np.float32]:
    scores = rng.normal(size=rows).astype(np.float32)
    if kind == 1:
        scores = scores.round()
    if kind == 2:
        scores[rng.random(rows) < 0.3] = np.inf
        scores[rng.random(rows) < 0.3] = -np.inf
    if kind == 3:
        scores[:] = rng.choice([-0.0, 0.0, 1e-45, 1.0], rows)
    return scores


def test_10000_random_cases_are_scikit_learns_to_1e_12() -> None:
    """Ties, one row, no positives, all positives, infinities; each case is a class of one call."""
    rng = np.random.default_rng(6)
    sizes = np.where(np.arange(CASES) % 9 == 0, 1, rng.integers(2, 40, CASES))
    scores = np.concatenate([scores_of(rng, size, case % 4) for case, size in enumerate(sizes)])
    classes = np.repeat(np.arange(CASES), sizes)
    positive = rng.random(len(classes)) < rng.choice([0, 0.1, 0.5, 0.9, 1], CASES)[classes]
    starts = np.cumsum(sizes) - sizes
    expected = np.empty(CASES)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No positive class found", UserWarning)
        for case, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            own = slice(start, start + size)
            ranks = np.unique(scores[own], return_inverse=True)[1]  # scikit-learn takes no infinities
            expected[case] = average_precision_score(positive[own], ranks)
    order = rng.permutation(len(classes))
    for kind in (np.float32, np.float64):
        found = average_precision(classes[order], scores[order].astype(kind), positive[order], CASES)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@given(st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), st.booleans()), min_size=1, max_size=30))
@settings(deadline=None, max_examples=100)
def test_micro_is_the_ap_of_one_ranking(rows: list[tuple[float, bool]]) -> None:
    scores, positive = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    found = micro_average_precision(np.sort(scores[positive]), np.sort(scores[~positive]))
    np.testing.assert_allclose(found, average_precision(np.zeros(len(rows), int), scores, positive, 1)[0], atol=1e-12)


def test_micro_of_many_scores_goes_chunk_by_chunk() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.normal(size=600_000).round(3), rng.random(600_000) < 0.6
    found = micro_average_precision(np.sort(scores[positive]), np.sort(scores[~positive]))
    assert found == pytest.approx(average_precision_score(positive, scores), abs=1e-12)


def test_micro_without_entries_or_positives() -> None:
    none = np.empty(0)
    assert np.isnan(micro_average_precision(none, none))
    assert micro_average_precision(none, np.ones(3)) == 0


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        ("paper", (0.5 + 0 + 1) / 3),
        ("positives", (0.5 + 1) / 2),
        ("two-sided", 0.5),
        ("unobserved-negative", (0.5 + 0 + 0 + 1) / 4),
    ],
)
def test_each_convention_counts_its_classes(convention: str, expected: float) -> None:
    assert mean_ap(under(convention, AP, POSITIVES, NEGATIVES)) == pytest.approx(expected)


def test_every_skipped_class_has_one_reason() -> None:
    assert skipped("paper", POSITIVES, NEGATIVES) == {"no observed label": 1, "no positive": 0, "no negative": 0}
    assert skipped("two-sided", POSITIVES, NEGATIVES) == {"no observed label": 1, "no positive": 1, "no negative": 1}
    for convention in CONVENTIONS:
        out = sum(skipped(convention, POSITIVES, NEGATIVES).values())
        assert out + counted(convention, POSITIVES, NEGATIVES).sum() == 4


def test_the_misleading_convention_says_so() -> None:
    assert MEANING["unobserved-negative"].startswith("misleading")


def test_a_ranking_knows_its_counts() -> None:
    ranking = rank_entries([2, 0, 2, 0, 0], [1.0, 2.0, 3.0, 2.0, 0.0], [True, False, True, True, False], 4)
    assert ranking.positives.tolist() == [1, 0, 2, 0]
    assert ranking.negatives.tolist() == [2, 0, 0, 0]
    assert ranking.scores.tolist() == [2, 2, 0, 3, 1]


def test_precision_at_the_hits_is_scikit_learns_curve() -> None:
    rng = np.random.default_rng(1)
    scores, positive = rng.normal(size=200).round(1), rng.random(200) < 0.3
    ranking = rank_entries(np.zeros(200, int), scores, positive, 1)
    precision, _, thresholds = precision_recall_curve(positive, scores)
    at = dict(zip(thresholds, precision, strict=False))
    seen = ranking.tie_end
    found = np.searchsorted(ranking.hits, ranking.tie_end)
    expected = [at[score] for score in ranking.scores[ranking.hits]]
    np.testing.assert_allclose(found / seen, expected, atol=1e-12)
