"""Binary cross-entropy of all entries and its gradient, computed together in one pass over logits and labels."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from raypaml.labels import NEGATIVE

_CHUNK_ENTRIES = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Entries computed together: on a CPU as many as stay in its cache, on a GPU usually all of them."""
FACTORS = 512
"""How many factors between 1 and 2 are multiplied before one logarithm is taken; float64 overflows from 1024 on."""


class FusedContext(FunctionCtx):
    """What a fused loss hands from its forward to its backward pass: the gradient, and the type of the logits."""

    kind: torch.dtype
    saved_tensors: tuple[Tensor, ...]


def mean_loss(
    logits: Tensor,
    labels: Tensor,
    divisor: int | Tensor,
    *,
    left_out: Tensor | None = None,
    flipped: Tensor | None = None,
) -> Tensor:
    """Sum over entries of -logsigmoid(logit) where the target is 1, -logsigmoid(-logit) where it is 0; over `divisor`.

    Targets are 1 for positive labels, else 0. Neither the targets nor the losses are built as a matrix; only the
    gradient is kept for the backward pass. Safe for any finite logit; without second derivatives.

    Args:
        logits: [B, K] of any float type; the loss is computed in float32 (float64 stays) and summed in float64.
        labels: int8 [B, K].
        divisor: what the sum is divided by.
        left_out: bool [B, K], the entries without loss and without gradient; None: none of them.
        flipped: bool [B, K], the entries whose target is 1 whatever their label; None: none of them.

    Returns:
        Scalar, float32 (float64 for float64 logits).
    """
    return _MeanLoss.apply(logits, labels, divisor, left_out, flipped)  # type: ignore[no-any-return]


class _MeanLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FusedContext,
        logits: Tensor,
        labels: Tensor,
        divisor: int | Tensor,
        left_out: Tensor | None,
        flipped: Tensor | None,
    ) -> Tensor:
        kind = torch.promote_types(logits.dtype, torch.float32)
        gradient = torch.empty_like(logits, dtype=kind)
        likelihoods = list[Tensor]()
        rows = max(1, _CHUNK_ENTRIES.get(logits.device.type, _CHUNK_ENTRIES["cuda"]) // max(1, logits.shape[1]))
        for start in range(0, len(logits), rows):
            part = slice(start, start + rows)
            sign = _signs(labels[part], None if flipped is None else flipped[part]).to(kind)
            margin = logits[part] * sign
            if left_out is not None:
                margin.masked_fill_(left_out[part], torch.inf)  # where logsigmoid and its slope are 0
            likelihood, kept = _log_likelihood(margin)
            likelihoods.append(likelihood)
            grad_likelihood = sign.div_(-divisor)  # its sign undoes that of the margin, logit x sign
            torch.ops.aten.log_sigmoid_backward(grad_likelihood, margin, kept, grad_input=gradient[part])
        ctx.save_for_backward(gradient)
        ctx.kind = logits.dtype
        if not likelihoods:
            return logits.new_zeros((), dtype=torch.float64).div(-divisor).to(kind)
        return (functools.reduce(torch.add, likelihoods) / -divisor).to(kind)  # added up in this order

    @staticmethod
    @once_differentiable
    def backward(ctx: FusedContext, grad_loss: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        if grad_loss.device.type != "cpu" or grad_loss != 1:  # on a GPU, reading it would wait for the device
            gradient = gradient * grad_loss
        return gradient.to(ctx.kind), None, None, None, None


def _log_likelihood(margin: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of logsigmoid(margin), as float64, and exp(-|margin|), from which `log_sigmoid_backward` takes the gradient.

    On a CPU exp and this gradient do not depend, to the last bit, on a value's position in memory; sigmoid does, for
    the values beyond the last full vector register are computed by other code.
    """
    if margin.device.type != "cpu":
        likelihood, kept = torch.ops.aten.log_sigmoid_forward(margin)
        return likelihood.sum(dtype=torch.float64), kept
    # logsigmoid(x) = min(x, 0) - log(1 + exp(-|x|)); a logarithm costs far more than a product: one for FACTORS entries
    kept = margin.abs().neg_().exp_()
    factors = kept.flatten().to(torch.float64, copy=True).add_(1)
    whole = len(factors) // FACTORS * FACTORS
    products = torch.cat([factors[:whole].view(FACTORS, whole // FACTORS).prod(0), factors[whole:]])
    return margin.clamp(max=0).sum().double() - products.log().sum(), kept


def _signs(labels: Tensor, flipped: Tensor | None) -> Tensor:
    """Float32 tensor: 1 where the target is 1, and -1 where it is 0."""
    targets = labels.clamp(min=NEGATIVE)
    if flipped is not None:
        targets |= flipped
    return torch.rsub(targets, -1.0, alpha=-2.0)  # 2 targets - 1, on a GPU in a single kernel
