"""Assume-negative training that rejects or corrects its largest losses: LL-R, LL-Ct, LL-Cp, and the plain schemes."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from raypaml.collectives import all_reduce
from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED
from raypaml.losses.fused_bce import mean_loss
from raypaml.losses.large_loss_records import BY_RATE
from raypaml.losses.schemes import SCHEMES, scheme_of
from raypaml.losses.selection import Rounding, rejection_count, rejection_rate, select


def scheduled_rate(
    scheme: str,
    delta_rel: float,
    *,
    epoch: int,
    step: int = 0,
    steps: int = 1,
    warmup_epochs: int = 1,
    continuous: bool = False,
) -> Fraction:
    """The rejection rate in one step of training.

    It is 0 during the warm-up. Then LL-R and LL-Ct reject `delta_rel` percent more with each epoch, LL-Cp a constant
    `delta_rel` percent, because an entry that it corrected stays corrected. (LL, CVPR 2022, section 4.) The rate is a
    pure function of the step, so that a resumed run continues the schedule exactly.

    Args:
        delta_rel: percent of all entries per epoch.
        epoch, step, steps: epoch from 0, step within it, steps per epoch.
        warmup_epochs: epochs of assume-negative training before the first rejection; 1 as published.
        continuous: raise the rate with every step; at each epoch's start it equals the per-epoch schedule.
    """
    if warmup_epochs < 1:
        raise ValueError(f"warmup_epochs={warmup_epochs}: at least 1, for the first epoch always assumes negatives")
    record = scheme_of(scheme)
    if record.rejects_by != "rate" or epoch < warmup_epochs:
        return Fraction(0)
    progress = Fraction(epoch - warmup_epochs + 1) + (Fraction(step, steps) if continuous else 0)
    return rejection_rate(Fraction(1) if record.rate_is_constant else progress, delta_rel)


def scheduled_threshold(start: float, delta_abs: float, *, progress: float) -> float:
    """R(t) = start - t delta_abs: `ll_r_abs`, `ll_ct_abs` and `ll_cp_abs` reject unobserved entries of a larger loss.

    (LL, CVPR 2022, supplement, with start in 1, 1.5, 2 and delta_abs in 0.1, 0.15, 0.2. Our choice: all three schemes
    use the same R(t), and t counts the epochs since the warm-up, from 1, as in the relative schedule.)
    """
    threshold = start - progress * delta_abs
    if threshold <= 0:
        raise ValueError(
            f"threshold={start} - {progress:g} x delta_abs={delta_abs} is {threshold:.3g}: at 0 every unobserved entry "
            "is rejected; use a smaller delta_abs, a longer warm-up, or fewer epochs"
        )
    return threshold


def large_loss(
    logits: Tensor,
    labels: Tensor,
    scheme: str = "ll_r",
    rejection_rate: float | Fraction = 0.0,
    *,
    threshold: float | None = None,
    global_rows: int | None = None,
    first_row: int = 0,
    group: dist.ProcessGroup | None = None,
    scope: Literal["global", "rank"] = "global",
    rounding: Rounding = "up",
    ranking: Tensor | None = None,
    check_values: bool = True,
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy from partial labels, without the unobserved entries that look like missed positives.

    Schemes: `full` every entry observed · `an` unobserved means negative · `ignore` observed entries only · `ll_r`
    the rejected entries' loss is 0 · `ll_ct` the rejected entries' target is 1 in this step · `ll_cp` the same, and
    the caller keeps the targets (`runs.corrections`). Rejected are exactly the k unobserved entries of largest
    loss in the global batch, k = ceil(rate x all entries), or all of them where there are fewer. They stay in the
    denominator. (LL, CVPR 2022, equations 4 to 7; what differs from the published code is in losses/README.md.)

    Args:
        logits: [B, K], any float type; the loss is computed in float32 (float64 stays).
        labels: [B, K] int8 in {1 positive, 0 negative, -1 unobserved}.
        rejection_rate: share of all entries, 0..1; 0 is plain assume-negative. k is rounded up: give a rate that was
            computed as the Fraction that `raypaml.rejection_rate` returns, for 0.1 + 0.2 is above 0.3 in floats.
        threshold: reject every unobserved entry of a larger loss, whatever the rate. (`scheduled_threshold`)
        global_rows: rows of the global batch, if this is one rank's part of it.
        first_row: this part's first row within the global batch.
        group: the process group that shares the global batch.
        scope: "rank" rejects within this rank's part alone, as published code does under data parallelism: what is
            rejected then depends on the number of ranks.
        rounding: how k is rounded to a whole number; half_up as in earlier versions.
        ranking: finite logits [B, K] by which the entries are ranked, such as those of a larger alpha; None: `logits`.
        check_values: False leaves `check_labels` and `check_finite` to the caller: on a GPU they wait for the device.

    Returns:
        loss: this rank's sum over entries divided by the count of the *global* batch (all entries; for `ignore` the
            observed ones), so that the ranks' losses add up to the loss, however uneven they are.
        rejected: [B, K] bool.

    Raises:
        ValueError: unknown scheme, labels outside the alphabet, unobserved entries under `full`, shapes that differ,
            a rate outside 0..1.
        FloatingPointError: logits that are not finite; the message names the rows.
    """
    _check_arguments(logits, labels, scheme, rejection_rate)
    if check_values:
        check_labels(labels, scheme)
        check_finite(logits)
    rows = logits.shape[0] if global_rows is None else global_rows
    considered = rows if scope == "global" else len(logits)
    rejects = bool(scheme_of(scheme).rejects_by)
    count = rejection_count(rejection_rate, considered * logits.shape[1], rounding) if rejects else 0
    if threshold is None:
        ranked = logits if ranking is None else ranking
        rejected = select(ranked, labels, count, first_row=first_row, group=group if scope == "global" else None)
    else:
        rejected = exceeds(logits, labels, threshold)
    if scheme == "ignore":
        unobserved = labels == UNOBSERVED
        observed = (~unobserved).sum()
        if group is not None:
            all_reduce(observed, group)
        return mean_loss(logits, labels, observed.clamp(min=1), left_out=unobserved), rejected
    entries = rows * logits.shape[1]
    if count == 0 and threshold is None:
        return mean_loss(logits, labels, entries), rejected
    return corrected_bce(scheme, logits, labels, rejected, entries), rejected


