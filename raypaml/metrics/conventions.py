"""Which classes a mean AP counts: the published conventions, as functions of the observed labels of each class.

The same predictions had a mean AP of 81.0, 79.1, 77.3 and 1.1 under four of them, so a figure needs its convention.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from raypaml.labels import FloatArray, IntArray

Convention = Literal["paper", "positives", "two-sided", "micro", "unobserved-negative"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)

MEANING: dict[Convention, str] = {
    "paper": "no observed label: skipped; no positive: 0 (LL and BoostLU, CVPR 2022, 2023)",
    "positives": "classes without a positive skipped (closest to the OpenImages team)",
    "two-sided": "classes without a positive or without a negative skipped (CSL, CVPR 2022)",
    "micro": "all observed entries as one ranking, frequent classes dominate",
    "unobserved-negative": "misleading: every unobserved entry counted as negative (multi-label code used as it is)",
}


def counted(convention: Convention, positives: IntArray, negatives: IntArray) -> NDArray[np.bool_]:
    """[K] whether the convention counts a class in its mean, given the observed positives and negatives [K]."""
    if convention == "paper":
        return positives + negatives > 0
    if convention == "positives":
        return positives > 0
    if convention == "two-sided":
        return (positives > 0) & (negatives > 0)
    if convention == "micro":
        return positives + negatives > 0
    return np.ones(len(positives), bool)


def under(convention: Convention, ap: FloatArray, positives: IntArray, negatives: IntArray) -> FloatArray:
    """[K] the AP of the classes that the convention counts, 0 for those of them without an AP; nan for the others."""
    return np.where(counted(convention, positives, negatives), np.nan_to_num(ap), np.nan)


def skipped(convention: Convention, positives: IntArray, negatives: IntArray) -> dict[str, int]:
    """How many classes the convention leaves out, by reason."""
    out = ~counted(convention, positives, negatives)
    reasons = {
        "no observed label": positives + negatives == 0,
        "no positive": (positives == 0) & (negatives > 0),
        "no negative": (positives > 0) & (negatives == 0),
    }
    return {reason: int((out & where).sum()) for reason, where in reasons.items()}
