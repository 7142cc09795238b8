"""Every scheme: the function that is its loss, and its settings. The one place to look for what a scheme does."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from raypaml.labels import UNOBSERVED, SchemeName
from raypaml.losses import formulas
from raypaml.losses.fused_terms import UNIT, Term, mean_term, probability_sum
from raypaml.losses.large_loss import RELATIVE, large_loss, scheduled_rate, scheduled_threshold
from raypaml.losses.selection import select

KEEPING: tuple[SchemeName, ...] = ("ll_cp", "ll_cp_abs")
"""Schemes whose rejected entries stay positive from then on."""


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Where a step stands in training, and this rank's part in its global batch."""

    epoch: int = 0
    epochs: int = 1
    step: int = 0
    steps: int = 1
    warmup_epochs: int = 1
    delta_rel: float = 0.0
    continuous: bool = False
    """Schedules advance with every step."""
    global_rows: int
    first_row: int = 0
    group: dist.ProcessGroup | None = None
    scope: Literal["global", "rank"] = "global"
    settings: Mapping[str, float] = field(default_factory=dict)
    """The scheme's, all of them."""
    known: Mapping[str, Any] = field(default_factory=dict)
    """What training remembers for the scheme; see `training.memory`."""

    @property
    def since_warmup(self) -> float:
        """Epochs since the warm-up, the first of them 1; 0 and less within it."""
        return self.epoch - self.warmup_epochs + 1 + (self.step / self.steps if self.continuous else 0.0)


Loss = Callable[[Tensor, Tensor, StepContext], tuple[Tensor, Tensor]]
"""(logits [B, K], labels [B, K], moment) -> this rank's share of the loss, and what was rejected, bool [B, K]."""


@dataclass(frozen=True)
class Scheme:
    """A loss, and its settings as published."""

    loss: Loss
    settings: dict[str, float] = field(default_factory=dict)


def scheme_loss(scheme: SchemeName, logits: Tensor, labels: Tensor, moment: StepContext) -> tuple[Tensor, Tensor]:
    """The loss of a scheme.

    Args:
        scheme: its name.
        logits: [B, K] finite, of this rank's rows.
        labels: int8 [B, K], within the alphabet.
        moment: the rest; its `settings` are completed by the published ones.

    Returns:
        loss: this rank's share; the ranks' losses add up to that of the global batch.
        rejected: [B, K] bool, unobserved entries taken for missed positives: left out, or made positive.
    """
    found = SCHEMES[scheme]
    return found.loss(logits, labels, dataclasses.replace(moment, settings=found.settings | dict(moment.settings)))


def read_settings(scheme: SchemeName, text: str) -> dict[str, float]:
    """Settings given as `name=value,...`; ValueError names one that the scheme has not, or that cannot be."""
    known = SCHEMES[scheme].settings
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            has = ", ".join(f"{key}={default:g}" for key, default in known.items()) or "none"
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"scheme_settings: {name}: scheme {scheme} has no such setting; {hint}It has: {has}")
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"scheme_settings: {name}={value}: not a number") from None
        _check_setting(name, found[name])
    return found


def _check_setting(name: str, value: float) -> None:
    if name.startswith("gamma") and not (value == 0 or 1 <= value < 100):
        raise ValueError(f"scheme_settings: {name}={value:g}: 0, or from 1 on; between, its slope at p = 0 is infinite")
    if name in ("smoothing", "clip", "share", "tau") and not 0 <= value < 1:
        raise ValueError(f"scheme_settings: {name}={value:g}: at least 0 and below 1")
    if name in ("q2", "q3", "width", "threshold") and not 0 < value < 1000:
        raise ValueError(f"scheme_settings: {name}={value:g}: must be above 0")
    if not -1000 < value < 1000:
        raise ValueError(f"scheme_settings: {name}={value:g}: a number between -1000 and 1000")


def check_schedule(scheme: SchemeName, settings: Mapping[str, float], last: float) -> None:
    """Raise ValueError where the scheme's schedule ends before its `last` epoch since the warm-up."""
    if scheme in RELATIVE:
        every = SCHEMES[scheme].settings | dict(settings)
        scheduled_threshold(every["threshold"], every["delta_abs"], progress=last)


