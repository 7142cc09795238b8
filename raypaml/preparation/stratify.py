"""Cuts images with several labels each into two splits that hold the same share of every class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from raypaml.labels import IntArray


def stratified_split(
    strata: Sequence[IntArray], num_strata: int, fraction: float, seed: int, groups: Sequence[str] | None = None
) -> tuple[IntArray, IntArray]:
    """Cuts images by iterative stratification (K. Sechidis et al., ECML PKDD 2011).

    The stratum with the fewest images left comes first. Each of its images, in random order, goes to the side that
    lacks most images of this stratum; on a tie, to the side that lacks most images of all, and then to the side that is
    kept. Images of one group are treated as one image with all their labels, the largest groups of a stratum first.
    Images without a stratum come last.

    Within a stratum a choice depends on this stratum's counts alone, so those of all other strata are updated once for
    the whole stratum, and not after each image as in the paper. The result is the same.

    Args:
        strata: the numbers of each image's strata, such as its positive classes.
        num_strata: the number of strata.
        fraction: share of the images to cut off.
        seed: seed of the order of the images.
        groups: the group of each image, which is not divided; empty where an image has none.

    Returns:
        The images to keep, and the images to cut off, both ascending.

    Raises:
        ValueError: a split would be empty.
    """
    # the unit of an image is its group, or itself
    names = range(len(strata)) if groups is None else [group or image for image, group in enumerate(groups)]
    number: dict[object, int] = {}
    unit_of = np.array([number.setdefault(name, len(number)) for name in names], np.int64)
    sizes = np.bincount(unit_of)
    units = np.repeat(unit_of, [len(numbers) for numbers in strata])
    columns = np.concatenate([np.zeros(0, np.int64), *strata])
    # [units, strata] the number of images of each stratum in each unit
    counts = sparse.csc_array((np.ones(len(units), np.int64), (units, columns)), shape=(len(sizes), num_strata))
    cut = _assigned(counts, sizes, fraction, np.random.default_rng(seed))[unit_of]
    if cut.all() or not cut.any():
        where = f" in {len(sizes):,} groups" if groups is not None else ""
        raise ValueError(
            f"a share of {fraction} of {len(strata):,} images{where} is {int(cut.sum()):,}; both splits need one: give "
            "other shares, or a column split"
        )
    return np.flatnonzero(~cut), np.flatnonzero(cut)


def _assigned(counts: sparse.csc_array, sizes: IntArray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Returns [units] whether each unit is cut off."""
    shares = np.array([1 - fraction, fraction])
    by_unit, left = counts.tocsr(), np.asarray(counts.sum(axis=0)).astype(np.int64)
    wanted = shares[:, None] * left  # [2, strata] images of each that each split still lacks
    wanted_images = shares * sizes.sum()
    place = rng.permutation(len(sizes))
    cut, is_open = np.zeros(len(sizes), bool), np.ones(len(sizes), bool)
    while (left > 0).any():
        stratum = int(np.where(left > 0, left, left.max() + 1).argmin())
        units, weights = _open_units(counts, stratum, is_open, place)
        lacks = wanted[:, stratum].tolist()
        cut[units] = _dealt(lacks, wanted_images, weights.tolist(), sizes[units].tolist())
        is_open[units] = False
        rows = by_unit[units]
        left -= np.asarray(rows.sum(axis=0)).astype(np.int64)
        for side, chosen in enumerate((~cut[units], cut[units])):
            wanted[side] -= np.asarray(rows[np.flatnonzero(chosen)].sum(axis=0))
    rest = np.flatnonzero(is_open)[np.argsort(place[is_open])]
    cut[rest] = _dealt([0.0, 0.0], wanted_images, [0] * len(rest), sizes[rest].tolist())
    return cut


def _open_units(
    counts: sparse.csc_array, stratum: int, is_open: np.ndarray, place: IntArray
) -> tuple[IntArray, IntArray]:
    """Returns the unassigned units of a stratum, largest first and at random among equals, and their image counts."""
    span = slice(counts.indptr[stratum], counts.indptr[stratum + 1])
    units, weights = counts.indices[span].astype(np.int64), counts.data[span]
    units, weights = units[is_open[units]], weights[is_open[units]]
    order = np.lexsort((place[units], -weights))
    return units[order], weights[order]


def _dealt(lacks: list[float], wanted_images: np.ndarray, weights: Sequence[int], sizes: Sequence[int]) -> list[bool]:
    """Assigns units one by one to the side that lacks most, and says which are cut off; changes `wanted_images`."""
    images, dealt = wanted_images.tolist(), []
    for weight, size in zip(weights, sizes, strict=True):
        side = (lacks[1], images[1]) > (lacks[0], images[0])
        lacks[side] -= weight
        images[side] -= size
        dealt.append(side)
    wanted_images[:] = images
    return dealt
