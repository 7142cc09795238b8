"""The optimizer of a run, and what it keeps of every weight.

All three are torch's fused ones: one kernel walks over a weight, its gradient and its moments, and leaves all of them
as they are where `found_inf` says that the step is not finite.
"""

from __future__ import annotations

from typing import Any

import torch

from raypaml.model.cam import CamClassifier
from raypaml.settings import OptimConfig


def moments(optim: OptimConfig) -> int:
    """Values that the optimizer keeps of every weight: Adam's two, SGD's momentum if it has any."""
    return int(optim.momentum > 0) if optim.optimizer == "sgd" else 2


def build_optimizer(model: CamClassifier, optim: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of a model's weights.

    Each of its groups has `lr_mult`, by which it learns faster than the backbone. Biases and norms are groups of their
    own only where weight decay leaves them out, so that weights keep their numbers in checkpoints of earlier versions.
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
    """Give every weight that now learns a momentum of 0, after which SGD's first step is as if there were none.

    torch makes its own in that step, without values, and would keep these where the step turns out not to be finite.
    """
    for group in sgd.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and weight not in sgd.state:
                sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight, requires_grad=False)