# --- The large-loss family, and the plain schemes ---------------------------------------------------------------------


def _relative(scheme: Any, logits: Tensor, labels: Tensor, moment: StepContext) -> tuple[Tensor, Tensor]:
    rate = scheduled_rate(
        scheme,
        moment.delta_rel,
        epoch=moment.epoch,
        step=moment.step,
        steps=moment.steps,
        warmup_epochs=moment.warmup_epochs,
        continuous=moment.continuous,
    )
    return large_loss(logits, labels, scheme, rate, scope=moment.scope, **_place(moment))


def _absolute(scheme: Any, logits: Tensor, labels: Tensor, moment: StepContext) -> tuple[Tensor, Tensor]:
    start, delta = moment.settings["threshold"], moment.settings["delta_abs"]
    rejects = moment.epoch >= moment.warmup_epochs
    threshold = scheduled_threshold(start, delta, progress=moment.since_warmup) if rejects else None
    return large_loss(logits, labels, RELATIVE[scheme], threshold=threshold, **_place(moment))


def _place(moment: StepContext) -> dict[str, Any]:
    where = {"global_rows": moment.global_rows, "first_row": moment.first_row, "group": moment.group}
    return where | {"check_values": False}


# --- Schemes that are a formula of each entry -------------------------------------------------------------------------


def _term(term: Term, logits: Tensor, labels: Tensor, moment: StepContext) -> tuple[Tensor, Tensor]:
    return _mean(term, logits, labels, moment, moment.settings), torch.zeros_like(labels, dtype=torch.bool)


def _mean(term: Term, logits: Tensor, labels: Tensor, moment: StepContext, known: Mapping[str, Any]) -> Tensor:
    return mean_term(term, logits, labels, moment.global_rows * labels.shape[1], known)


def _wan(logits: Tensor, labels: Tensor, moment: StepContext) -> tuple[Tensor, Tensor]:
    weight = moment.settings["weight"] or 1 / max(1, labels.shape[1] - 1)
    return _term(formulas.wan, logits, labels, dataclasses.replace(moment, settings={"weight": weight}))


def _csl(logits: Tensor, labels: Tensor, moment: StepContext) -> tuple[Tensor, Tensor]:
    settings = dict(moment.settings)
    prior, likely = settings.pop("prior"), int(settings.pop("likely"))
    rows = moment.global_rows if moment.scope == "global" else len(logits)
    group = moment.group if moment.scope == "global" else None
    left_out = select(logits, labels, likely * rows, first_row=moment.first_row, group=group)
    left_out |= (labels == UNOBSERVED) & (moment.known["priors"] > prior)
    return _mean(formulas.csl, logits, labels, moment, settings | {"left_out": left_out}), left_out


def _em_apl(logits: Tensor, labels: Tensor, moment: StepContext) -> tuple[Tensor, Tensor]:
    known = {name: value for name, value in moment.settings.items() if name != "share"} | dict(moment.known)
    return _mean(formulas.em_apl, logits, labels, moment, known), torch.zeros_like(labels, dtype=torch.bool)


def _gr(logits: Tensor, labels: Tensor, moment: StepContext) -> tuple[Tensor, Tensor]:
    """Slope and offset reach their ends after the last epoch, centre and width with it, as in the published code."""
    ends = moment.settings
    progress = {"slope": moment.epoch, "offset": moment.epoch, "centre": moment.epoch + 1, "width": moment.epoch + 1}
    moved = {
        name: ends[name] + (ends[f"{name}_end"] - ends[name]) * done / moment.epochs for name, done in progress.items()
    }
    known = {"q2": ends["q2"], "q3": ends["q3"]} | moved
    return _mean(formulas.gr, logits, labels, moment, known), torch.zeros_like(labels, dtype=torch.bool)


def _splc(logits: Tensor, labels: Tensor, moment: StepContext) -> tuple[Tensor, Tensor]:
    known = {"margin": moment.settings["margin"], "gamma": moment.settings["gamma"]}
    sure = torch.sigmoid(logits.detach().double()) > moment.settings["tau"]
    flipped = (labels == UNOBSERVED) & sure & (moment.epoch >= moment.warmup_epochs)
    return _mean(formulas.splc, logits, labels, moment, known | {"flipped": flipped}), flipped


