"""The mean over entries of any formula of an entry, and its gradient, in one sweep that keeps no matrix of losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

_SWEEP_ENTRIES = {"cpu": 1 << 14, "cuda": 1 << 24}
"""Entries swept together: on a CPU few enough for one thread, whose last bits then do not depend on where they lie."""
WHOLE = 64
"""A sweep's length is a multiple of this: what remains beyond a vector's end is computed otherwise, to the last bit."""
UNIT = 2.0**40
"""Probabilities are added up in integers of 1 / UNIT: the same sum in any order, on any number of workers."""

Term = Callable[..., Tensor]
"""(logits [n], labels [n], **entries [n] or numbers) -> losses [n]; float32, float64 for float64 logits."""


def mean_term(term: Term, logits: Tensor, labels: Tensor, divisor: int, known: Mapping[str, Any]) -> Tensor:
    """Sum over entries of `term`, over `divisor`.

    Args:
        term: the loss of an entry.
        logits: [B, K] of any float type; computed in float32 (float64 stays), and added up in float64.
        labels: int8 [B, K].
        known: what else the term takes: numbers, or tensors that broadcast to [B, K].

    Returns:
        Scalar, float32 (float64 for float64 logits). No second order.
    """
    return _MeanTerm.apply(logits, term, labels, divisor, known)  # type: ignore[no-any-return]


def probability_sum(logits: Tensor, dim: int | None = None) -> Tensor:
    """The sum of sigmoid(logits), in units of 1 / UNIT, int64: exact in any order."""
    units = (torch.sigmoid(logits.detach().double()) * UNIT).round().long()
    return units.sum() if dim is None else units.sum(dim)


class _MeanTerm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, term: Term, labels: Tensor, divisor: int, known: Mapping[str, Any]) -> Tensor:
        kind = torch.promote_types(logits.dtype, torch.float32)
        flat = {"logits": logits.detach().to(kind), "labels": labels}
        flat |= {name: value for name, value in known.items() if isinstance(value, Tensor)}
        flat = {name: value.expand(labels.shape).flatten() for name, value in flat.items()}
        numbers = {name: value for name, value in known.items() if not isinstance(value, Tensor)}
        gradient = torch.empty_like(flat["logits"])
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        size = _SWEEP_ENTRIES.get(logits.device.type, _SWEEP_ENTRIES["cuda"])
        for start in range(0, len(gradient), size):
            part = {name: value[start : start + size] for name, value in flat.items()}
            losses, slopes = _swept(term, part, numbers)
            total += losses.sum(dtype=torch.float64)
            gradient[start : start + size] = slopes
        ctx.save_for_backward((gradient / divisor).view_as(logits))
        ctx.kind = logits.dtype
        return (total / divisor).to(kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * by_loss).to(ctx.kind), None, None, None, None


def _swept(term: Term, part: dict[str, Tensor], numbers: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Losses and slopes of these entries."""
    count = len(part["labels"])
    part = {name: pad(value, (0, -count % WHOLE)) for name, value in part.items()}
    logits = part.pop("logits").requires_grad_()
    with torch.enable_grad():
        losses = term(logits, part.pop("labels"), **part, **numbers)
        (slopes,) = torch.autograd.grad(losses.sum(), logits)
    return losses.detach()[:count], slopes[:count]
