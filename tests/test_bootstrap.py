"""The bootstrap against drawing the images for real; its interval; the same draws for two runs."""

from __future__ import annotations

import numpy as np
import pytest

from raypaml.metrics import bootstrap
from raypaml.metrics.average_precision import Ranking, average_precision, rank_entries
from raypaml.metrics.bootstrap import bootstrap_ap, image_weights, interval

K, IMAGES = 7, 50


def entries(seed: int, share: float = 0.4) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image, classes = np.nonzero(rng.random((IMAGES, K)) < share)
    positive = (rng.random(len(image)) < 0.3) & (classes != 3)
    scores = (rng.normal(size=len(image)) + positive).round(1)
    return image, classes, scores, positive


def ranked(seed: int) -> tuple[Ranking, np.ndarray]:
    image, classes, scores, positive = entries(seed)
    return rank_entries(classes, scores, positive, K + 1), image


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_replicate_is_the_ap_of_the_images_drawn(seed: int) -> None:
    image, classes, scores, positive = entries(seed)
    ranking, _ = ranked(seed)
    found = bootstrap_ap(ranking, image, IMAGES, replicates=25, seed=4)
    for number, weights in enumerate(image_weights(4, 0, 25, IMAGES)):
        rows = np.repeat(np.arange(len(image)), weights[image])
        expected = average_precision(classes[rows], scores[rows], positive[rows], K + 1)
        drawn = np.bincount(classes[rows][positive[rows]], minlength=K + 1) > 0
        np.testing.assert_allclose(found[number], np.where(drawn, expected, np.nan), atol=1e-12)


def test_every_replicate_draws_as_many_images_as_there_are() -> None:
    weights = image_weights(0, 3, 20, IMAGES)
    assert (weights.sum(1) == IMAGES).all()
    np.testing.assert_array_equal(weights[5], image_weights(0, 8, 1, IMAGES)[0])  # by number, not by batch


@pytest.mark.parametrize(("at_once", "block", "threads"), [(1, 1, 1), (7, 20, 2), (100, 1 << 20, 3)])
def test_neither_blocks_nor_threads_matter(
    at_once: int, block: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranking, image = ranked(0)
    wanted = bootstrap_ap(ranking, image, IMAGES, replicates=23)
    monkeypatch.setattr(bootstrap, "REPLICATES_AT_ONCE", at_once)
    monkeypatch.setattr(bootstrap, "BLOCK_ENTRIES", block)
    found = bootstrap_ap(ranking, image, IMAGES, replicates=23, threads=threads)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-13)


def test_a_run_does_not_differ_from_itself() -> None:
    ranking, image = ranked(0)
    one, other = (bootstrap_ap(ranking, image, IMAGES, replicates=30, seed=1) for _ in range(2))
    assert interval(0.0, np.nanmean(one, 1) - np.nanmean(other, 1)) == (0.0, 0.0)


def test_the_interval_is_about_the_figure() -> None:
    low, high = interval(0.5, np.linspace(0.6, 0.8, 1001))
    assert (low, high) == pytest.approx((0.405, 0.595))
    assert np.isnan(interval(0.5, np.array([np.nan]))).all()


def test_the_interval_covers_what_it_says() -> None:
    """Of 150 test sets drawn from one world, the interval of about 95 % holds the AP of that world."""
    rng = np.random.default_rng(0)
    truth_positive = rng.random(200_000) < 0.4
    truth = average_precision(np.zeros(200_000, int), rng.normal(size=200_000) + truth_positive, truth_positive, 1)[0]
    covered = 0
    for _ in range(150):
        positive = rng.random(150) < 0.4
        scores = rng.normal(size=150) + positive
        ranking = rank_entries(np.zeros(150, int), scores, positive, 1)
        low, high = interval(ranking.ap()[0], bootstrap_ap(ranking, np.arange(150), 150, replicates=150)[:, 0])
        covered += low <= truth <= high
    assert 0.88 <= covered / 150 <= 0.99
