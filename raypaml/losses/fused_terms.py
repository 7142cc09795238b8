"""The mean over entries of any formula of an entry, with its gradient, in one pass that keeps no matrix of losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from raypaml.losses.fused_bce import FusedContext

_CHUNK_ENTRIES = {"cpu": 1 << 14, "cuda": 1 << 24}
"""Entries computed together. On a CPU they are few enough for one thread: threads would split them at places that
depend on their number, and the last bits of a loss depend on these places."""
WHOLE = 64
"""Chunks are padded to a multiple of this length, because torch computes the values beyond the last full vector
register by other code, whose last bits differ."""
UNIT = 2.0**40
"""Probabilities are summed as integer multiples of 1 / UNIT: the sum is then the same in any order, for any number of
workers."""

Term = Callable[..., Tensor]
"""(logits [n], labels [n], **entries [n] or numbers) -> losses [n]; float32, float64 for float64 logits."""
Arguments = Mapping[str, Tensor | float]
"""What a term takes besides logits and labels, by name: numbers, or tensors that broadcast to [B, K]."""


def mean_term(term: Term, logits: Tensor, labels: Tensor, divisor: int, arguments: Arguments) -> Tensor:
    """Sum over entries of `term`, divided by `divisor`.

    Args:
        term: the loss of an entry.
        logits: [B, K] of any float type; the loss is computed in float32 (float64 stays) and summed in float64.
        labels: int8 [B, K].
        divisor: what the sum is divided by.
        arguments: what else the term takes.

    Returns:
        Scalar, float32 (float64 for float64 logits), without second derivatives.
    """
    return _MeanTerm.apply(logits, term, labels, divisor, arguments)  # type: ignore[no-any-return]


def probability_sum(logits: Tensor, dim: int | None = None) -> Tensor:
    """The sum of sigmoid(logits), int64 in units of 1 / UNIT: the same for any order of summation."""
    units = (torch.sigmoid(logits.detach().double()) * UNIT).round().long()
    return units.sum() if dim is None else units.sum(dim)


class _MeanTerm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FusedContext, logits: Tensor, term: Term, labels: Tensor, divisor: int, arguments: Arguments
    ) -> Tensor:
        kind = torch.promote_types(logits.dtype, torch.float32)
        flat = {"logits": logits.detach().to(kind), "labels": labels}
        flat |= {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
        flat = {name: value.expand(labels.shape).flatten() for name, value in flat.items()}
        numbers = {name: value for name, value in arguments.items() if not isinstance(value, Tensor)}
        gradient = torch.empty_like(flat["logits"])
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        size = _CHUNK_ENTRIES.get(logits.device.type, _CHUNK_ENTRIES["cuda"])
        for start in range(0, len(gradient), size):
            part = {name: value[start : start + size] for name, value in flat.items()}
            losses, gradient[start : start + size] = _losses_and_gradients(term, part, numbers)
            total += losses.sum(dtype=torch.float64)
        ctx.save_for_backward((gradient / divisor).view_as(logits))
        ctx.kind = logits.dtype
        return (total / divisor).to(kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: FusedContext, grad_loss: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_loss).to(ctx.kind), None, None, None, None


def _losses_and_gradients(term: Term, part: dict[str, Tensor], numbers: dict[str, float]) -> tuple[Tensor, Tensor]:
    """The losses [n] of these entries, and the gradient [n] of their sum by the logits."""
    count = len(part["labels"])
    part = {name: pad(value, (0, -count % WHOLE)) for name, value in part.items()}
    logits = part.pop("logits").requires_grad_()
    with torch.enable_grad():
        losses = term(logits, part.pop("labels"), **part, **numbers)
        (gradients,) = torch.autograd.grad(losses.sum(), logits)
    return losses.detach()[:count], gradients[:count]
