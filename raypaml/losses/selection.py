"""Which unobserved entries are rejected: exactly the k of largest loss in the global batch; ties go by position."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from raypaml.collectives import all_gather, all_reduce
from raypaml.labels import UNOBSERVED

Rounding = Literal["up", "half_up"]
"""How the rate times all entries is rounded: up, as published, or half up, as earlier versions did."""
FIRST_STRETCH = 1 << 14
"""The least number of entries that the selection on a CPU ranks first."""
_NEVER = torch.iinfo(torch.int64).max
MOST_GATHERED = 1 << 18
"""The most keys that ranks gather (2 MB); where there are more, they add up histograms, which stay as large."""
_DIGIT_BITS = 16
_SIGN = torch.iinfo(torch.int64).min
_ENTRY = (1 << 32) - 1
"""The low bits of a sort key, which hold the entry's position; the high bits hold its logit."""


def rejection_rate(progress_epochs: float | Fraction, delta_rel: float) -> Fraction:
    """The share of all entries to reject, as a pure function of progress.

    Args:
        progress_epochs: epochs completed, from 0; a fraction for the continuous schedule.
        delta_rel: percent of all B x K entries added per epoch.

    Returns:
        `delta_rel / 100 * progress_epochs`, exact, within 0..1. (LL, CVPR 2022, section 4: R(t) takes the top
        (t - 1) * delta_rel percent with t from 1; the first epoch is therefore plain assume-negative.)
    """
    rate = _exact(delta_rel) / 100 * _exact(progress_epochs)
    if not 0 <= rate <= 1:
        raise ValueError(
            f"delta_rel={delta_rel} percent per epoch asks, after {float(progress_epochs):g} epochs, to reject "
            f"{float(rate) * 100:g} % of all entries; keep delta_rel * epochs within 0..100"
        )
    return rate


def _exact(number: float | Fraction) -> Fraction:
    """The decimal number that a float prints as: 0.2 means two tenths, so that k has no rounding error of floats."""
    return number if isinstance(number, Fraction) else Fraction(Decimal(repr(float(number))))


def rejection_count(rate: float | Fraction, num_entries: int, rounding: Rounding = "up") -> int:
    """How many entries a rate rejects: rate x entries, rounded up once, in exact arithmetic.

    The published code (`losses.py` of both papers) takes the ceiling too, but of a rate that it accumulates in floats,
    so that a whole product often becomes one more. Here a whole product stays as it is.

    Args:
        rate: share of all entries, 0..1; a float means the decimal number that it prints as.
        num_entries: entries of the batch, B x K.
        rounding: half_up is the rule of earlier versions, for runs that began with them.
    """
    exact = _exact(rate) * num_entries
    return math.ceil(exact) if rounding == "up" else int(exact + Fraction(1, 2))


