"""Which unobserved entries are rejected: exactly the k largest losses of the whole global batch, ties included."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import torch
import torch.distributed as dist
from torch import Tensor

_NEVER = torch.iinfo(torch.int64).max


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
            f"delta_rel={delta_rel} percent per epoch at epoch {float(progress_epochs):g} asks to reject "
            f"{float(rate) * 100:g} % of all entries; keep delta_rel * epochs within 0..100"
        )
    return rate


def _exact(number: float | Fraction) -> Fraction:
    """0.2 means two tenths, not the nearest binary float: k must not depend on the fifteenth decimal."""
    return number if isinstance(number, Fraction) else Fraction(Decimal(repr(float(number))))


def rejection_count(rate: float | Fraction, num_entries: int) -> int:
    """K = rate x entries, rounded half up, in integers."""
    return int(_exact(rate) * num_entries + Fraction(1, 2))


def select(
    logits: Tensor, candidates: Tensor, count: int, *, first_row: int = 0, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Mark the `count` candidate entries of the largest logits in the global batch.

    For an unobserved entry the assume-negative loss is softplus(logit), strictly increasing, so ranking by logit is
    ranking by loss, without the loss's underflow and its false ties. Real ties go to the smaller (row, class). Each
    rank offers its `count` best, so at most `count` 8-byte keys per rank travel, never the matrix.

    Args:
        logits: [B, K] finite, of this rank's rows; compared in float32.
        candidates: [B, K] bool, the unobserved entries.
        count: entries to select over all ranks; fewer if there are fewer candidates.
        first_row: this rank's first row within the global batch.
        group: process group that shares the global batch; None for this process alone.

    Returns:
        [B, K] bool.
    """
    if count == 0:
        return torch.zeros_like(candidates)
    keys = torch.where(candidates, _sort_keys(logits, first_row), _NEVER)
    offered = _smallest(keys.flatten(), count)
    if group is not None:
        offered = _smallest(_gather(offered, group), count)
    return candidates & (keys <= offered.max())


def _sort_keys(logits: Tensor, first_row: int) -> Tensor:
    """[B, K] int64, all different: ascending means larger logit first, then smaller (row, class)."""
    bits = (logits.detach().float() + 0.0).view(torch.int32)  # + 0.0: -0.0 and 0.0 tie
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # a float's bits, reordered so that integers compare alike
    first = first_row * logits.shape[1]
    entry = torch.arange(first, first + logits.numel(), device=logits.device).view(logits.shape)
    return (~ascending).long() << 32 | entry


def _smallest(keys: Tensor, count: int) -> Tensor:
    """The `count` smallest keys, padded where there are fewer."""
    best = keys.topk(min(count, len(keys)), largest=False, sorted=False).values
    return torch.cat([best, best.new_full((count - len(best),), _NEVER)])


def _gather(offered: Tensor, group: dist.ProcessGroup) -> Tensor:
    parts = [torch.empty_like(offered) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, offered, group=group)
    return torch.cat(parts)
