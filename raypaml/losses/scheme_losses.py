"""The loss of any scheme in one training step, and the losses that need more than a formula of each entry.

Each of these is a function of the logits [B, K] and labels [B, K] of this rank's rows and of the step's context. It
returns this rank's share of the loss and the entries, bool [B, K], that it left out or made positive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from raypaml.collectives import all_reduce
from raypaml.extensions import named_function
from raypaml.labels import UNOBSERVED
from raypaml.losses import formulas
from raypaml.losses.fused_bce import mean_loss
from raypaml.losses.fused_terms import UNIT, Arguments, Term, mean_term, probability_sum
from raypaml.losses.large_loss import corrected_bce, exceeds, large_loss, scheduled_rate, scheduled_threshold
from raypaml.losses.schemes import scheme_of
from raypaml.losses.selection import Rounding, select


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """The place of a step in training, this rank's part of the global batch, and the scheme's settings and state."""

    scheme: str = ""
    """The name of the scheme; `scheme_loss` fills it in."""
    epoch: int = 0
    epochs: int = 1
    step: int = 0
    steps: int = 1
    warmup_epochs: int = 1
    delta_rel: float = 0.0
    continuous: bool = False
    """Whether schedules advance with every step, instead of with every epoch."""
    global_rows: int
    first_row: int = 0
    group: dist.ProcessGroup | None = None
    scope: Literal["global", "rank"] = "global"
    rounding: Rounding = "up"
    """How the number of entries to reject is rounded to a whole number."""
    settings: Mapping[str, float] = field(default_factory=dict)
    """The scheme's settings; `scheme_loss` adds the defaults of those that are missing."""
    ranking: Tensor | None = None
    """Logits [B, K] by which entries are ranked for rejection; None: the logits of the loss."""
    known: Mapping[str, Tensor | float] = field(default_factory=dict)
    """What the scheme's state holds for these rows; see `training.scheme_state`."""

    @property
    def since_warmup(self) -> float:
        """Epochs since the warm-up, from 1; 0 or less during the warm-up."""
        return self.epoch - self.warmup_epochs + 1 + (self.step / self.steps if self.continuous else 0.0)


