"""Learning-rate schedules as pure functions of the number of steps done, so that checkpoints need not keep them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from raypaml.config import lr_warmup_steps
from raypaml.settings import OptimConfig

START, END = 1 / 25, 1 / 25e4
"""One-cycle's learning rate in its first and last step, as a share of its highest; torch's values."""
MOMENTUM_LOW, MOMENTUM_HIGH = 0.85, 0.95
"""One-cycle's momentum where the learning rate is highest and lowest; torch's values."""


def learning_rate(optim: OptimConfig, done: int, steps: int) -> float:
    """The learning rate of a step as a share of its highest, 0..1.

    Args:
        optim: the settings; `lr_schedule`, `lr_warmup` and `epochs` matter.
        done: the number of steps before this one, since training began.
        steps: the number of steps of an epoch.
    """
    total, warmup = optim.epochs * steps, lr_warmup_steps(optim, steps)
    if optim.lr_schedule == "one-cycle":
        share = _cycle(done, total, warmup)
        return _cosine(START, 1, share) if share <= 1 else _cosine(1, END, share - 1)
    rising = min(1.0, (done + 1) / warmup) if warmup else 1.0
    if optim.lr_schedule == "trapezoid":
        return min(rising, 3 * (1 - done / total))
    if optim.lr_schedule == "cosine" and done >= warmup:
        return _cosine(1, 0, (done - warmup) / (total - warmup))
    return rising


def follow_schedule(optimizer: torch.optim.Optimizer, optim: OptimConfig, done: int, steps: int) -> None:
    """Set an optimizer's learning rates for a step, and with one-cycle its momentum; arguments as `learning_rate`."""
    scale = learning_rate(optim, done, steps)
    for group in optimizer.param_groups:
        group["lr"] = optim.lr * group["lr_mult"] * scale
    if optim.lr_schedule == "one-cycle":
        share = _cycle(done, optim.epochs * steps, lr_warmup_steps(optim, steps))
        momentum = _cosine(MOMENTUM_HIGH, MOMENTUM_LOW, share)  # at 2 it is high again
        for group in optimizer.param_groups:
            group |= {"momentum": momentum} if "momentum" in group else {"betas": (momentum, group["betas"][1])}


class LearningRates(NamedTuple):
    """The learning rates of one step."""

    backbone: float
    head: float


def learning_rates(optimizer: torch.optim.Optimizer) -> LearningRates:
    """The learning rates of the last step; the head's parameter group comes second."""
    backbone, head = optimizer.param_groups[:2]
    return LearningRates(backbone["lr"], head["lr"])


def _cycle(done: int, total: int, warmup: float) -> float:
    """The position of a step in one-cycle: 0 at the first step, 1 at the highest learning rate, 2 at the last step."""
    highest = warmup - 1
    if done < highest:
        return done / highest
    return 1 + (done - highest) / (total - 1 - highest) if total - 1 > highest else 1.0


def _cosine(start: float, end: float, share: float) -> float:
    """Interpolate from start (share 0) to end (share 1) along half a cosine."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
