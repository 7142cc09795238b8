"""Iterative stratification: equal to the published algorithm told as a plain loop, and what its splits promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypaml.preparation.assemble import Cut, assemble
from raypaml.preparation.formats.common import Source, SourceSplit, classes_of
from raypaml.preparation.hiding import Hiding
from raypaml.preparation.stratify import stratified_split

rows = st.lists(st.lists(st.integers(0, 5), max_size=4, unique=True), min_size=4, max_size=40)


def published(strata: list[list[int]], fraction: float, seed: int) -> list[int]:
    """Sechidis et al. (2011), algorithm 1, image by image; ties as the module says. The images that are cut off."""
    place = np.random.default_rng(seed).permutation(len(strata))
    left, cut = set(range(len(strata))), []
    shares = (1 - fraction, fraction)
    wanted = [{k: share * sum(k in row for row in strata) for k in range(6)} for share in shares]
    images = [share * len(strata) for share in shares]
    while True:
        many = {k: sum(k in strata[i] for i in left) for k in range(6)}
        rest = {k: count for k, count in many.items() if count}
        k = min(rest, key=lambda one: (rest[one], one)) if rest else None
        for i in sorted((i for i in left if k is None or k in strata[i]), key=lambda i: place[i]):
            lacks = [side[k] if k is not None else 0.0 for side in wanted]
            side = int((lacks[1], images[1]) > (lacks[0], images[0]))
            images[side] -= 1
            for one in strata[i]:
                wanted[side][one] -= 1
            cut += [i] * side
            left.remove(i)
        if k is None:
            return sorted(cut)


@settings(max_examples=40, deadline=None)
@given(rows, st.sampled_from([0.125, 0.25, 0.5]), st.integers(0, 99))
def test_it_is_the_published_algorithm(strata: list[list[int]], fraction: float, seed: int) -> None:
    expected = published(strata, fraction, seed)
    arrays = [np.array(row, np.int64) for row in strata]
    if not 0 < len(expected) < len(strata):
        with pytest.raises(ValueError, match="both splits need one: give other shares, or a column split"):
            stratified_split(arrays, 6, fraction, seed)
        return
    kept, cut = stratified_split(arrays, 6, fraction, seed)
    assert cut.tolist() == expected
    assert kept.tolist() == sorted(set(range(len(strata))) - set(expected))


def long_tailed(num_images: int, num_classes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    frequency = 0.5 / (1 + np.arange(num_classes))
    return [np.flatnonzero(rng.random(num_classes) < frequency) for _ in range(num_images)]


def test_every_class_is_divided_in_the_same_shares() -> None:
    strata = long_tailed(2000, 40)
    total = np.bincount(np.concatenate(strata), minlength=40)
    _, cut = stratified_split(strata, 40, 0.2, 1)
    here = np.bincount(np.concatenate([strata[i] for i in cut]), minlength=40)
    assert np.abs(here - 0.2 * total).max() <= 2
    assert len(cut) == pytest.approx(400, abs=10)
    assert cut.tolist() == stratified_split(strata, 40, 0.2, 1)[1].tolist()
    assert cut.tolist() != stratified_split(strata, 40, 0.2, 2)[1].tolist()
    random = np.random.RandomState(1).permutation(2000)[:400]
    by_chance = np.bincount(np.concatenate([strata[i] for i in random]), minlength=40)
    assert np.abs(by_chance - 0.2 * total).max() > 5


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 5), max_size=3, unique=True), st.sampled_from(["", *"abcdefg"])), min_size=8
    )
)
def test_groups_are_never_divided(images: list[tuple[list[int], str]]) -> None:
    strata, groups = [np.array(row, np.int64) for row, _ in images], [group for _, group in images]
    try:
        kept, cut = stratified_split(strata, 6, 0.25, 3, groups)
    except ValueError:
        return  # groups so large that one side would be empty
    assert sorted([*kept, *cut]) == list(range(len(images)))
    assert not {groups[i] for i in kept} & {groups[i] for i in cut} - {""}


def source(groups: list[str] | None, splits: tuple[str, ...] = ("train",)) -> Source:
    strata = long_tailed(60, 4)
    split = SourceSplit([f"{n}.jpg" for n in range(60)], strata, groups=groups)
    other = SourceSplit(["x.jpg"], [np.array([0])], groups=groups and groups[:1])
    return Source(classes_of("abcd"), {name: other if n else split for n, name in enumerate(splits)}, __file__)  # type: ignore[arg-type]


def test_groups_reach_the_splits_of_a_data_set() -> None:
    groups = [str(n // 3) for n in range(60)]
    labels = assemble(source(groups), Hiding(), Cut(method="stratified"))
    where = {key: split for split, one in labels.items() for key in one.table["key"].to_pylist()}
    where |= {key: split for split, one in labels.items() for key in one.others["no_label"].to_pylist()}
    assert len(where) == 60
    assert set(where.values()) == {"train", "validation", "test"}
    assert all(len({where[str(n)] for n in range(first, first + 3)}) == 1 for first in range(0, 60, 3))
    with pytest.raises(ValueError, match="--split-method random divides groups; give --split-method stratified, or"):
        assemble(source(groups), Hiding(), Cut())
    with pytest.raises(ValueError, match=r"group '0' is in train and in test, so that near-duplicates of training"):
        assemble(source(groups, ("train", "test")), Hiding(), Cut(method="stratified"))
