"""Plans the trials of a search and their order from the seed alone, so that a longer plan begins with a shorter one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from raypaml.config import TrainConfig
from raypaml.names import output_name
from raypaml.search.spaces import Space, Value, describe_values
from raypaml.search.warmup import acts_after_warmup

CANDIDATES = 8
"""Draws from which each random point is chosen."""
TRIES = 100
"""Draws or proposals without a new trial after which the spaces count as exhausted."""


@dataclass(frozen=True)
class Trial:
    """A configuration to try: values of the searched fields, and a seed."""

    values: tuple[tuple[str, Value], ...]
    """(field, value), in the order of the search."""
    seed: int
    repeats: bool = False
    """Whether a finalist is trained again with another seed."""

    @property
    def name(self) -> str:
        """Its values as text, such as `alpha=5,delta_rel=0.25`."""
        return describe_values(dict(self.values)) + (f",seed={self.seed}" if self.repeats else "")

    @property
    def run_name(self) -> str:
        """The name of its run, which is `name` unless this cannot be the name of a folder, as with a path in it."""
        values = output_name(describe_values(dict(self.values)))
        return values + (f",seed={self.seed}" if self.repeats else "")

    @property
    def settings(self) -> dict[str, object]:
        """The trial as a dictionary of plain values, from which `of` makes it again."""
        return {"values": dict(self.values), "seed": self.seed, "repeats": self.repeats}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Trial:
        """The trial from what `settings` returned; further keys are ignored."""
        return cls(tuple(settings["values"].items()), settings["seed"], settings["repeats"])

    @property
    def fields(self) -> dict[str, Value]:
        """The settings by which its configuration differs from that of other trials."""
        return dict(self.values) | {"seed": self.seed, "name": self.run_name}


class TrialProgress(TypedDict):
    """What a trial reports after an epoch."""

    epoch: int
    """Number of the epoch, from 1."""
    beyond: int
    """Number of the epoch, from the end of the longest warm-up of any trial; ASHA begins there."""
    validation_mean_ap: float
    rejected: int
    """Entries that were rejected in the epoch."""
    rejection_precision: float | None
    """Share of missed positives among the rejected; None where it is not known."""


def own_trial(base: TrainConfig, spaces: Sequence[Space]) -> Trial:
    """The configuration that the search starts from, as a trial, with which the others are compared."""
    values = base.flat()
    return Trial(tuple((space.field, values[space.field]) for space in spaces), base.run.seed)


def random_trials(base: TrainConfig, spaces: Sequence[Space], count: int, *, share: int, seed: int) -> list[Trial]:
    """The starting point, then random points that are spread more evenly than by chance.

    Fields that act before the first rejection take a new value only every `share` trials, because trials that agree on
    them share their warm-up. A longer plan begins with the trials of a shorter one.

    Args:
        base: the configuration whose fields are varied; its own values are the first trial.
        spaces: the values that the searched fields may take.
        count: number of trials; there are fewer where the spaces hold no more.
        share: trials that share a warm-up.
        seed: random seed of the sequences.
    """
    early = [space for space in spaces if not acts_after_warmup(space, base)]
    late = [space for space in spaces if space not in early]
    group_size = share if early and late else 1
    first = own_trial(base, spaces)
    own = dict(first.values)
    groups, draws = _spread(early, own, seed), _spread(late, own, seed)
    group: dict[str, Value] = {}
    starts = {space.field: space.start for space in spaces if space.start is not None}
    trials = list(dict.fromkeys([first, Trial(tuple((own | starts).items()), first.seed)]))[:count]
    number = last_new = len(trials)
    while len(trials) < count and number - last_new < TRIES:
        if early and number % group_size == 0:
            group = next(groups)
        trial = Trial(tuple((own | group | (next(draws) if late else {})).items()), base.run.seed)
        number += 1
        if trial not in trials:
            trials.append(trial)
            last_new = number
    return trials


def _spread(spaces: Sequence[Space], own: dict[str, Value], seed: int) -> Iterator[dict[str, Value]]:
    """Random points, each the one of CANDIDATES draws that is farthest from all before it and from `own`.

    This is Mitchell's best-candidate method (1991). Distances are on a torus of the spaces' quantiles, so that no edge
    is preferred.
    """
    rng = np.random.default_rng([seed, len(spaces)])
    taken = np.array([[space.quantile(own[space.field]) for space in spaces]])
    while True:
        drawn = rng.random((CANDIDATES, len(spaces)))
        apart = np.abs(drawn[:, None] - taken)
        nearest = np.minimum(apart, 1 - apart).max(-1).min(1)
        best = drawn[nearest.argmax()]
        taken = np.vstack([taken, best])
        yield {space.field: space.at(u) for space, u in zip(spaces, best.tolist(), strict=True)}


def grid_trials(base: TrainConfig, spaces: Sequence[Space], points: int) -> list[Trial]:
    """The starting point, then every combination of the values of all spaces, with `points` values of each range."""
    axes = [space.points(points) for space in spaces]
    fields = [space.field for space in spaces]
    grid = (Trial(tuple(zip(fields, at, strict=True)), base.run.seed) for at in itertools.product(*axes))
    return list(dict.fromkeys([own_trial(base, spaces), *grid]))


def proposed(base: TrainConfig, spaces: Sequence[Space], values: Mapping[str, Any]) -> Trial:
    """The trial with the values that a searcher proposes, by names of spaces; numbers are rounded to three digits."""
    rounded = ((s.field, values[s.name] if s.values else s.rounded(values[s.name])) for s in spaces)
    return Trial(tuple(rounded), base.run.seed)
