"""Map comparison against scipy and brute force; synthetic maps give back the scale and place they were made with."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import ndimage, stats

from raypaml.explanations.words import meaning
from raypaml.metrics.localisation import largest_parts, max_box_iou
from raypaml.metrics.maps import (
    average_ranks,
    box_iou,
    centred_gaussian,
    chance_level,
    coverage,
    energy_inside,
    extremes,
    pointing_game,
    scale_ratio,
    spearman,
)

few_values = npst.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(2, 12)), elements=st.integers(-2, 3).map(float)
)


def test_spearman_is_scipys_on_a_thousand_pairs_with_ties_and_constant_maps() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(1000, 196)).astype(np.float32)
    b = (a + rng.normal(size=a.shape) * rng.uniform(0, 3, (1000, 1))).astype(np.float32)
    a[::3] = a[::3].round(1)  # ties
    b[::5] = np.clip(b[::5], 0, None)  # many
    a[7], b[11] = 2.0, -1.0  # constant
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        expected = np.array([stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])
    found = spearman(a, b)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert np.flatnonzero(np.isnan(found)).tolist() == [7, 11]


def test_spearman_in_chunks_is_spearman(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 50, 9))
    whole = spearman(a, b)
    monkeypatch.setattr("raypaml.metrics.maps.CHUNK_CELLS", 30)
    assert (spearman(a, b) == whole).all()
    assert spearman(a[:0], b[:0]).shape == (0,)
    with pytest.raises(ValueError, match=r"maps \(50, 9\) and \(50, 8\): give both as \[n, m\]"):
        spearman(a, b[:, :8])


@settings(deadline=None)
@given(few_values)
def test_ranks_are_scipys(values: np.ndarray) -> None:
    np.testing.assert_array_equal(average_ranks(values), stats.rankdata(values, axis=1))


@settings(deadline=None)
@given(few_values, st.floats(0.01, 0.5))
def test_extremes_are_means_of_sorted_ends(values: np.ndarray, share: float) -> None:
    count = max(1, round(share * values.shape[1]))
    ordered = np.sort(values, axis=1)
    top, bottom = extremes(values, share)
    np.testing.assert_allclose(top, ordered[:, -count:].mean(1), atol=1e-6)
    np.testing.assert_allclose(bottom, ordered[:, :count].mean(1), atol=1e-6)


def test_a_known_factor_is_given_back_and_the_order_is_kept() -> None:
    rng = np.random.default_rng(2)
    full = rng.gamma(2.0, 10.0, size=(4000, 196))
    partial = full / 7 * rng.lognormal(0, 0.05, size=full.shape)
    assert scale_ratio(extremes(partial)[0], extremes(full)[0]) == pytest.approx(1 / 7, rel=0.03)
    assert np.median(spearman(partial, full)) > 0.97
    assert np.isnan(scale_ratio(np.ones(2), -np.ones(2)))
    assert np.isnan(scale_ratio(np.empty(0), np.empty(0)))


def test_the_control_is_centred_and_symmetric() -> None:
    bell = centred_gaussian(14, 9).reshape(14, 9)
    np.testing.assert_allclose(bell, bell[::-1])
    np.testing.assert_allclose(bell, bell[:, ::-1])
    assert bell.argmax() % 9 == 4
    assert bell[7, 4] > bell[7, 0] > bell[0, 0]


def test_coverage_of_boxes() -> None:
    halves = coverage(np.array([[0, 0, 32, 64.0]]), (4, 4), (64, 64)).reshape(4, 4)
    assert (halves == [1, 1, 0, 0]).all()
    overlapping = np.array([[0, 0, 16, 16.0], [8, 8, 16, 16.0]])
    assert coverage(overlapping, (4, 4), (64, 64))[0] == 1.0  # counted once
    assert coverage(np.array([[0, 0, 8, 16.0]]), (4, 4), (64, 64))[0] == 0.5


def test_pointing_and_energy_on_a_map_of_its_box() -> None:
    maps = np.full((3, 16), -1.0)
    maps[0, 5] = maps[1, 5] = 3.0  # row 1, column 1: pixels 16..32
    maps[1, 15] = 1.0
    boxes = [np.array([[16, 16, 32, 32.0]])] * 3
    grid, image = (4, 4), (64, 64)
    assert pointing_game(maps, boxes, grid, image).tolist() == [1, 1, 0]
    np.testing.assert_array_equal(energy_inside(maps, boxes, grid, image), [1.0, 0.75, np.nan])
    assert chance_level(boxes, grid, image).tolist() == [1 / 16] * 3
    assert max_box_iou(maps[:1], boxes[:1], grid, image).max() == 1.0


def test_random_maps_hit_by_chance() -> None:
    rng = np.random.default_rng(3)
    maps = rng.normal(size=(4000, 64))
    corners = rng.uniform(0, 200, size=(4000, 2, 2))
    boxes = [np.concatenate([pair.min(0), pair.max(0)])[None] for pair in corners]
    hits, chance = pointing_game(maps, boxes, (8, 8), (200, 200)), chance_level(boxes, (8, 8), (200, 200))
    assert hits.mean() == pytest.approx(chance.mean(), abs=0.02)


def test_iou_by_counting_pixels() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        one, *others = (np.r_[pair.min(0), pair.max(0) + 1].astype(float) for pair in rng.integers(0, 12, (4, 2, 2)))
        masks = []
        for x0, y0, x1, y1 in (one, *others):
            mask = np.zeros((14, 14), bool)
            mask[int(y0) : int(y1), int(x0) : int(x1)] = True
            masks.append(mask)
        expected = [(masks[0] & mask).sum() / (masks[0] | mask).sum() for mask in masks[1:]]
        np.testing.assert_allclose(box_iou(one[None], np.stack(others)), [expected])


@settings(deadline=None)
@given(npst.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 7))))
def test_largest_parts_mask_by_mask(masks: np.ndarray) -> None:
    masks[:, 0, 0] |= ~masks.any((1, 2))
    expected = []
    for mask in masks:
        parts, count = ndimage.label(mask)
        largest = max(range(1, count + 1), key=lambda part: (parts == part).sum())
        rows, columns = np.nonzero(parts == largest)
        expected.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert largest_parts(masks).tolist() == expected


def test_the_largest_part_gives_the_box() -> None:
    values = np.zeros((6, 6))
    values[1:3, 1:4] = 1.0
    values[5, 5] = 0.9  # a part of one cell elsewhere
    known = np.array([[10, 10, 40, 30.0]])
    assert max_box_iou(values.reshape(1, -1), [known], (6, 6), (60, 60), np.array([0.5])).tolist() == [[1.0]]
    flat = np.ones((1, 36))
    assert max_box_iou(flat, [known], (6, 6), (60, 60), np.array([0.5])).item() == pytest.approx(600 / 3600)


# --- Words ------------------------------------------------------------------------------------------------------------


def test_the_comparison_of_two_models_is_said_in_whole_sentences() -> None:
    figures: Any = {"rank_correlation": {"p50": 0.83}, "rank_correlation_control": {"p50": 0.31}}
    figures |= {"scale_ratio": 0.5, "scale_ratio_boosted": 0.9}
    assert meaning(figures, ("partial", "full")) == [
        "partial looks at almost the same places as full: the median rank correlation of their maps is 0.83, where 1 "
        "means that they rank all places alike, and 0 that they have nothing in common.",
        "A bell in the middle of every image, which knows nothing of the image, reaches 0.31.",
        "The top attributions of partial are 0.50 times those of full: partial is less sure of what is there.",
        "After BoostLU, each model with its own alpha, they are 0.90 times the other's: nearer to each other than "
        "before.",
    ]


def test_a_figure_that_does_not_exist_has_no_sentence() -> None:
    figures: Any = {"rank_correlation": {"p50": None}, "rank_correlation_control": {"p50": 0.31}}
    figures |= {"scale_ratio": None, "scale_ratio_boosted": 0.9}
    assert meaning(figures, ("partial", "full")) == []
    figures["rank_correlation"], figures["scale_ratio"] = {"p50": 0.1}, 1.05
    figures["scale_ratio_boosted"] = None
    places, bell, strength = meaning(figures, ("a", "b"))
    assert places.startswith("a and b look at different places")
    assert bell.endswith("reaches 0.31, so that this likeness says nothing.")
    assert strength.endswith("1.05 times those of b: both are about equally sure of what is there.")