def exceeds(logits: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Mark the unobserved entries whose assume-negative loss exceeds a threshold.

    Args:
        logits: [B, K].
        labels: int8 [B, K].
        threshold: the loss above which an entry is marked; above 0.

    Returns:
        [B, K] bool.
    """
    # the loss is softplus(logit), which underflows: compare the logit with the inverse of softplus at the threshold
    return (labels == UNOBSERVED) & (logits.detach() > math.log(math.expm1(threshold)))


def corrected_bce(scheme: str, logits: Tensor, labels: Tensor, rejected: Tensor, divisor: int) -> Tensor:
    """Assume-negative loss in which `rejected` entries are left out or count as positive, as the scheme's record says.

    Args:
        scheme: the name of a scheme that rejects.
        logits: [B, K].
        labels: int8 [B, K].
        rejected: bool [B, K].
        divisor: what the sum over entries is divided by.

    Returns:
        Scalar.
    """
    if scheme_of(scheme).rejected_become == "left out":
        return mean_loss(logits, labels, divisor, left_out=rejected)
    return mean_loss(logits, labels, divisor, flipped=rejected)


def _check_arguments(logits: Tensor, labels: Tensor, scheme: str, rate: float | Fraction) -> None:
    known = [name for name, record in SCHEMES.items() if record.loss == BY_RATE]
    if scheme not in known:
        raise ValueError(f"scheme={scheme!r}: no such scheme; known: {', '.join(known)}")
    if logits.shape != labels.shape or logits.dim() != 2:
        raise ValueError(f"logits {list(logits.shape)} and labels {list(labels.shape)}: give both as [B, K]")
    if not 0 <= rate <= 1:
        raise ValueError(f"rejection_rate={float(rate):g}: a share of all entries, 0..1")


def check_labels(labels: Tensor, scheme: str) -> None:
    """Raise ValueError for labels outside the alphabet, or unobserved ones where the scheme needs all of them."""
    low, high = map(int, torch.aminmax(labels)) if labels.numel() else (NEGATIVE, POSITIVE)
    if not UNOBSERVED <= low <= high <= POSITIVE:
        raise ValueError(
            f"labels from {low} to {high}: use {POSITIVE} positive, {NEGATIVE} negative, {UNOBSERVED} unobserved"
        )
    if scheme_of(scheme).needs_truth and low == UNOBSERVED:
        raise ValueError(f"scheme={scheme!r} needs every entry observed; choose a partial-label scheme")


def check_finite(logits: Tensor) -> None:
    """Raise FloatingPointError, naming the rows, for logits that are not finite."""
    finite = finite_rows(logits)
    if not finite.all():
        rows = (~finite).nonzero().flatten().tolist()
        raise FloatingPointError(f"logits are not finite in rows {rows[:8]} of {len(logits)}")


def finite_rows(logits: Tensor) -> Tensor:
    """Bool [B]: whether all logits of a row are finite. Does not wait for the device."""
    logits = logits.detach()
    return (logits.amax(1) < torch.inf) & (logits.amin(1) > -torch.inf)  # both are False for NaN
