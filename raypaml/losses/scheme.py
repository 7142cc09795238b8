"""The record of a scheme: everything that flags, help, checks, tables and training need to know about it.

This module does not import torch, so that `--help` and the checks of a configuration can read the records quickly.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from raypaml.cli import did_you_mean

LARGEST = 1000.0
"""The absolute value of a setting is below this number where its bounds say nothing else."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The numbers that a setting may have: those between `least` and `most`, and those in `also`."""

    least: float = -LARGEST
    most: float = LARGEST
    """The upper bound, which itself is not allowed."""
    from_least: bool = False
    """Whether `least` itself is allowed."""
    also: tuple[float, ...] = ()
    whole: bool = False
    """Whether only whole numbers are allowed."""
    wording: str = ""
    """The text in which a refusal states the bounds; empty: they are stated as numbers."""

    def allow(self, value: float) -> bool:
        """Whether a setting may have this value. NaN is never allowed."""
        above = value >= self.least if self.from_least else value > self.least
        return value in self.also or (above and value < self.most and (not self.whole or value % 1 == 0))

    def __str__(self) -> str:
        between = "at least {:g} and below {:g}" if self.from_least else "a number between {:g} and {:g}"
        exceptions = "".join(f"{value:g}, or " for value in self.also)
        whole = "a whole number, " if self.whole else ""
        return self.wording or whole + exceptions + between.format(self.least, self.most)


ANY_NUMBER = Bounds()
ABOVE_ZERO = Bounds(least=0.0, wording="must be above 0")
AT_LEAST_ZERO = Bounds(least=0.0, from_least=True)
COUNT = Bounds(least=0.0, from_least=True, whole=True)
SHARE = Bounds(least=0.0, most=1.0, from_least=True)
SWITCH = Bounds(least=0.0, most=2.0, from_least=True, whole=True, wording="1 for on, or 0 for off")
FOCUSING = Bounds(
    least=1.0,
    most=100.0,
    from_least=True,
    also=(0.0,),
    wording="0, or at least 1; for a power between 0 and 1 the gradient at p = 0 is infinite",
)
"""The bounds of the power of a focusing weight, whose gradient must be finite for every logit."""


@dataclass(frozen=True)
class Setting:
    """A number of a scheme or an augmentation, which `--scheme-settings` or `--augment-settings NAME=VALUE` changes."""

    name: str
    default: float
    """The value where none is given: the published one, or our choice where `about` says so."""
    about: str
    bounds: Bounds = ANY_NUMBER
    earlier: float | None = None
    """The value of runs that began before this setting existed, which they keep; None: the default."""

    def check(self, value: float, flag: str = "scheme_settings") -> None:
        """Raise ValueError, with the setting's name and bounds, where this value is not allowed."""
        if not self.bounds.allow(value):
            raise ValueError(f"{flag}: {self.name}={value:g}: {self.bounds}")


def read_numbers(text: str, settings: Iterable[Setting], flag: str, owner: str) -> dict[str, float]:
    """Read settings given as `name=value,...`.

    Args:
        text: the settings; those that it does not name are not in the result.
        settings: the records of those that may be given.
        flag: the name of the flag, for messages.
        owner: what has these settings, for messages, such as `scheme asl`.

    Raises:
        ValueError: there is no such setting, or its value is outside the bounds.
    """
    known = {setting.name: setting for setting in settings}
    given: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in known:
            has = ", ".join(f"{each.name}={each.default:g}" for each in known.values()) or "none"
            hint = did_you_mean(name, known, shown=str) or "."
            raise ValueError(f"{flag}: {name}: {owner} has no such setting{hint} It has: {has}")
        try:
            given[name] = float(value)
        except ValueError:
            raise ValueError(f"{flag}: {name}={value}: not a number") from None
        known[name].check(given[name], flag)
    return given


