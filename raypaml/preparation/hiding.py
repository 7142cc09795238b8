"""Hides labels of fully labelled images, as the papers do, so that methods can be compared on known labels.

The full labels stay in the data set as truth, for analysis; hidden labels never reach a partial-label loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raypaml.labels import IntArray

Kind = Literal["none", "single-positive", "keep", "verified", "long-tailed"]


@dataclass(frozen=True)
class Hiding:
    """Says which labels stay observed.

    none: all. single-positive: one positive of each image, no negative. keep: each entry with probability `fraction`.
    verified: up to `positives` and `negatives` of each image. long-tailed: no negatives, and of K classes the r-th most
    frequent keeps each positive with probability ratio^(-r / (K - 1)), r from 0, so that the tail grows longer.
    """

    kind: Kind = "none"
    fraction: float = 1.0
    positives: int = 1
    negatives: int = 0
    ratio: float = 1.0
    seed: int = 1200
    """Seed of the draw; 1200 is published."""

    @classmethod
    def parse(cls, text: str, seed: int = 1200) -> Hiding:
        """Reads `none`, `single-positive`, `keep:0.3`, `verified:2:4` (positives, negatives) or `long-tailed:10`."""
        name, *numbers = text.split(":")
        try:
            if name == "keep" and len(numbers) == 1 and 0 < float(numbers[0]) <= 1:
                return cls("keep", fraction=float(numbers[0]), seed=seed)
            if name == "verified" and len(numbers) == 2 and min(map(int, numbers)) >= 0:
                return cls("verified", positives=int(numbers[0]), negatives=int(numbers[1]), seed=seed)
            if name == "long-tailed" and len(numbers) == 1 and 1 <= float(numbers[0]) < float("inf"):
                return cls("long-tailed", ratio=float(numbers[0]), seed=seed)
        except ValueError:
            pass
        if name in ("none", "single-positive") and not numbers:
            return cls(name, seed=seed)  # type: ignore[arg-type]  # just checked
        raise ValueError(
            f"hide={text!r}: give none, single-positive, keep:FRACTION, verified:POSITIVES:NEGATIVES or "
            "long-tailed:RATIO"
        )


def hide(positives: Sequence[IntArray], num_classes: int, hiding: Hiding) -> tuple[list[IntArray], list[IntArray]]:
    """Returns the observed positives and negatives of fully labelled images, as ascending class columns.

    single-positive and verified draw as E. Cole et al. (CVPR 2021) do: with one RandomState(seed) for all images, the
    positive columns of each image are shuffled, then its negative ones, and the first few of each are kept.

    Args:
        positives: positive class columns of each image, in the published order of the images: the draws depend on it.
        num_classes: K; each class that is not positive is negative.
        hiding: which labels stay observed.
    """
    if hiding.kind == "keep":
        return _keep(positives, num_classes, hiding)
    if hiding.kind == "long-tailed":
        return _long_tailed(positives, num_classes, hiding)
    counts = {"none": (None, None), "single-positive": (1, 0)}.get(hiding.kind, (hiding.positives, hiding.negatives))
    rng = np.random.RandomState(hiding.seed)  # the published generator
    shown: tuple[list[IntArray], list[IntArray]] = ([], [])
    for positive in positives:
        negative = np.setdiff1d(np.arange(num_classes), positive, assume_unique=True)
        for side, columns, count in zip(shown, (np.sort(positive), negative), counts, strict=True):
            if hiding.kind != "none":
                rng.shuffle(columns)  # also where none is kept, as published: the next image's draw depends on it
            side.append(np.sort(columns[:count]))
    return shown


def _keep(positives: Sequence[IntArray], num_classes: int, hiding: Hiding) -> tuple[list[IntArray], list[IntArray]]:
    rng = np.random.default_rng(hiding.seed)
    shown: tuple[list[IntArray], list[IntArray]] = ([], [])
    for positive in positives:
        kept = np.flatnonzero(rng.random(num_classes) < hiding.fraction)
        is_positive = np.isin(kept, positive)
        shown[0].append(kept[is_positive])
        shown[1].append(kept[~is_positive])
    return shown


def _long_tailed(
    positives: Sequence[IntArray], num_classes: int, hiding: Hiding
) -> tuple[list[IntArray], list[IntArray]]:
    counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *positives]), minlength=num_classes)
    place = np.empty(num_classes)
    place[np.argsort(-counts, kind="stable")] = np.arange(num_classes)
    kept = hiding.ratio ** (-place / max(num_classes - 1, 1))
    rng = np.random.default_rng(hiding.seed)
    shown = [np.sort(positive[rng.random(len(positive)) < kept[positive]]) for positive in positives]
    return shown, [np.zeros(0, np.int64) for _ in positives]


def validation_split(num_images: int, fraction: float, seed: int = 1200) -> tuple[IntArray, IntArray]:
    """Cuts a training split; returns the images to train on and those to validate on, both ascending.

    As in E. Cole et al. (CVPR 2021), validation is the last round(fraction x images) of RandomState(seed).permutation.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"validation={fraction}: give a share of the training split, above 0 and below 1")
    num_validation = round(fraction * num_images)  # half to even, as numpy.round
    if not 0 < num_validation < num_images:
        raise ValueError(f"validation={fraction} of {num_images} images is {num_validation}; both splits need an image")
    order = np.random.RandomState(seed).permutation(num_images)
    return np.sort(order[:-num_validation]), np.sort(order[-num_validation:])
