"""Binary cross-entropy of all entries and its gradient, found together in one sweep over logits and labels."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from raypaml.labels import NEGATIVE

_SWEEP_ENTRIES = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Entries swept together: on a CPU as many as stay in its cache, on a GPU about all of them."""
FACTORS = 512
"""Numbers from 1 to 2 whose product float64 holds with room to spare."""


def mean_loss(
    logits: Tensor,
    labels: Tensor,
    divisor: int | Tensor,
    *,
    left_out: Tensor | None = None,
    flipped: Tensor | None = None,
) -> Tensor:
    """Sum over entries of -logsigmoid(logit) where the target is 1, -logsigmoid(-logit) where it is 0; over `divisor`.

    Targets are 1 for positive labels, else 0, and are never built as a matrix, nor are the losses: what is kept for the
    backward pass is the gradient itself. Safe for any finite logit; no second order.

    Args:
        logits: [B, K] of any float type; computed in float32 (float64 stays), and added up in float64.
        labels: int8 [B, K].
        divisor: what the sum is divided by.
        left_out: bool [B, K] entries without loss and without gradient, or None.
        flipped: bool [B, K] entries of target 1 whatever their label, or None.

    Returns:
        Scalar, float32 (float64 for float64 logits).
    """
    return _MeanLoss.apply(logits, labels, divisor, left_out, flipped)  # type: ignore[no-any-return]


class _MeanLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        divisor: int | Tensor,
        left_out: Tensor | None,
        flipped: Tensor | None,
    ) -> Tensor:
        kind = torch.promote_types(logits.dtype, torch.float32)
        gradient = torch.empty_like(logits, dtype=kind)
        likelihoods = list[Tensor]()
        rows = max(1, _SWEEP_ENTRIES.get(logits.device.type, _SWEEP_ENTRIES["cuda"]) // max(1, logits.shape[1]))
        for start in range(0, len(logits), rows):
            part = slice(start, start + rows)
            sign = _signs(labels[part], None if flipped is None else flipped[part]).to(kind)
            margin = logits[part] * sign
            if left_out is not None:
                margin.masked_fill_(left_out[part], torch.inf)  # where logsigmoid and its slope are 0
            likelihood, kept = _log_likelihood(margin)
            likelihoods.append(likelihood)
            by_likelihood = sign.div_(-divisor)  # of the loss, by a log likelihood whose argument is logit x sign
            torch.ops.aten.log_sigmoid_backward(by_likelihood, margin, kept, grad_input=gradient[part])
        ctx.save_for_backward(gradient)
        ctx.kind = logits.dtype
        return (_total(likelihoods, logits.device) / -divisor).to(kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        if by_loss.device.type != "cpu" or by_loss != 1:  # on a GPU, looking would be waiting
            gradient = gradient * by_loss
        return gradient.to(ctx.kind), None, None, None, None


def _log_likelihood(margin: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of logsigmoid(margin), as float64, and exp(-|margin|), of which `log_sigmoid_backward` makes the slopes.

    Both slopes and exp are the same to the last bit wherever a value stands; sigmoid is not at the ends of vectors.
    """
    if margin.device.type != "cpu":
        likelihood, kept = torch.ops.aten.log_sigmoid_forward(margin)
        return likelihood.sum(dtype=torch.float64), kept
    # logsigmoid(x) = min(x, 0) - log(1 + exp(-|x|)); a logarithm costs far more than a product, so one for many entries
    kept = margin.abs().neg_().exp_()
    factors = kept.flatten().to(torch.float64, copy=True).add_(1)
    whole = len(factors) // FACTORS * FACTORS
    products = torch.cat([factors[:whole].view(FACTORS, whole // FACTORS).prod(0), factors[whole:]])
    return margin.clamp(max=0).sum().double() - products.log().sum(), kept


def _total(parts: list[Tensor], device: torch.device) -> Tensor:
    """The sum of float64 scalars, in this order; none where there is one."""
    if not parts:
        return torch.zeros((), dtype=torch.float64, device=device)
    return functools.reduce(torch.add, parts)


def _signs(labels: Tensor, flipped: Tensor | None) -> Tensor:
    """Float32: 1 where the target is 1, and -1 where it is 0."""
    targets = labels.clamp(min=NEGATIVE)
    if flipped is not None:
        targets |= flipped
    return torch.rsub(targets, -1.0, alpha=-2.0)  # 2 targets - 1 in one kernel, which a GPU feels