@dataclass(frozen=True)
class Published:
    """Values that a paper, its code or its author gives for some data sets."""

    data: tuple[str, ...]
    """The data sets; empty where the source names none."""
    values: Mapping[str, float | tuple[float, ...]]
    """Values of the scheme's settings and of fields of a configuration, by name; a tuple holds values that were tried
    in a search."""
    source: str
    applied: bool = True
    """Whether the recipe of the data set uses these values. Where two sources differ, it uses those of one of them. The
    values of a search are never used, because the source does not say which of them was chosen."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A loss for partial labels: what it does, where it was published, and what training has to know about it."""

    name: str
    """The name that `--scheme` takes."""
    about: str
    """What it does, in one sentence."""
    paper: str = ""
    equation: str = ""
    """The section or equation of the paper."""
    loss: str
    """The function that computes it, as 'module:function', imported when the scheme is first used."""
    loss_of: Literal["entry", "batch"] = "entry"
    """What the function takes and returns. entry: (logits [n], labels [n], **settings) -> losses [n], which are then
    averaged over all entries. batch: (logits [B, K], labels [B, K], StepContext) -> this rank's share of the loss, and
    the rejected entries."""
    settings: tuple[Setting, ...] = ()
    ascending: tuple[str, ...] = ()
    """Names of settings of which none may be smaller than the one before it."""
    state: str = ""
    """The state that it keeps between steps, a name in `training.state_builders.STATE_BUILDERS`; empty: none. A
    scheme of your own may give a function 'module:function' that takes a `Start` and returns a `SchemeState`."""
    rejects_by: Literal["", "rate", "threshold"] = ""
    """rate: it rejects a scheduled share of all entries. threshold: it rejects every unobserved entry whose loss
    exceeds a scheduled threshold. Empty: it rejects nothing."""
    rate_is_constant: bool = False
    """Whether the rejection rate stays at delta_rel percent instead of rising by delta_rel percent with every epoch."""
    rejected_become: Literal["", "left out", "positive"] = ""
    corrects: bool = False
    """Whether rejected entries stay positive in all later steps."""
    follows_length: bool = False
    """Whether its schedule depends on the number of epochs of the run."""
    plain_until_rejection: bool = False
    """Whether it is assume-negative training as long as nothing is rejected, so that runs can share a warm-up."""
    augmentation: str = "mirror"
    """The augmentation that its published code uses, which `--augment published` applies."""
    needs_truth: bool = False
    """Whether every label must be observed."""
    takes_pseudo_labels: bool = False
    """Whether it needs the scores of another model (`--pseudo-labels`)."""
    published: tuple[Published, ...] = ()
    differs: str = ""
    """The differences from the published code or paper, and why; empty where none is known."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", self.loss):
            raise ValueError(f"scheme {self.name}: loss={self.loss!r}: give it as 'module:function'")
        if len(self.defaults) < len(self.settings):
            raise ValueError(f"scheme {self.name}: a setting is given twice; keep one record each")
        for setting in self.settings:
            setting.check(setting.default)

    def check_together(self, given: Mapping[str, float]) -> None:
        """Raise ValueError where the settings given and the defaults of the others contradict each other."""
        values = self.defaults | dict(given)
        for low, high in itertools.pairwise(self.ascending):
            if values[low] > values[high]:
                raise ValueError(f"scheme_settings: {low}={values[low]:g}: must be at most {high}={values[high]:g}")

    @property
    def defaults(self) -> dict[str, float]:
        """The default of every setting."""
        return {setting.name: setting.default for setting in self.settings}

    def published_for(self, data: str) -> dict[str, float]:
        """The published values that a data set's recipe uses, of the scheme's settings and of configuration fields."""
        applied = [published for published in self.published if published.applied and data in published.data]
        values = [item for published in applied for item in published.values.items()]
        return {name: value for name, value in values if not isinstance(value, tuple)}

    @property
    def earlier_defaults(self) -> dict[str, float]:
        """The value of every setting for runs that began before it existed."""
        return {each.name: each.default if each.earlier is None else each.earlier for each in self.settings}

    @property
    def source(self) -> str:
        """The paper, with the section or equation."""
        return ", ".join(filter(None, (self.paper, self.equation)))
