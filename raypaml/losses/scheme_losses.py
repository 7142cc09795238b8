"""The loss of any scheme in one training step, and the functions of those that are more than a formula of an entry.

Such a function takes the logits [B, K] and labels [B, K] of this rank's rows and the step's context. It returns this
rank's share of the loss, and which unobserved entries it took for missed positives, bool [B, K].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from raypaml.collectives import all_reduce
from raypaml.extensions import named_function
from raypaml.labels import UNOBSERVED
from raypaml.losses import formulas
from raypaml.losses.fused_bce import mean_loss
from raypaml.losses.fused_terms import UNIT, Term, mean_term, probability_sum
from raypaml.losses.large_loss import corrected_bce, exceeds, large_loss, scheduled_rate, scheduled_threshold
from raypaml.losses.schemes import scheme_of
from raypaml.losses.selection import Rounding, select


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Where a step stands in training, and this rank's part in its global batch."""

    scheme: str = ""
    """The name of the scheme; `scheme_loss` fills it in."""
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
    rounding: Rounding = "up"
    """How the number of entries to reject becomes whole."""
    settings: Mapping[str, float] = field(default_factory=dict)
    """The scheme's settings; `scheme_loss` completes them by the published ones."""
    ranking: Tensor | None = None
    """[B, K] logits that rank entries for rejection, where they are not those of the loss."""
    known: Mapping[str, Any] = field(default_factory=dict)
    """What training remembers for the scheme; see `training.scheme_state`."""

    @property
    def since_warmup(self) -> float:
        """Epochs since the warm-up, the first of them 1; 0 and less within it."""
        return self.epoch - self.warmup_epochs + 1 + (self.step / self.steps if self.continuous else 0.0)


def scheme_loss(scheme: str, logits: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """The loss of a scheme.

    Args:
        scheme: its name.
        logits: [B, K] finite, of this rank's rows.
        labels: int8 [B, K], within the alphabet.
        context: the rest; its `settings` are completed by the published ones.

    Returns:
        loss: this rank's share; the ranks' losses add up to that of the global batch.
        rejected: [B, K] bool, unobserved entries taken for missed positives: left out, or made positive.

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


def _mean(term: Term, logits: Tensor, labels: Tensor, context: StepContext, known: Mapping[str, Any]) -> Tensor:
    """This rank's share of the mean of `term` over the entries of the global batch."""
    return mean_term(term, logits, labels, context.global_rows * labels.shape[1], known)


def _nothing_rejected(labels: Tensor) -> Tensor:
    """[B, K] bool, all False."""
    return torch.zeros_like(labels, dtype=torch.bool)


# --- The plain schemes, and the large-loss family ---------------------------------------------------------------------


def large_loss_by_rate(logits: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """Full labels, assume-negative, observed entries only, and the schemes that reject at the rate of a schedule."""
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
    """Assume-negative in the warm-up; then it rejects unobserved entries whose loss exceeds the scheduled threshold."""
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


# --- Schemes that are a formula of each entry and of something that is worked out here --------------------------------


def wan_loss(logits: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """Weak assume-negative; a weight of 0 stands for 1 / (K - 1)."""
    weight = context.settings["weight"] or 1 / max(1, labels.shape[1] - 1)
    known = {"weight": weight, "epsilon": context.settings["epsilon"]}
    return _mean(formulas.wan, logits, labels, context, known), _nothing_rejected(labels)


def csl_loss(logits: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """Class-aware selective loss; the classes' priors [K] are known, the likely entries are selected here."""
    settings = dict(context.settings)
    prior, likely = settings.pop("prior"), int(settings.pop("likely"))
    rows = context.global_rows if context.scope == "global" else len(logits)
    group = context.group if context.scope == "global" else None
    left_out = select(logits, labels, likely * rows, first_row=context.first_row, group=group)
    left_out |= (labels == UNOBSERVED) & (context.known["priors"] > prior)
    return _mean(formulas.csl, logits, labels, context, settings | {"left_out": left_out}), left_out


def em_apl_loss(logits: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """Entropy maximisation with pseudo labels; threshold [K] and soft label [K] are known, made with `share`."""
    known = {name: value for name, value in context.settings.items() if name != "share"} | dict(context.known)
    return _mean(formulas.em_apl, logits, labels, context, known), _nothing_rejected(labels)


def gr_loss(logits: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """Generalised robust loss, whose k and v move with the epoch."""
    return _mean(formulas.gr, logits, labels, context, gr_settings(context)), _nothing_rejected(labels)


def gr_settings(context: StepContext) -> dict[str, float]:
    """The settings of GR's formula in this epoch.

    Slope and offset reach their ends after the last epoch, centre and width with it, as in the published code.
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
    """Expected positive regularisation, with the whole penalty."""
    return regularised(formulas.epr, 1.0, logits, labels, context), _nothing_rejected(labels)


def role_loss(logits: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """Regularised online label estimation, the classifier's half of it, and so with half the penalty."""
    return regularised(formulas.role, 0.5, logits, labels, context), _nothing_rejected(labels)


def regularised(term: Term, weight: float, logits: Tensor, labels: Tensor, context: StepContext) -> Tensor:
    """Add weight ((mean number of positives) - expected)^2 / K^2 of the global batch (E. Cole et al., CVPR 2021).

    An entry's share of its gradient is that of `pull` x probability; the value is put right afterwards.
    """
    expected = context.settings["expected"] or context.known["expected"]
    rows, num_classes = context.global_rows, labels.shape[1]
    mine = probability_sum(logits)
    count = global_sum(mine, context.group).double() / UNIT / rows
    pull = 2 * (count - expected) / num_classes
    known = {name: value for name, value in context.known.items() if name != "expected"}
    known |= {"pull": pull, "epsilon": context.settings["epsilon"]}
    loss = _mean(term, logits, labels, context, known)
    penalty = (count - expected) ** 2 / num_classes**2 * len(logits) / rows
    excess = pull * mine.double() / UNIT / (rows * num_classes)  # what `pull` added
    return loss + (weight * (penalty - excess)).to(loss.dtype)


def global_sum(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over the ranks of a group; of integers, exact."""
    if group is not None:
        values = values.clone()
        all_reduce(values, group)
    return values
