"""Which unobserved entries are rejected: exactly the k largest losses of the whole global batch, ties included."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from raypaml.collectives import all_gather
from raypaml.labels import UNOBSERVED

Rounding = Literal["up", "half_up"]
"""How the rate times all entries becomes a whole number: up as published, or half up as earlier versions did."""
FIRST_STRETCH = 1 << 14
"""Entries looked at first on a CPU, at least."""
_NEVER = torch.iinfo(torch.int64).max
_ENTRY = (1 << 32) - 1
"""The bits of a sort key that say which entry it is; those above hold its logit."""


def rejection_rate(progress_epochs: float | Fraction, delta_rel: float) -> Fraction:
    """The share of all entries to reject, a pure function of progress.

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
    """0.2 means two tenths, not the nearest binary float: k must not depend on the fifteenth decimal."""
    return number if isinstance(number, Fraction) else Fraction(Decimal(repr(float(number))))


def rejection_count(rate: float | Fraction, num_entries: int, rounding: Rounding = "up") -> int:
    """How many entries a rate rejects: rate x entries, rounded up once, in exact arithmetic.

    Published code takes the ceiling, too (both papers' `losses.py`), but of a rate that it adds up in floats: a product
    that is whole then often becomes one more. Here a whole product stays as it is.

    Args:
        rate: share of all entries, 0..1; a float means the decimal number that it prints as.
        num_entries: entries of the batch, B x K.
        rounding: half_up is the rule of earlier versions, for runs that were begun with it.
    """
    exact = _exact(rate) * num_entries
    return math.ceil(exact) if rounding == "up" else int(exact + Fraction(1, 2))


def select(
    logits: Tensor, labels: Tensor, count: int, *, first_row: int = 0, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Mark the `count` unobserved entries of the largest logits in the global batch.

    For an unobserved entry the assume-negative loss is softplus(logit), strictly increasing, so ranking by logit is
    ranking by loss, without the loss's underflow and its false ties. Real ties go to the smaller (row, class). Each
    rank offers its best as `count` keys of 8 bytes; that is all that travels, never the matrix. On a GPU nothing here
    waits for the device.

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
        last = _smallest(_gather(offered, count, group), count).max()
        offered = offered.masked_fill(offered > last, _NEVER)
    entries = (offered & _ENTRY).sub_(first).clamp_(max=logits.numel())
    rejected = torch.zeros(logits.numel() + 1, dtype=torch.bool, device=logits.device)  # one more, for _NEVER
    return rejected.index_fill_(0, entries, True)[:-1].view_as(labels)


def _best_at_once(logits: Tensor, labels: Tensor, count: int, first: int) -> Tensor:
    """Sort keys of the `count` best unobserved entries, _NEVER where there are fewer; waits for nothing."""
    keys = _sort_keys(logits, torch.arange(first, first + len(logits), device=logits.device))
    return _smallest(keys.masked_fill_(labels != UNOBSERVED, _NEVER), count)


def _best_streamed(logits: Tensor, labels: Tensor, count: int, first: int) -> Tensor:
    """The same for a CPU, in one pass: of the entries that follow, one must exceed the worst of the best so far.

    One that equals it does not: it has the larger (row, class). Each stretch is as long as all before it, so that few
    are needed, and each brings about `count` entries where logits come in no order.
    """
    values, known = logits.numpy(), labels.numpy()  # NumPy finds the few in a third of torch's time
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
    """[n] int64, all different: ascending means larger logit first, then smaller entry = row x K + class."""
    bits = (0.0 - logits).view(torch.int32)  # not -logits: -0.0 and 0.0 tie
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # a float's bits, reordered so that integers compare alike
    return torch.add(entries, ascending, alpha=1 << 32)  # the integer above the entry's 32 bits


def _smallest(keys: Tensor, count: int) -> Tensor:
    """The `count` smallest keys, or all."""
    return keys.topk(min(count, len(keys)), largest=False, sorted=False).values


def _gather(offered: Tensor, count: int, group: dist.ProcessGroup) -> Tensor:
    """What all ranks offer, each padded to the same length."""
    padded = torch.cat([offered, offered.new_full((count - len(offered),), _NEVER)])
    parts = [torch.empty_like(padded) for _ in range(dist.get_world_size(group))]
    all_gather(parts, padded, group)
    return torch.cat(parts)
