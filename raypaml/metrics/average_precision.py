"""Average precision of all classes at once, from rows of observed entries."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypaml.labels import GROUP_NAMES

Floats = NDArray[np.float64]


def average_precision(class_index: ArrayLike, scores: ArrayLike, positive: ArrayLike, num_classes: int) -> Floats:
    """Exact average precision per class over observed entries, ties as in scikit-learn.

    AP = sum over distinct scores of (recall gained there) x (precision there), recall and precision counting every
    entry of that score or a higher one.

    Args:
        class_index: [R] class column of each observed entry.
        scores: [R] anything that ranks; use logits, for probabilities saturate. Infinite is fine, NaN is not.
        positive: [R] bool.
        num_classes: K.

    Returns:
        [K] in 0..1; nan where a class has no observed entry, 0 where it has entries but no positive (convention
        `paper`).
    """
    classes, scores, positive = np.asarray(class_index), np.asarray(scores), np.asarray(positive)
    _check(classes, scores, positive, num_classes)
    classes, positive = classes.astype(np.int64), positive.astype(bool)
    counts = np.bincount(classes, minlength=num_classes)
    positives = np.bincount(classes[positive], minlength=num_classes)
    order = np.lexsort((scores, -classes))[::-1]  # by class ascending, then score descending
    classes, scores, positive = classes[order], scores[order], positive[order]
    starts = np.cumsum(counts) - counts
    rank = np.arange(1, len(classes) + 1) - starts[classes]
    hits = np.cumsum(positive) - (np.cumsum(positives) - positives)[classes]
    # [R] the last entry of each run of equal (class, score): where a threshold can lie
    last = np.ones(len(classes), bool)
    last[:-1] = (classes[1:] != classes[:-1]) | (scores[1:] != scores[:-1])
    classes, rank, hits = classes[last], rank[last], hits[last]
    gained = np.diff(hits, prepend=0)
    first = np.ones(len(classes), bool)
    first[1:] = classes[1:] != classes[:-1]
    gained[first] = hits[first]
    total = np.bincount(classes, weights=gained * hits / rank, minlength=num_classes)
    return np.where(counts > 0, total / np.maximum(positives, 1), np.nan)


def _check(classes: NDArray[Any], scores: NDArray[Any], positive: NDArray[Any], num_classes: int) -> None:
    if not len(classes) == len(scores) == len(positive):
        raise ValueError(f"rows differ: {len(classes)} classes, {len(scores)} scores, {len(positive)} labels")
    if not np.isin(positive, (0, 1)).all():
        raise ValueError("positive: values other than 0 and 1; give observed entries only")
    if not np.equal(classes, np.floor(classes)).all():
        raise ValueError("class_index: not whole numbers; give the column of each entry")
    if len(classes) and not 0 <= classes.min() <= classes.max() < num_classes:
        raise ValueError(f"class_index from {classes.min()} to {classes.max()}: expected 0..{num_classes - 1}")
    if np.isnan(scores).any():
        row = int(np.flatnonzero(np.isnan(scores))[0])
        raise ValueError(f"scores: {int(np.isnan(scores).sum())} are NaN, first in row {row}, class {classes[row]}")


def mean_ap(ap: Floats) -> float:
    """Mean over the scored classes, nan if there is none."""
    scored = ap[~np.isnan(ap)]
    return float(scored.mean()) if len(scored) else float("nan")


def group_means(ap: Floats, class_group: NDArray[np.int64]) -> dict[str, float]:
    """Mean AP of each class group, G1 (rarest) to G5."""
    return {name: mean_ap(ap[class_group == group]) for group, name in enumerate(GROUP_NAMES, start=1)}