def _regularised(
    term: Term, weight: float, logits: Tensor, labels: Tensor, moment: StepContext
) -> tuple[Tensor, Tensor]:
    """Add weight ((mean number of positives) - expected)^2 / K^2 of the global batch (E. Cole et al., CVPR 2021).

    An entry's share of its gradient is that of `pull` x probability; the value is put right afterwards.
    """
    expected = moment.settings["expected"] or moment.known["expected"]
    rows, num_classes = moment.global_rows, labels.shape[1]
    mine = probability_sum(logits)
    count = global_sum(mine, moment.group).double() / UNIT / rows
    pull = 2 * (count - expected) / num_classes
    known = {name: value for name, value in moment.known.items() if name != "expected"}
    loss = _mean(term, logits, labels, moment, known | {"pull": pull})
    penalty = (count - expected) ** 2 / num_classes**2 * len(logits) / rows
    excess = pull * mine.double() / UNIT / (rows * num_classes)  # what `pull` added
    return loss + (weight * (penalty - excess)).to(loss.dtype), torch.zeros_like(labels, dtype=torch.bool)


def global_sum(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over the ranks of a group; of integers, exact."""
    if group is not None:
        values = values.clone()
        dist.all_reduce(values, group=group)
    return values


_ABSOLUTE = {"threshold": 1.5, "delta_abs": 0.1}
_FOCAL_MARGIN = {"margin": 1.0, "gamma": 2.0}
_PASL = {"gamma_pos": 0.0, "gamma_neg": 1.0, "gamma_unobserved": 4.0, "clip": 0.0}
_GR = {"q2": 0.01, "q3": 1.0, "slope": 0.0, "slope_end": 2.0, "offset": -2.0, "offset_end": -2.0}
_GR |= {"centre": 0.5, "centre_end": 0.8, "width": 2.0, "width_end": 0.5}

SCHEMES: dict[SchemeName, Scheme] = {
    "full": Scheme(partial(_relative, "full")),
    "an": Scheme(partial(_relative, "an")),
    "ignore": Scheme(partial(_relative, "ignore")),
    "ll_r": Scheme(partial(_relative, "ll_r")),
    "ll_ct": Scheme(partial(_relative, "ll_ct")),
    "ll_cp": Scheme(partial(_relative, "ll_cp")),
    "ll_r_abs": Scheme(partial(_absolute, "ll_r_abs"), _ABSOLUTE),
    "ll_ct_abs": Scheme(partial(_absolute, "ll_ct_abs"), _ABSOLUTE),
    "ll_cp_abs": Scheme(partial(_absolute, "ll_cp_abs"), _ABSOLUTE),
    "wan": Scheme(_wan, {"weight": 0.0}),  # 0: 1 / (K - 1)
    "ls": Scheme(partial(_term, formulas.ls), {"smoothing": 0.1}),
    "asl": Scheme(partial(_term, formulas.asl), {"gamma_pos": 0.0, "gamma_neg": 4.0, "clip": 0.05}),
    "pasl": Scheme(partial(_term, formulas.pasl), _PASL),
    "csl": Scheme(_csl, _PASL | {"prior": 0.05, "likely": 5.0}),
    "epr": Scheme(partial(_regularised, formulas.epr, 1.0), {"expected": 0.0}),  # 0: as in the validation split
    "role": Scheme(partial(_regularised, formulas.role, 0.5), {"expected": 0.0, "step": 1.0}),
    "em": Scheme(partial(_term, formulas.em), {"weight": 0.1}),
    "em_apl": Scheme(_em_apl, {"weight": 0.1, "pseudo_weight": 0.9, "share": 0.9}),  # as for COCO
    "gr": Scheme(_gr, _GR),
    "hill": Scheme(partial(_term, formulas.hill), _FOCAL_MARGIN | {"lamb": 1.5}),
    "splc": Scheme(_splc, _FOCAL_MARGIN | {"tau": 0.6}),
}
