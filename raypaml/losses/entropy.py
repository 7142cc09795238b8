"""Binary cross-entropy of all entries and its gradient, found together in one sweep over logits and labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from raypaml.labels import NEGATIVE

SWEEP_ENTRIES = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Entries swept together: on a CPU as many as stay in its cache, on a GPU about all of them."""


def sum_of_losses(
    logits: Tensor, labels: Tensor, *, left_out: Tensor | None = None, flipped: Tensor | None = None
) -> Tensor:
    """The sum over entries of -logsigmoid(logit) where the target is 1, and of -logsigmoid(-logit) where it is 0.

    Targets are 1 for positive labels, else 0, and are never built as a matrix, nor are the losses: what is kept for the
    backward pass is the gradient itself. Safe for any finite logit; no second order.

    Args:
        logits: [B, K] of any float type; computed in float32 (float64 stays), and added up in float64.
        labels: int8 [B, K].
        left_out: bool [B, K] entries without loss and without gradient, or None.
        flipped: bool [B, K] entries of target 1 whatever their label, or None.

    Returns:
        Scalar, float32 (float64 for float64 logits).
    """
    return _SumOfLosses.apply(logits, labels, left_out, flipped)  # type: ignore[no-any-return]


class _SumOfLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, left_out: Tensor | None, flipped: Tensor | None) -> Tensor:
        kind = torch.promote_types(logits.dtype, torch.float32)
        slope = torch.empty_like(logits, dtype=kind)  # of the likelihood by the logits
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        rows = max(1, SWEEP_ENTRIES.get(logits.device.type, SWEEP_ENTRIES["cuda"]) // max(1, logits.shape[1]))
        for start in range(0, len(logits), rows):
            part = slice(start, start + rows)
            sign = _signs(labels[part], None if flipped is None else flipped[part]).to(kind)
            margin = logits[part] * sign
            if left_out is not None:
                margin.masked_fill_(left_out[part], torch.inf)  # where logsigmoid and its slope are 0
            # these two give a value the same last bit wherever it stands; softplus and sigmoid do not at vectors' ends
            likelihood, kept = torch.ops.aten.log_sigmoid_forward(margin)
            total -= likelihood.sum()
            torch.ops.aten.log_sigmoid_backward(sign, margin, kept, grad_input=slope[part])
        ctx.save_for_backward(slope)
        ctx.kind = logits.dtype
        return total.to(kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_total: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return (slope * -by_total).to(ctx.kind), None, None, None


def _signs(labels: Tensor, flipped: Tensor | None) -> Tensor:
    """Int8: 1 where the target is 1, and -1 where it is 0."""
    targets = labels.clamp(min=NEGATIVE)
    if flipped is not None:
        targets |= flipped
    return targets.mul_(2).sub_(1)
