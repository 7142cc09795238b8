"""The optimizer of a run.

All are torch's fused implementations: one kernel updates a weight and its moments from its gradient, and leaves all of
them unchanged where `found_inf` says that the step is not finite.
"""

from __future__ import annotations

from typing import Any

import torch

from raypaml.model.cam import CamClassifier
from raypaml.settings import OptimConfig


def moments(optim: OptimConfig) -> int:
    """Number of values that the optimizer keeps for every weight: Adam's two moments, or SGD's momentum, if any."""
    return int(optim.momentum > 0) if optim.optimizer == "sgd" else 2


def build_optimizer(model: CamClassifier, optim: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimizer of a model.

    Each parameter group has a key `lr_mult`, the multiple of the backbone's learning rate. Biases and norms form groups
    of their own only where weight decay leaves them out, so that weights keep their numbers in earlier checkpoints.
    """
    groups = _groups(model, optim)
    if optim.optimizer == "sgd":
        sgd = torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, fused=True)
        if optim.momentum:
            sgd.register_step_pre_hook(_begin_momentum)
        return sgd
    kind = torch.optim.AdamW if optim.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=optim.lr, fused=True)


def _groups(model: CamClassifier, optim: OptimConfig) -> list[dict[str, Any]]:
    spared = bool(optim.weight_decay) and not optim.decay_biases
    groups = list[dict[str, Any]]()
    for without in (False, True):
        for part, lr_mult in ((model.backbone, 1.0), (model.head, optim.head_lr_mult)):
            weights = [weight for weight in part.parameters() if (spared and weight.ndim <= 1) == without]
            decay = 0.0 if without else optim.weight_decay
            if weights:
                groups.append({"params": weights, "lr_mult": lr_mult, "weight_decay": decay})
    return groups


def _begin_momentum(sgd: torch.optim.Optimizer, *_: object) -> None:
    """Give every learning weight a momentum of 0, with which SGD's first step is the same as without momentum.

    torch allocates the momentum in the first step without initialising it; where that step turns out not to be finite,
    it would keep whatever values the memory had.
    """
    for group in sgd.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and weight not in sgd.state:
                sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight, requires_grad=False)
