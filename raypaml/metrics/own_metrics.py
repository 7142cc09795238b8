"""Metrics of one's own beside average precision: any function of a class's scores and labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from raypaml.labels import FloatArray
from raypaml.metrics.average_precision import Ranking

Metric = Callable[[FloatArray, NDArray[np.bool_]], float]
"""A function of one class's n observed entries: their scores, float64 [n], best first, and whether each is positive,
bool [n]. It returns a number. The scores are logits, or probabilities where the predictions hold these."""

METRICS: dict[str, Metric] = {}
"""The registered metrics by name."""


def register_metric(name: str, metric: Metric) -> None:
    """Add a metric: every evaluation computes it for each class, and gives its mean by class group.

    Args:
        name: what tables and result.json call it.
        metric: the function; a class with no observed entry is not asked, and one for which it returns nan is left out
            of the means.

    Raises:
        ValueError: the name is taken.
    """
    if name in METRICS or name in ("", "mean_ap"):
        raise ValueError(f"metric {name!r}: there is one of this name already; choose another")
    METRICS[name] = metric


def own_metrics(ranking: Ranking) -> dict[str, FloatArray]:
    """Every registered metric by class.

    Returns:
        [K] each; nan where a class has no observed entry, or the metric has no value.

    Raises:
        ValueError: a metric failed; the message names it and the class.
    """
    return {name: _by_class(name, metric, ranking) for name, metric in METRICS.items()}


def _by_class(name: str, metric: Metric, ranking: Ranking) -> FloatArray:
    values = np.full(ranking.num_classes, np.nan)
    for k in np.flatnonzero(np.diff(ranking.start)):
        mine = slice(ranking.start[k], ranking.start[k + 1])
        try:
            values[k] = float(metric(ranking.scores[mine].astype(np.float64), ranking.positive[mine]))
        except Exception as error:
            raise ValueError(
                f"metric {name}: failed for class {k} with {mine.stop - mine.start} observed entries "
                f"({type(error).__name__}: {error}); return nan where it has no value"
            ) from None
    return values