def scheme_loss(scheme: str, logits: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """Compute the loss of a scheme in one step.

    Args:
        scheme: its name.
        logits: finite logits [B, K] of this rank's rows.
        labels: int8 [B, K], each one of the alphabet in `raypaml.labels`.
        context: the step; settings that it lacks have their defaults.

    Returns:
        loss: this rank's share; the ranks' losses add up to that of the global batch.
        rejected: bool [B, K], the unobserved entries taken for missed positives: left out, or made positive.

    Raises:
        ValueError: there is no such scheme, or its loss cannot be imported.
    """
    record = scheme_of(scheme)
    context = dataclasses.replace(context, scheme=scheme, settings=record.defaults | dict(context.settings))
    function = named_function(record.loss)
    if record.loss_of == "batch":
        loss, rejected = function(logits, labels, context)
        return loss, rejected
    return _mean(function, logits, labels, context, {**context.settings, **context.known}), _nothing_rejected(labels)


def _mean(term: Term, logits: Tensor, labels: Tensor, context: StepContext, arguments: Arguments) -> Tensor:
    """This rank's share of the mean of `term` over the entries of the global batch."""
    return mean_term(term, logits, labels, context.global_rows * labels.shape[1], arguments)


def _nothing_rejected(labels: Tensor) -> Tensor:
    """Bool [B, K], all False."""
    return torch.zeros_like(labels, dtype=torch.bool)


# --- The plain schemes, and the large-loss family ---------------------------------------------------------------------


def large_loss_by_rate(logits: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """The loss of `full`, `an`, `ignore`, and of the schemes that reject at a scheduled rate."""
    rate = scheduled_rate(
        context.scheme,
        context.delta_rel,
        epoch=context.epoch,
        step=context.step,
        steps=context.steps,
        warmup_epochs=context.warmup_epochs,
        continuous=context.continuous,
    )
    return large_loss(
        logits,
        labels,
        context.scheme,
        rate,
        global_rows=context.global_rows,
        first_row=context.first_row,
        group=context.group,
        scope=context.scope,
        rounding=context.rounding,
        ranking=context.ranking,
        check_values=False,
    )


def large_loss_by_threshold(logits: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """The loss of `ll_r_abs`, `ll_ct_abs` and `ll_cp_abs`, which reject entries whose loss exceeds a threshold.

    During the warm-up it is the loss of assume-negative training.
    """
    entries = context.global_rows * labels.shape[1]
    if context.epoch < context.warmup_epochs:
        return mean_loss(logits, labels, entries), _nothing_rejected(labels)
    start, delta = context.settings["threshold"], context.settings["delta_abs"]
    rejected = exceeds(logits, labels, scheduled_threshold(start, delta, progress=context.since_warmup))
    return corrected_bce(context.scheme, logits, labels, rejected, entries), rejected


def check_schedule(scheme: str, settings: Mapping[str, float], last: float) -> None:
    """Raise ValueError where the scheme's threshold falls to 0 before its `last` epoch since the warm-up."""
    record = scheme_of(scheme)
    if record.rejects_by == "threshold":
        every = record.defaults | dict(settings)
        scheduled_threshold(every["threshold"], every["delta_abs"], progress=last)


# --- Schemes whose formula needs arguments that are computed here -----------------------------------------------------


def wan_loss(logits: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """Weak assume-negative; a weight of 0 stands for 1 / (K - 1)."""
    weight = context.settings["weight"] or 1 / max(1, labels.shape[1] - 1)
    known = {"weight": weight, "epsilon": context.settings["epsilon"]}
    return _mean(formulas.wan, logits, labels, context, known), _nothing_rejected(labels)


def csl_loss(logits: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """Class-aware selective loss; the state has the class priors [K], the likely entries are selected here."""
    settings = dict(context.settings)
    prior, likely = settings.pop("prior"), int(settings.pop("likely"))
    rows = context.global_rows if context.scope == "global" else len(logits)
    group = context.group if context.scope == "global" else None
    left_out = select(logits, labels, likely * rows, first_row=context.first_row, group=group)
    left_out |= (labels == UNOBSERVED) & (context.known["priors"] > prior)
    return _mean(formulas.csl, logits, labels, context, settings | {"left_out": left_out}), left_out


def em_apl_loss(logits: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """Entropy maximisation with pseudo labels; the state has each class's threshold [K] and soft label [K]."""
    known = {name: value for name, value in context.settings.items() if name != "share"} | dict(context.known)
    return _mean(formulas.em_apl, logits, labels, context, known), _nothing_rejected(labels)


def gr_loss(logits: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """Generalised robust loss, whose k and v change with the epoch."""
    return _mean(formulas.gr, logits, labels, context, gr_settings(context)), _nothing_rejected(labels)


def gr_settings(context: StepContext) -> dict[str, float]:
    """The settings of GR's formula in this epoch.

    Slope and offset would reach their final values one epoch after the last, centre and width reach them in the last
    epoch, as in the published code.
    """
    ends = context.settings
    epoch = context.epoch
    progress = {"slope": epoch, "offset": epoch, "centre": epoch + 1, "width": epoch + 1}
    moved = {
        name: ends[name] + (ends[f"{name}_end"] - ends[name]) * done / context.epochs for name, done in progress.items()
    }
    return {name: ends[name] for name in ("q2", "q3", "epsilon")} | moved


def splc_loss(logits: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """Self-paced loss correction; after the warm-up, unobserved entries of p > tau are flipped."""
    known = {"margin": context.settings["margin"], "gamma": context.settings["gamma"]}
    sure = torch.sigmoid(logits.detach().double()) > context.settings["tau"]
    flipped = (labels == UNOBSERVED) & sure & (context.epoch >= context.warmup_epochs)
    return _mean(formulas.splc, logits, labels, context, known | {"flipped": flipped}), flipped


def epr_loss(logits: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """Expected positive regularisation."""
    return regularised(formulas.epr, 1.0, logits, labels, context), _nothing_rejected(labels)


def role_loss(logits: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """Regularised online label estimation, the loss of the classifier, which contains half of EPR's penalty."""
    return regularised(formulas.role, 0.5, logits, labels, context), _nothing_rejected(labels)


def regularised(term: Term, weight: float, logits: Tensor, labels: Tensor, context: StepContext) -> Tensor:
    """The mean of `term`, plus weight x ((mean number of positives) - expected)^2 / K^2 of the global batch.

    (E. Cole et al., CVPR 2021.) `term` adds `pull` x probability to each entry's loss, whose gradient is that of the
    penalty; afterwards the value of the loss is corrected to that of the penalty.
    """
    expected = context.settings["expected"] or context.known["expected"]
    rows, num_classes = context.global_rows, labels.shape[1]
    mine = probability_sum(logits)
    count = global_sum(mine, context.group).double() / UNIT / rows
    pull = 2 * (count - expected) / num_classes
    arguments = {name: value for name, value in context.known.items() if name != "expected"}
    arguments |= {"pull": pull, "epsilon": context.settings["epsilon"]}
    loss = _mean(term, logits, labels, context, arguments)
    penalty = (count - expected) ** 2 / num_classes**2 * len(logits) / rows
    excess = pull * mine.double() / UNIT / (rows * num_classes)  # what `pull` added
    return loss + (weight * (penalty - excess)).to(loss.dtype)


def global_sum(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over the ranks of a group, which is exact for integers."""
    if group is not None:
        values = values.clone()
        all_reduce(values, group)
    return values
