"""Which classes a mean AP counts: the published conventions, as pure functions of what is observed of each class.

The same predictions scored 81.0, 79.1, 77.3 and 1.1 under four of them; a figure without its convention means little.
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
    """[K] whether the convention counts the class in its mean, from its observed positives and negatives [K]."""
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
    """[K] the AP of the classes the convention counts, nan elsewhere; a counted class without AP has 0."""
    return np.where(counted(convention, positives, negatives), np.nan_to_num(ap), np.nan)


def skipped(convention: Convention, positives: IntArray, negatives: IntArray) -> dict[str, int]:
    """How many classes are left out, by reason."""
    out = ~counted(convention, positives, negatives)
    reasons = {
        "no observed label": positives + negatives == 0,
        "no positive": (positives == 0) & (negatives > 0),
        "no negative": (positives > 0) & (negatives == 0),
    }
    return {reason: int((out & where).sum()) for reason, where in reasons.items()}
