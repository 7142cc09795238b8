"""User-defined metrics besides average precision: any function of the scores and labels of a class."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from raypaml.labels import FloatArray
from raypaml.metrics.average_precision import Ranking

Metric = Callable[[FloatArray, NDArray[np.bool_]], float]
"""(scores [n] float64, best first, positive [n] bool) -> number, for the n observed entries of one class. The scores
are logits, or probabilities if the predictions are probabilities."""

METRICS: dict[str, Metric] = {}
"""The registered metrics by name."""


def register_metric(name: str, metric: Metric) -> None:
    """Add a metric: every evaluation computes it for each class, and its mean for each class group.

    Args:
        name: its name in tables and in result.json.
        metric: the function. It is not called for a class without observed entries; a class for which it returns nan
            is left out of the means.

    Raises:
        ValueError: the name is taken.
    """
    if name in METRICS or name in ("", "mean_ap"):
        raise ValueError(f"metric {name!r}: there is one of this name already; choose another")
    METRICS[name] = metric


def own_metrics(ranking: Ranking) -> dict[str, FloatArray]:
    """Compute every registered metric for each class.

    Returns:
        By name of the metric, [K] values; nan where a class has no observed entry, or the metric has no value.

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
