"""Which labels people gave to which scenes: exact totals, the long tail of the classes, and what was missed.

The totals are those of the release. What is not published is modelled: the labels of a class fall with the power of its
rank (about a million for the first, some hundreds for most, 30 for the last), and the share of positives falls with it.

A split is made of equal blocks. Each has its own part of every count and its own random numbers, so that blocks are
made by any process in any order, and the memory is that of one block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raypaml.labels import each_once
from raypaml.preparation.openimages.release_labels import OFFICIAL_TOTALS
from tools.full_size.scenes import CLASSES, EMPTY, QUADRANTS, Ranks, arranged, lineages

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LABELLED = {"train": 3_657_355, "validation": 41_620, "test": 125_435}
"""Images of each split that have a verified label."""
OTHER_SHARE = 0.015
"""Share of the label rows that are no label of a trainable class, or say a second time what another row says; a guess,
because nobody published it: each of the 14,693 other classes has less than 30 labels."""
FIRST, LAST = 1.5e6, 30.0
"""Labels of the most and of the least frequent class."""
FALL_FROM = 0.8
"""Share of the classes, the most frequent ones, whose labels follow the power of their rank."""
FIRST_POSITIVE = 0.67
"""Share of positives among the labels of the most frequent class."""
UNVERIFIED = 0.4
"""Objects that nobody verified, as a share of those that somebody did."""
EVALUATION_OBJECTS = 3.9
"""Objects in the quadrants of a scene of validation and test ..."""
MIDDLES = 0.6
"""... and in its middle; their labels are nearly all that is true."""
BLOCK = 65_536
"""Most labelled images of a block."""
_MOST_ROUNDS = 200


@dataclass(frozen=True)
class Quotas:
    """How many labels a split gets, or one of its blocks."""

    labelled: int
    images: int
    positives: Ints
    """[CLASSES]; of validation and test, whose positives are drawn from all that is true, only the sum counts."""
    negatives: Ints
    others: tuple[int, int]
    """Positive and negative rows besides: of other classes, and repeated ones."""


@dataclass(frozen=True)
class Block:
    """Scenes of one block and their labels; images are numbers within the block, the labelled ones first."""

    objects: Ranks
    """[labelled, SLOTS]"""
    truth: tuple[Ints, Ints]
    """Image and class of everything that is true, and ..."""
    verified: NDArray[np.bool_]
    """... whether somebody verified it."""
    negatives: tuple[Ints, Ints]


def expected_labels() -> tuple[Floats, Floats]:
    """Returns [CLASSES] the positives and the negatives of each class in the whole training split."""
    totals = OFFICIAL_TOTALS["train"]
    positives, negatives = ((1 - OTHER_SHARE) * totals[name] for name in ("positives", "negatives"))
    ranks = np.arange(1, CLASSES + 1)
    last = np.clip((ranks / CLASSES - FALL_FROM) / (1 - FALL_FROM), 0, 1)

    def curve_of(power: float) -> Floats:
        curve = FIRST * ranks**-power
        labels: Floats = curve * (LAST / curve[-1]) ** last
        return labels

    power = _root(lambda p: float(curve_of(p).sum()), positives + negatives, 0.5, 2)
    every = curve_of(power)
    depth = np.log(ranks) / np.log(CLASSES)
    share = _root(lambda s: float(every @ (FIRST_POSITIVE * (1 - depth * s))), positives, 0, 1)
    of_positives = FIRST_POSITIVE * (1 - depth * share)
    return every * of_positives, every * (1 - of_positives)


def _root(falling: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Returns where a falling function has this value."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > target else (low, middle)
    return low


def apportioned(expected: Floats, total: int) -> Ints:
    """Returns whole numbers in these proportions with exactly this sum; what is left goes to the largest remainders."""
    exact = expected * (total / expected.sum())
    whole: Ints = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: total - whole.sum()]] += 1
    return whole


def quotas(split: str, scale: float) -> Quotas:
    """Returns the counts of a split at this share of its true size."""
    totals = {name: round(count * scale) for name, count in OFFICIAL_TOTALS[split].items()}
    others = tuple(round(OTHER_SHARE * totals[name]) for name in ("positives", "negatives"))
    positives, negatives = expected_labels()
    return Quotas(
        labelled=round(LABELLED[split] * scale),
        images=totals["images"],
        positives=apportioned(positives, totals["positives"] - others[0]),
        negatives=apportioned(negatives, totals["negatives"] - others[1]),
        others=(others[0], others[1]),
    )


def number_of_blocks(split: str, labelled: int) -> int:
    """Returns the number of blocks of a split: for train a multiple of 16, the first digits of ids."""
    return 16 * max(1, -(-labelled // (16 * BLOCK))) if split == "train" else max(1, -(-labelled // BLOCK))


def dealt(counts: Ints, blocks: int, rng: np.random.Generator) -> Ints:
    """Returns [blocks, n] equal parts of each count; what cannot be divided goes to random blocks."""
    edges: Ints = np.floor(np.arange(blocks + 1)[:, None] * (counts / blocks) + rng.random(len(counts))).astype(
        np.int64
    )
    parts: Ints = np.diff(edges, axis=0)
    parts[-1] += counts - parts.sum(0)
    return parts


def blocks_of(whole: Quotas, split: str, seed: int) -> list[Quotas]:
    """Returns the counts of each block."""
    count = number_of_blocks(split, whole.labelled)
    rng = np.random.default_rng([seed, len(split)])
    positives, negatives = dealt(whole.positives, count, rng), dealt(whole.negatives, count, rng)
    single = dealt(np.array([whole.labelled, whole.images - whole.labelled, *whole.others]), count, rng)
    return [
        Quotas(int(one[0]), int(one[0] + one[1]), positives[b], negatives[b], (int(one[2]), int(one[3])))
        for b, one in enumerate(single)
    ]


def make_block(part: Quotas, split: str, rng: np.random.Generator) -> Block:
    """Draws the scenes of a block, and which of their true and false classes somebody verified."""
    objects = _scenes(part, split, rng)
    cells = each_once(_cells(lineages()[objects[objects != EMPTY]], np.nonzero(objects != EMPTY)[0], part.labelled))
    verified = _verified(cells, part, split, rng)
    negatives = _negatives(cells, part, rng)
    negatives = _everyone_labelled(cells, cells[verified] % part.labelled, negatives, part.labelled, rng)
    truth, false = ((each % part.labelled, each // part.labelled) for each in (cells, negatives))
    return Block(objects, truth, verified, false)


def _cells(classes: Ints, images: Ints, labelled: int) -> Ints:
    """Returns a number for each class of each image, by class first; `classes` has a row for each of `images`."""
    cells: Ints = (classes * labelled + images[:, None]).ravel()
    return cells


def within(cells: Ints, ordered: Ints) -> NDArray[np.bool_]:
    """Returns which of the cells are among those in order."""
    if not len(ordered):
        return np.zeros(len(cells), bool)
    within: NDArray[np.bool_] = ordered[np.minimum(np.searchsorted(ordered, cells), len(ordered) - 1)] == cells
    return within


def _scenes(part: Quotas, split: str, rng: np.random.Generator) -> Ranks:
    """Returns [labelled, SLOTS] objects; each class has as many images with an object of its own as positives."""
    positives, _ = expected_labels()
    if split == "train":
        wanted = part.positives
        extra = rng.poisson(positives * (UNVERIFIED * wanted.sum() / positives.sum()))
    else:
        wanted = np.zeros(CLASSES, np.int64)
        extra = rng.multinomial(round(EVALUATION_OBJECTS * part.labelled), positives / positives.sum())
    places = QUADRANTS * part.labelled
    drawn = np.repeat(np.arange(CLASSES, dtype=np.int16), wanted)
    more = rng.permutation(np.repeat(np.arange(CLASSES, dtype=np.int16), extra))[: max(0, places - len(drawn))]
    slots = np.full(places, EMPTY, np.int16)
    slots[rng.permutation(places)[: len(drawn) + len(more)]] = np.r_[drawn, more][:places]
    quadrants = arranged(slots.reshape(part.labelled, QUADRANTS), rng)
    middle = _missing(quadrants, wanted, rng)
    if split != "train":
        also = rng.random(part.labelled) < MIDDLES
        middle[also] = rng.choice(CLASSES, also.sum(), p=positives / positives.sum())
    objects: Ranks = np.c_[quadrants, middle]
    return objects


def _missing(quadrants: Ranks, wanted: Ints, rng: np.random.Generator) -> Ranks:
    """Returns [labelled] objects for the middle: those that two quadrants of one image have, where one would do."""
    count = len(quadrants)
    images, slots = np.nonzero(quadrants != EMPTY)
    own = each_once(_cells(quadrants[images, slots].astype(np.int64)[:, None], images, count))
    left = np.maximum(wanted - np.bincount(own // count, minlength=CLASSES), 0)
    middle = np.full(count, EMPTY, np.int16)
    for _ in range(_MOST_ROUNDS):
        classes = rng.permutation(np.repeat(np.arange(CLASSES), left))
        if not len(classes):
            return middle
        free = rng.permutation(np.flatnonzero(middle == EMPTY))[: len(classes)]
        classes = classes[: len(free)]
        new = ~within(classes * count + free, own)
        middle[free[new]] = classes[new]
        left = left - np.bincount(classes[new], minlength=CLASSES)
    raise ValueError(f"{left.sum()} positives of {count} images found no place; give a larger --scale")


def _verified(cells: Ints, part: Quotas, split: str, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Returns which of the true cells somebody verified."""
    total = int(part.positives.sum())
    if total > len(cells):
        raise ValueError(f"{total} positives are asked for, and {len(cells)} are true; raise EVALUATION_OBJECTS")
    verified = np.zeros(len(cells), bool)
    if split != "train":
        verified[rng.permutation(len(cells))[:total]] = True
        return verified
    classes = cells // part.labelled
    order = np.lexsort((rng.random(len(cells)), classes))
    place = np.arange(len(cells)) - np.searchsorted(classes, classes)  # within the class, as `cells` are sorted
    verified[order] = place < part.positives[classes]
    return verified


