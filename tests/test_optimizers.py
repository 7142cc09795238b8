"""The optimizers beside their formulas in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from raypaml.model.backbones import build_backbone
from raypaml.model.cam import CamClassifier
from raypaml.settings import OptimConfig
from raypaml.training.optimizers import build_optimizer

Array = NDArray[np.float64]
LR, HEAD, STEPS = 0.01, 10.0, 4


def adam(weight: Array, gradients: Array, lr: float, decay: float, decoupled: bool) -> Array:
    """D. Kingma and J. Ba, 2015, algorithm 1; decoupled: I. Loshchilov and F. Hutter, 2019, algorithm 2."""
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    for number, gradient in enumerate(gradients, 1):
        given = gradient if decoupled else gradient + decay * weight
        weight = weight * (1 - lr * decay) if decoupled else weight
        first, second = 0.9 * first + 0.1 * given, 0.999 * second + 0.001 * given**2
        weight = weight - lr * first / (1 - 0.9**number) / (np.sqrt(second / (1 - 0.999**number)) + 1e-8)
    return weight


def sgd(weight: Array, gradients: Array, lr: float, decay: float, momentum: float) -> Array:
    """Momentum without dampening, as I. Sutskever et al., 2013, with the learning rate outside of it."""
    moment = np.zeros_like(weight)
    for gradient in gradients:
        moment = momentum * moment + gradient + decay * weight
        weight = weight - lr * moment
    return weight


RULES: dict[str, tuple[dict[str, Any], Any]] = {
    "adam": ({}, lambda *given: adam(*given, decoupled=False)),
    "adamw": ({}, lambda *given: adam(*given, decoupled=True)),
    "sgd": ({}, lambda *given: sgd(*given, momentum=0.9)),
    "sgd without momentum": ({"momentum": 0.0}, lambda *given: sgd(*given, momentum=0.0)),
}


@pytest.mark.parametrize("decay_biases", [True, False])
@pytest.mark.parametrize("name", RULES)
def test_each_optimizer_follows_its_formula(name: str, decay_biases: bool) -> None:
    settings, rule = RULES[name]
    torch.manual_seed(0)
    model = CamClassifier(build_backbone("small"), 3)
    for weights in model.parameters():
        torch.nn.init.normal_(weights)
    decay = {"weight_decay": 0.3, "decay_biases": decay_biases}
    config = OptimConfig(optimizer=name.split()[0], lr=LR, head_lr_mult=HEAD, **decay, **settings)  # type: ignore[arg-type]
    optimizer = build_optimizer(model, config)
    before = {key: value.detach().double().numpy().copy() for key, value in model.named_parameters()}
    gradients = {key: torch.randn(STEPS, *value.shape) for key, value in model.named_parameters()}
    for number in range(STEPS):
        for key, value in model.named_parameters():
            value.grad = gradients[key][number].clone()
        for group in optimizer.param_groups:
            group["lr"] = LR * group["lr_mult"]
        optimizer.step()
    for key, value in model.named_parameters():
        lr = LR * (HEAD if key.startswith("head") else 1)
        decayed = 0.3 if decay_biases or value.ndim > 1 else 0.0
        expected = rule(before[key], gradients[key].double().numpy(), lr, decayed)
        np.testing.assert_allclose(value.detach().numpy(), expected, rtol=2e-5, atol=2e-6, err_msg=key)


def test_weights_keep_the_order_that_checkpoints_of_earlier_versions_number_them_by() -> None:
    model = CamClassifier(build_backbone("small"), 3)
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.1))
    ordered = [weight for group in optimizer.param_groups for weight in group["params"]]
    assert all(one is other for one, other in zip(ordered, model.parameters(), strict=True))
