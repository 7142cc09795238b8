"""The record of a scheme: everything that flags, help, checks, tables and training need to know about it.

Nothing here needs torch, so that `--help` and the checks of a configuration can read every record.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from raypaml.cli import did_you_mean

LARGEST = 1000.0
"""Settings are smaller than this in size where a record says nothing else."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The numbers that a setting may be: those between `least` and `most`, and those in `also`."""

    least: float = -LARGEST
    most: float = LARGEST
    """This number itself is not allowed."""
    from_least: bool = False
    """Whether `least` itself is allowed."""
    also: tuple[float, ...] = ()
    whole: bool = False
    """Whether it must be a whole number."""
    wording: str = ""
    """What a refusal says instead of the numbers, where there is a reason to give."""

    def allow(self, value: float) -> bool:
        """Whether a setting may be this number. NaN is never allowed."""
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
    wording="0, or from 1 on; between, its slope at p = 0 is infinite",
)
"""These are the bounds of a power of p whose gradient must be finite for every logit."""


@dataclass(frozen=True)
class Setting:
    """A number of a scheme or an augmentation, which `--scheme-settings` or `--augment-settings NAME=VALUE` changes."""

    name: str
    default: float
    """The value that holds where nothing is given: the published one, or ours where `about` says so."""
    about: str
    bounds: Bounds = ANY_NUMBER
    earlier: float | None = None
    """What the scheme did before this was a setting, where that is not the default: runs begun then go on so."""

    def check(self, value: float, flag: str = "scheme_settings") -> None:
        """Raise ValueError, naming the setting and its bounds, where it may not be this number."""
        if not self.bounds.allow(value):
            raise ValueError(f"{flag}: {self.name}={value:g}: {self.bounds}")


def read_numbers(text: str, settings: Iterable[Setting], flag: str, owner: str) -> dict[str, float]:
    """Read `name=value,...`, the settings given for one owner, such as `scheme asl`; those not given are left out.

    Raises:
        ValueError: a setting that the owner has not, or a value outside its bounds; the message names flag and setting.
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
    """The values that a paper, its code or its author gives for some data sets."""

    data: tuple[str, ...]
    """The data sets; none where the source names none."""
    values: Mapping[str, float | tuple[float, ...]]
    """Settings of the scheme and fields of a configuration by name; several values are those that were searched."""
    source: str
    applied: bool = True
    """Whether the recipe of the data set applies them. Where two sources differ, it applies one of them; a range that
    was searched is never applied, for which value was chosen is not known."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A loss for partial labels: what it does, where it is from, and what training must know about it."""

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
    """What the function takes. entry: (logits [n], labels [n], **settings) -> losses [n], averaged over all entries.
    batch: (logits [B, K], labels [B, K], StepContext) -> this rank's share of the loss, and the rejected entries."""
    settings: tuple[Setting, ...] = ()
    ascending: tuple[str, ...] = ()
    """Settings none of which may be smaller than the one before it."""
    state: str = ""
    """What it keeps from step to step, a name in `training.state_builders.STATE_BUILDERS`; empty: nothing.
    A scheme of your own may name a function 'module:function' that takes a `Start` and returns a `SchemeState`."""
    rejects_by: Literal["", "rate", "threshold"] = ""
    """rate: delta_rel percent of all entries, by the schedule. threshold: every entry whose loss exceeds one."""
    rate_is_constant: bool = False
    """Whether the rate stays at delta_rel percent instead of rising by it with every epoch."""
    rejected_become: Literal["", "left out", "positive"] = ""
    corrects: bool = False
    """Whether rejected entries stay positive in all later steps."""
    follows_length: bool = False
    """Whether something of it moves from the run's first epoch to its last, and so depends on their number."""
    plain_until_rejection: bool = False
    """Whether it is assume-negative training as long as nothing is rejected, so that runs can share a warm-up."""
    augmentation: str = "mirror"
    """What `--augment published` does to its training images: the name of the augmentation that its code uses."""
    needs_truth: bool = False
    """Whether every label must be known."""
    takes_pseudo_labels: bool = False
    """Whether it works on scores of another model (`--pseudo-labels`), which it then needs."""
    published: tuple[Published, ...] = ()
    differs: str = ""
    """What our form does otherwise than the published code or paper; empty where no difference is known."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", self.loss):
            raise ValueError(f"scheme {self.name}: loss={self.loss!r}: give it as 'module:function'")
        if len(self.defaults) < len(self.settings):
            raise ValueError(f"scheme {self.name}: a setting is given twice; keep one record each")
        for setting in self.settings:
            setting.check(setting.default)

    def check_together(self, given: Mapping[str, float]) -> None:
        """Raise ValueError where settings, those given over the defaults, do not go together."""
        values = self.defaults | dict(given)
        for low, high in itertools.pairwise(self.ascending):
            if values[low] > values[high]:
                raise ValueError(f"scheme_settings: {low}={values[low]:g}: must be at most {high}={values[high]:g}")

    @property
    def defaults(self) -> dict[str, float]:
        """Every setting with its default."""
        return {setting.name: setting.default for setting in self.settings}

    def published_for(self, data: str) -> dict[str, float]:
        """The published values for a data set that its recipe applies: settings and fields of a configuration."""
        found: dict[str, float] = {}
        for published in self.published:
            if published.applied and data in published.data:
                found |= {name: value for name, value in published.values.items() if not isinstance(value, tuple)}
        return found

    @property
    def earlier_defaults(self) -> dict[str, float]:
        """Every setting with what held before it was one, or its default where that is the same."""
        return {each.name: each.default if each.earlier is None else each.earlier for each in self.settings}

    @property
    def source(self) -> str:
        """The paper, with the section or equation."""
        return ", ".join(filter(None, (self.paper, self.equation)))