def _negatives(truth: Ints, part: Quotas, rng: np.random.Generator) -> Ints:
    """Returns cells that are not true, as many of each class as it has negatives."""
    taken, parts, left = truth, [np.zeros(0, np.int64)], part.negatives
    for _ in range(_MOST_ROUNDS):
        classes = np.repeat(np.arange(CLASSES), left)
        if not len(classes):
            return np.concatenate(parts)
        drawn = each_once(classes * part.labelled + rng.integers(0, part.labelled, len(classes)))
        drawn = drawn[~within(drawn, taken)]
        taken = np.sort(np.r_[taken, drawn])
        parts.append(drawn)
        left = left - np.bincount(drawn // part.labelled, minlength=CLASSES)
    raise ValueError(f"{left.sum()} negatives of {part.labelled} images found no place; give a larger --scale")


def _everyone_labelled(truth: Ints, positive: Ints, negatives: Ints, labelled: int, rng: np.random.Generator) -> Ints:
    """Returns the negatives, some of which went from images with several labels to images without any."""
    for _ in range(_MOST_ROUNDS):
        labels = np.bincount(np.r_[positive, negatives % labelled], minlength=labelled)
        bare = np.flatnonzero(labels == 0)
        if not len(bare):
            return np.sort(negatives)
        first = np.full(labelled, EMPTY)
        first[negatives % labelled] = np.arange(len(negatives))  # one of each image
        giving = rng.permutation(first[(first != EMPTY) & (labels > 1)])[: len(bare)]
        moved = negatives[giving] // labelled * labelled + bare[: len(giving)]
        right = ~within(moved, truth)
        negatives[giving[right]] = moved[right]
    raise ValueError(f"{len(bare)} of {labelled} images stay without a label; give a larger --scale")
