"""Estimates which of the searched fields mattered: permutation importance of a random forest over the trials."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raypaml.runs.history import VALIDATION_MEAN_AP
from raypaml.search.search_folder import Outcome
from raypaml.search.spaces import Space

LEAST = 6
"""The least number of trials for which importance is given."""


def comparable(outcomes: Sequence[Outcome]) -> tuple[list[Outcome], int]:
    """The finished and stopped trials of the plan, and the last epoch that all of them reached, from 1; 0 for none."""
    ended = [one for one in outcomes if one.state in ("finished", "stopped") and not one.trial.repeats]
    return ended, min((len(one.history) for one in ended), default=0)


def importance(outcomes: Sequence[Outcome], spaces: Sequence[Space]) -> dict[str, float]:
    """The share of each field in the importance of all, judged by validation mAP at the last epoch all trials reached.

    A random forest learns the score from the fields (choices by their number, logarithmic ranges by their logarithm);
    a field's importance is how much worse it fits when that field's values are shuffled among the trials (Breiman,
    2001). With few trials this is a hint, and it says nothing about values that were not tried.

    Returns:
        Share, 0..1, by field; the shares add up to 1. Empty with fewer than LEAST trials, or where nothing differs.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    ended, epoch = comparable(outcomes)
    if len(ended) < LEAST:
        return {}
    features = np.array([[_number(space, dict(one.trial.values)[space.field]) for space in spaces] for one in ended])
    scores = np.array([one.history[epoch - 1][VALIDATION_MEAN_AP] for one in ended])
    forest = RandomForestRegressor(200, random_state=0).fit(features, scores)
    shuffled = permutation_importance(forest, features, scores, n_repeats=20, random_state=0)
    losses = shuffled.importances_mean.clip(min=0)
    if not losses.sum():
        return {}
    return dict(zip((space.field for space in spaces), (losses / losses.sum()).tolist(), strict=True))


def _number(space: Space, value: object) -> float:
    if space.values:
        return float(space.values.index(value)) if value in space.values else -1.0
    assert isinstance(value, int | float)
    return float(np.log(value)) if space.distribution == "log" and value > 0 else float(value)