def select(
    logits: Tensor, labels: Tensor, count: int, *, first_row: int = 0, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Mark the `count` unobserved entries of the largest logits in the global batch.

    For an unobserved entry the assume-negative loss is softplus(logit), which strictly increases, so that ranking by
    logit is ranking by loss, without the ties that arise where the loss underflows. Entries of equal logit are taken by
    (row, class), smallest first. The ranks gather `count` keys of 8 bytes from each or, where these are many, add up
    four histograms of 256 KB, and no matrix. On a GPU the host never waits for the device.

    Args:
        logits: [B, K] finite, of this rank's rows; compared in float32.
        labels: [B, K] int8.
        count: entries to select over all ranks; fewer if fewer are unobserved.
        first_row: this rank's first row within the global batch.
        group: process group that shares the global batch; None for this process alone.

    Returns:
        [B, K] bool.
    """
    if count == 0:
        return torch.zeros_like(labels, dtype=torch.bool)
    first = first_row * logits.shape[1]
    best = _best_streamed if logits.device.type == "cpu" else _best_at_once
    offered = best(logits.detach().flatten().float(), labels.flatten(), count, first)
    if group is not None:
        is_few = dist.get_world_size(group) * count <= MOST_GATHERED
        last = _smallest(_gather(offered, count, group), count).max() if is_few else _last(offered, count, group)
        offered = offered.masked_fill(offered > last, _NEVER)
    entries = (offered & _ENTRY).sub_(first).clamp_(max=logits.numel())
    rejected = torch.zeros(logits.numel() + 1, dtype=torch.bool, device=logits.device)  # the last is for _NEVER
    return rejected.index_fill_(0, entries, True)[:-1].view_as(labels)


def _best_at_once(logits: Tensor, labels: Tensor, count: int, first: int) -> Tensor:
    """Sort keys of the `count` best unobserved entries, _NEVER where there are fewer; never waits for the device."""
    keys = _sort_keys(logits, torch.arange(first, first + len(logits), device=logits.device))
    return _smallest(keys.masked_fill_(labels != UNOBSERVED, _NEVER), count)


def _best_streamed(logits: Tensor, labels: Tensor, count: int, first: int) -> Tensor:
    """As `_best_at_once`, for a CPU: later entries are compared only with the worst of the best so far.

    An entry that equals it is not taken, for its (row, class) is larger. Each stretch is as long as all before it, so
    that there are few, and each brings about `count` entries where the logits are in no order.
    """
    values, known = logits.numpy(), labels.numpy()  # NumPy needs a third of torch's time to find the few that exceed it
    best, worst = np.empty(0, np.int64), -np.inf
    start, end = 0, max(FIRST_STRETCH, 4 * count)
    while start < len(values):
        entries = np.flatnonzero(values[start:end] > worst) + start
        entries = entries[known[entries] == UNOBSERVED]
        fresh = _sort_keys(torch.from_numpy(values[entries]), torch.from_numpy(entries + first))
        best = np.concatenate([best, fresh.numpy()])
        if len(best) >= count:
            best = np.partition(best, count - 1)[:count]
            worst = values[(best[-1] & _ENTRY) - first]
        start, end = end, 2 * end
    return torch.from_numpy(best)


def _sort_keys(logits: Tensor, entries: Tensor) -> Tensor:
    """Different int64 keys [n] whose ascending order is: larger logit first, then smaller entry = row x K + class."""
    bits = (0.0 - logits).view(torch.int32)  # 0.0 - and not -: -0.0 and 0.0 tie
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # the float's bits, such that they compare as integers
    return torch.add(entries, ascending, alpha=1 << 32)  # the integer above the entry's 32 bits


def _smallest(keys: Tensor, count: int) -> Tensor:
    """The `count` smallest keys, or all where there are fewer."""
    return keys.topk(min(count, len(keys)), largest=False, sorted=False).values


def _gather(offered: Tensor, count: int, group: dist.ProcessGroup) -> Tensor:
    """The keys that all ranks offer, padded to the same length."""
    padded = torch.cat([offered, offered.new_full((count - len(offered),), _NEVER)])
    parts = [torch.empty_like(padded) for _ in range(dist.get_world_size(group))]
    all_gather(parts, padded, group)
    return torch.cat(parts)


def _last(offered: Tensor, count: int, group: dist.ProcessGroup) -> Tensor:
    """The largest of the `count` smallest keys that all ranks offer; _NEVER where there are fewer.

    A radix selection: the digits of that key are found from the highest to the lowest, each from a histogram of those
    keys that have the digits before it.
    """
    keys = offered ^ _SIGN  # such that their bits compare as unsigned integers
    matching = torch.ones_like(keys, dtype=torch.int32)
    left, last = keys.new_full((1,), count), keys.new_zeros(1)
    for shift in range(64 - _DIGIT_BITS, -1, -_DIGIT_BITS):
        digits = (keys >> shift) & ((1 << _DIGIT_BITS) - 1)
        histogram = matching.new_zeros(1 << _DIGIT_BITS).index_add_(0, digits, matching)
        all_reduce(histogram, group)
        seen = histogram.cumsum(0)
        digit = torch.searchsorted(seen, left).clamp_(max=len(seen) - 1)
        left = left - (seen - histogram).take(digit)
        matching = matching * (digits == digit)
        last = (last << _DIGIT_BITS) | digit
    return last ^ _SIGN
