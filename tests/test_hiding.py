"""Hidden labels: the published draw and split, transcribed with dense matrices, and what the other kinds promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypaml.preparation.hiding import Hiding, hide, validation_split

matrices = st.integers(1, 12).flatmap(
    lambda k: st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=1, max_size=30)
)


def columns(matrix: list[list[bool]]) -> list[np.ndarray]:
    return [np.flatnonzero(row) for row in matrix]


def published_draw(matrix: np.ndarray, positives: int, negatives: int, seed: int) -> np.ndarray:
    """CVPR 2021 protocol on a dense -1/+1 matrix: one RandomState, positives then negatives of each row shuffled."""
    rng = np.random.RandomState(seed)
    observed = np.zeros_like(matrix)
    for row in range(len(matrix)):
        for value, count in ((1, positives), (-1, negatives)):
            indices = np.nonzero(matrix[row] == value)[0]
            rng.shuffle(indices)
            observed[row, indices[:count]] = value
    return observed


@settings(max_examples=60, deadline=None)
@given(matrices, st.sampled_from([("single-positive", 1, 0), ("verified:2:3", 2, 3)]), st.integers(0, 2000))
def test_the_draw_is_the_published_one(matrix: list[list[bool]], kind: tuple[str, int, int], seed: int) -> None:
    text, positives, negatives = kind
    expected = published_draw(np.where(np.array(matrix), 1, -1), positives, negatives, seed)
    shown = hide(columns(matrix), len(matrix[0]), Hiding.parse(text, seed))
    assert [side.tolist() for side in shown[0]] == [np.flatnonzero(row == 1).tolist() for row in expected]
    assert [side.tolist() for side in shown[1]] == [np.flatnonzero(row == -1).tolist() for row in expected]


def test_nothing_hidden_shows_everything() -> None:
    positives, negatives = hide([np.array([1]), np.array([], np.int64)], 3, Hiding())
    assert [p.tolist() for p in positives] == [[1], []]
    assert [n.tolist() for n in negatives] == [[0, 2], [0, 1, 2]]


def test_keep_shows_that_share_of_both_kinds_of_entries() -> None:
    truth = [np.array([0, 5, 9])] * 4000
    positives, negatives = hide(truth, 10, Hiding.parse("keep:0.3"))
    assert sum(map(len, positives)) / 12_000 == pytest.approx(0.3, abs=0.02)
    assert sum(map(len, negatives)) / 28_000 == pytest.approx(0.3, abs=0.02)
    assert all(set(p) <= {0, 5, 9} and not set(n) & {0, 5, 9} for p, n in zip(positives, negatives, strict=True))


def test_long_tailed_thins_rare_classes_most() -> None:
    truth = [np.array([0, 1, 2])] * 6000 + [np.array([0, 1])] * 3000 + [np.array([0])] * 1000
    positives, negatives = hide(truth, 3, Hiding.parse("long-tailed:100"))
    counts = np.bincount(np.concatenate(positives), minlength=3)
    assert counts[0] == 10_000
    assert counts[1] == pytest.approx(9000 / 10, rel=0.15)
    assert counts[2] == pytest.approx(6000 / 100, rel=0.35)
    assert not any(map(len, negatives))


@given(st.integers(5, 3000), st.integers(0, 2000), st.sampled_from([0.1, 0.2, 0.5]))
def test_the_validation_split_is_the_published_one(num_images: int, seed: int, fraction: float) -> None:
    order = np.random.RandomState(seed).permutation(num_images)
    count = int(np.round(fraction * num_images))
    if not 0 < count < num_images:
        with pytest.raises(ValueError, match="both splits need an image"):
            validation_split(num_images, fraction, seed)
        return
    train, validation = validation_split(num_images, fraction, seed)
    assert train.tolist() == np.sort(order[: num_images - count]).tolist()
    assert validation.tolist() == np.sort(order[-count:]).tolist()


def test_voc_2012_has_the_published_sizes() -> None:
    train, validation = validation_split(5717, 0.2)
    assert (len(train), len(validation)) == (4574, 1143)


@pytest.mark.parametrize(
    "text",
    ["single", "keep", "keep:0", "keep:1.5", "keep:x", "verified:1", "verified:-1:2", "long-tailed:0.5", "none:1"],
)
def test_what_cannot_be_hidden_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"hide='{text}': give none, single-positive, keep:FRACTION"):
        Hiding.parse(text)
