"""Hide labels of fully labelled images, as the papers do, so that methods can be judged by what was hidden.

Full labels stay in the data set as truth, for analysis; what is hidden never reaches a partial-label loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Columns = NDArray[np.int64]
Kind = Literal["none", "single-positive", "keep", "verified"]


@dataclass(frozen=True)
class Hiding:
    """Which labels stay observed.

    none: all. single-positive: one positive of each image, no negative. keep: each entry with probability `fraction`.
    verified: up to `positives` and `negatives` of each image.
    """

    kind: Kind = "none"
    fraction: float = 1.0
    positives: int = 1
    negatives: int = 0
    seed: int = 1200
    """1200 is the published draw."""

    @classmethod
    def parse(cls, text: str, seed: int = 1200) -> Hiding:
        """From `none`, `single-positive`, `keep:0.3` or `verified:2:4` (positives, negatives)."""
        name, *numbers = text.split(":")
        try:
            if name == "keep" and len(numbers) == 1 and 0 < float(numbers[0]) <= 1:
                return cls("keep", fraction=float(numbers[0]), seed=seed)
            if name == "verified" and len(numbers) == 2 and min(map(int, numbers)) >= 0:
                return cls("verified", positives=int(numbers[0]), negatives=int(numbers[1]), seed=seed)
        except ValueError:
            pass
        if name in ("none", "single-positive") and not numbers:
            return cls(name, seed=seed)  # type: ignore[arg-type]  # just checked
        raise ValueError(f"hide={text!r}: give none, single-positive, keep:FRACTION or verified:POSITIVES:NEGATIVES")


def hide(positives: Sequence[Columns], num_classes: int, hiding: Hiding) -> tuple[list[Columns], list[Columns]]:
    """The observed positives and negatives of fully labelled images, class columns ascending.

    Args:
        positives: of each image, in the published order of the images: the draws depend on it.
        num_classes: K; what is not positive is negative.

    single-positive and verified draw as E. Cole et al. (CVPR 2021) do: one RandomState(seed) over all images; of each
    the positive columns are shuffled, then the negative ones, and the first few are kept.
    """
    if hiding.kind == "keep":
        return _keep(positives, num_classes, hiding)
    rng = np.random.RandomState(hiding.seed)  # noqa: NPY002  # the published generator
    shown: tuple[list[Columns], list[Columns]] = ([], [])
    for positive in positives:
        negative = np.setdiff1d(np.arange(num_classes), positive, assume_unique=True)
        for side, columns, count in zip(shown, (np.sort(positive), negative), _counts(hiding), strict=True):
            if hiding.kind != "none":
                rng.shuffle(columns)  # also where none is kept, as published: the next image's draw depends on it
            side.append(np.sort(columns[:count]))
    return shown


def _counts(hiding: Hiding) -> tuple[int | None, int | None]:
    if hiding.kind == "none":
        return None, None
    return (1, 0) if hiding.kind == "single-positive" else (hiding.positives, hiding.negatives)


def _keep(positives: Sequence[Columns], num_classes: int, hiding: Hiding) -> tuple[list[Columns], list[Columns]]:
    rng = np.random.default_rng(hiding.seed)
    shown: tuple[list[Columns], list[Columns]] = ([], [])
    for positive in positives:
        kept = np.flatnonzero(rng.random(num_classes) < hiding.fraction)
        is_positive = np.isin(kept, positive)
        shown[0].append(kept[is_positive])
        shown[1].append(kept[~is_positive])
    return shown


def validation_split(num_images: int, fraction: float, seed: int = 1200) -> tuple[Columns, Columns]:
    """Cut a training split: the images to train on, and the others, both ascending.

    As E. Cole et al. (CVPR 2021): the last round(fraction x images) of RandomState(seed).permutation.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"validation={fraction}: a share of the training split, above 0 and below 1")
    num_validation = round(fraction * num_images)  # half to even, as numpy.round
    if not 0 < num_validation < num_images:
        raise ValueError(f"validation={fraction} of {num_images} images is {num_validation}; both splits need one")
    order = np.random.RandomState(seed).permutation(num_images)  # noqa: NPY002
    return np.sort(order[:-num_validation]), np.sort(order[-num_validation:])
