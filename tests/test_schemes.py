"""Every scheme's loss against its formula written down again in float64, and against itself on processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED
from raypaml.losses import fused_terms
from raypaml.losses.formulas import estimates_step
from raypaml.losses.schemes import SCHEMES, StepContext, check_schedule, read_settings, scheme_loss
from tests.conftest import run_distributed

K = 7
KNOWN: dict[str, Any] = {
    "csl": {"priors": torch.tensor([0.01, 0.3, 0.05, 0.0, 0.06, 0.04, 0.02], dtype=torch.float64)},
    "epr": {"expected": 2.5},
    "role": {"expected": 2.5},
    "em_apl": {
        "threshold": torch.tensor([-1.0, 0.0, -math.inf, 1.0, 2.0, -3.0, 0.5]),
        "soft": torch.tensor([0.1, 0.05, 0.0, 0.2, 0.3, 0.01, 0.15]),
    },
}
EPOCH = {"splc": 1, "gr": 3, "ll_r_abs": 2, "ll_ct_abs": 2, "ll_cp_abs": 2}
NEW = [name for name in SCHEMES if name not in ("full", "an", "ignore", "ll_r", "ll_ct", "ll_cp")]


def moment(scheme: str, rows: int, **values: Any) -> StepContext:
    known = dict(KNOWN.get(scheme, {}))
    if scheme == "role":
        known["estimates"] = estimates_of(rows)[values.get("first_row", 0) :][: values.pop("own", rows)]
    values.pop("own", None)
    return StepContext(epoch=EPOCH.get(scheme, 0), epochs=10, global_rows=rows, known=known, **values)


def estimates_of(rows: int) -> Tensor:
    return torch.randn((rows, K), generator=torch.Generator().manual_seed(3))


def draw(seed: int, rows: int = 5) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn((rows, K), generator=rng, dtype=torch.float64)
    labels = torch.randint(-3, 2, (rows, K), generator=rng).clamp(min=UNOBSERVED).to(torch.int8)
    return logits, labels


def value_and_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[float, Tensor]:
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.item(), gradient


# --- The formulas, written down again --------------------------------------------------------------------------------


def cases(labels: Tensor, positive: Tensor, negative: Tensor, unobserved: Tensor) -> Tensor:
    found = torch.zeros_like(positive)
    for label, terms in ((POSITIVE, positive), (NEGATIVE, negative), (UNOBSERVED, unobserved)):
        found = torch.where(labels == label, terms, found)
    return found.mean()


def focal_margin(x: Tensor, m: float = 1.0) -> Tensor:
    s = torch.sigmoid(x - m)
    return -((1 - s) ** 2) * torch.log(s)


def pasl(x: Tensor, y: Tensor, keep: Tensor | float = 1.0) -> Tensor:
    p = torch.sigmoid(x)
    return cases(y, -torch.log(p), -p * torch.log(1 - p), keep * -(p**4) * torch.log(1 - p))


def csl(x: Tensor, y: Tensor) -> Tensor:
    keep = torch.ones_like(x)
    keep[:, KNOWN["csl"]["priors"] > 0.05] = 0
    ranked = sorted((-float(x.detach()[b, k]), b, k) for b, k in (y == UNOBSERVED).nonzero().tolist())
    for _, b, k in ranked[: 1 * len(x)]:
        keep[b, k] = 0
    return pasl(x, y, keep)


def asl(x: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    q = torch.clamp(p - 0.05, min=0)
    return cases(y, -torch.log(p), -(q**4) * torch.log(1 - q), -(q**4) * torch.log(1 - q))


def penalty(p: Tensor) -> Tensor:
    return (p.sum(1).mean() - 2.5) ** 2 / K**2


def role(x: Tensor, y: Tensor) -> Tensor:
    p, e = torch.sigmoid(x), torch.sigmoid(estimates_of(len(x)).double())
    cross = (-e * torch.log(p) - (1 - e) * torch.log(1 - p)).mean()
    return (cases(y, -torch.log(p), -torch.log(1 - p), 0 * p) + cross + penalty(p)) / 2


def entropy(p: Tensor) -> Tensor:
    return -p * torch.log(p) - (1 - p) * torch.log(1 - p)


def em_apl(x: Tensor, y: Tensor) -> Tensor:
    p, soft = torch.sigmoid(x), KNOWN["em_apl"]["soft"].double()
    pseudo = 0.9 * (-soft * torch.log(p) - (1 - soft) * torch.log(1 - p))
    below = x.detach() < KNOWN["em_apl"]["threshold"]
    return cases(y, -torch.log(p), -torch.log(1 - p), torch.where(below, pseudo, -0.1 * entropy(p)))


def gr(x: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    w, mu, sigma = 2 * 3 / 10, 0.5 + 0.3 * 4 / 10, 2 - 1.5 * 4 / 10
    k, v = torch.sigmoid(w * p.detach() - 2), torch.exp(-((p.detach() - mu) ** 2) / 2 / sigma**2)
    return cases(y, -torch.log(p), -torch.log(1 - p), v * (k * (1 - p**0.01) / 0.01 + (1 - k) * p))


def hill(x: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    return cases(y, focal_margin(x), (1.5 - p) * p**2, (1.5 - p) * p**2)


def splc(x: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    negative = -(p**2) * torch.log(1 - p)
    return cases(y, focal_margin(x), negative, torch.where(p > 0.6, focal_margin(x, 0), negative))


def absolute(rejected: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        p = torch.sigmoid(x)
        costs = -torch.log(1 - p)
        return cases(y, -torch.log(p), costs, torch.where(costs > 1.5 - 2 * 0.1, rejected(p), costs))

    return loss


def positive(x: Tensor) -> Tensor:
    return -torch.log(torch.sigmoid(x))


def ls(x: Tensor, y: Tensor) -> Tensor:
    return cases(y, *(t * positive(x) + (1 - t) * positive(-x) for t in (0.9, 0.1, 0.1)))


FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "wan": lambda x, y: cases(y, positive(x), positive(-x), positive(-x) / 6),
    "ls": ls,
    "asl": asl,
    "pasl": pasl,
    "csl": csl,
    "epr": lambda x, y: cases(y, positive(x), positive(-x), 0 * x) + penalty(torch.sigmoid(x)),
    "role": role,
    "em": lambda x, y: cases(y, positive(x), positive(-x), -0.1 * entropy(torch.sigmoid(x))),
    "em_apl": em_apl,
    "gr": gr,
    "hill": hill,
    "splc": splc,
    "ll_r_abs": absolute(lambda p: 0 * p),
    "ll_ct_abs": absolute(lambda p: -torch.log(p)),
    "ll_cp_abs": absolute(lambda p: -torch.log(p)),
}
LIKELY = {"csl": {"likely": 1.0}}


def test_every_new_scheme_has_its_formula_here() -> None:
    assert sorted(FORMULAS) == sorted(NEW)


@pytest.mark.parametrize("scheme", NEW)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_value_and_gradient_are_those_of_the_formula(scheme: Any, seed: int, rows: int) -> None:
    logits, labels = draw(seed, rows)
    at = moment(scheme, rows, settings=LIKELY.get(scheme, {}))
    value, gradient = value_and_gradient(lambda x: scheme_loss(scheme, x, labels, at)[0], logits)
    expected, slope = value_and_gradient(lambda x: FORMULAS[scheme](x, labels), logits)
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-12)
    value, gradient = value_and_gradient(lambda x: scheme_loss(scheme, x, labels, at)[0], logits.float())
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(gradient.double(), slope, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("scheme", [name for name in NEW if name != "gr"])  # whose weights take no gradient
def test_gradients_are_those_of_finite_differences(scheme: Any) -> None:
    logits, labels = draw(11)
    at = moment(scheme, len(logits))
    assert torch.autograd.gradcheck(lambda x: scheme_loss(scheme, x, labels, at)[0], logits.requires_grad_())


@pytest.mark.parametrize("scheme", NEW)
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_every_finite_logit_has_a_finite_loss_and_gradient(scheme: Any, size: float) -> None:
    logits = torch.tensor([[-size, -20.0, -0.0, 0.0, 20.0, 88.0, size]]).repeat(3, 1)
    labels = torch.tensor([[UNOBSERVED], [POSITIVE], [NEGATIVE]], dtype=torch.int8).expand(3, K)
    for kind in (torch.float32, torch.bfloat16, torch.float64):
        value, gradient = value_and_gradient(
            lambda x: scheme_loss(scheme, x, labels, moment(scheme, 3))[0], logits.to(kind)
        )
        assert math.isfinite(value)
        assert gradient.isfinite().all()
        assert gradient.dtype == kind


@pytest.mark.parametrize("scheme", NEW)
def test_sweeps_of_any_length_give_the_same_bits(scheme: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = draw(2, 300)
    at = moment(scheme, 300)
    _, gradient = value_and_gradient(lambda x: scheme_loss(scheme, x, labels, at)[0], logits.float())
    monkeypatch.setattr(fused_terms, "SWEEP_ENTRIES", {"cpu": 320, "cuda": 320})
    _, swept = value_and_gradient(lambda x: scheme_loss(scheme, x, labels, at)[0], logits.float())
    assert torch.equal(gradient, swept)


def test_what_is_rejected_is_what_was_taken_for_positive() -> None:
    logits = torch.tensor([[3.0, 0.3, -1.0, 3.0, 3.0, 0.5, -9.0]])
    labels = torch.tensor([[-1, -1, -1, 1, 0, -1, -1]], dtype=torch.int8)
    found = {
        name: scheme_loss(name, logits, labels, moment(name, 1))[1][0].nonzero().flatten().tolist() for name in NEW
    }
    assert found.pop("splc") == [0, 5]  # p > 0.6: logit > 0.405
    assert found.pop("csl") == [0, 1, 2, 5, 6]
    for name in ("ll_r_abs", "ll_ct_abs", "ll_cp_abs"):
        assert found.pop(name) == [0]  # softplus(logit) > 1.3
    assert set(map(tuple, found.values())) == {()}


def test_nothing_is_flipped_or_rejected_in_the_warm_up() -> None:
    logits, labels = torch.full((2, K), 5.0), torch.full((2, K), UNOBSERVED, dtype=torch.int8)
    for name in ("splc", "ll_r_abs", "ll_cp_abs"):
        at = StepContext(epoch=1, epochs=10, warmup_epochs=2, global_rows=2)
        assert not scheme_loss(name, logits, labels, at)[1].any()  # type: ignore[arg-type]


# --- On processes ----------------------------------------------------------------------------------------------------


def losses_of_a_part(rank: int, world_size: int, cuts: list[int]) -> list[tuple[float, Any, Any]]:
    """Of every scheme: this part's loss, what was rejected, and the gradient."""
    group = torch.distributed.group.WORLD if world_size > 1 else None
    logits, labels = draw(5, cuts[-1])
    low, high = cuts[rank], cuts[rank + 1]
    found = []
    for scheme in NEW:
        part = logits[low:high].float().requires_grad_()
        at = moment(scheme, cuts[-1], own=high - low, first_row=low, group=group, settings=LIKELY.get(scheme, {}))
        loss, rejected = scheme_loss(scheme, part, labels[low:high], at)
        (gradient,) = torch.autograd.grad(loss, part)
        found.append((loss.item(), rejected.numpy(), gradient.numpy()))
    return found


@pytest.mark.parametrize("cuts", [[0, 3, 11], [0, 11, 11]])
def test_two_processes_find_the_loss_and_gradient_of_one_to_the_bit(cuts: list[int]) -> None:
    alone = losses_of_a_part(0, 1, [0, cuts[-1]])
    parts = run_distributed(losses_of_a_part, 2, cuts)
    for name, (loss, rejected, gradient), *ranks in zip(NEW, alone, *parts, strict=True):
        assert sum(rank[0] for rank in ranks) == pytest.approx(loss, rel=1e-5), name
        np.testing.assert_array_equal(np.concatenate([rank[1] for rank in ranks]), rejected, err_msg=name)
        np.testing.assert_array_equal(np.concatenate([rank[2] for rank in ranks]), gradient, err_msg=name)


# --- The estimates of ROLE -------------------------------------------------------------------------------------------


def test_estimates_step_is_the_gradient_of_their_half() -> None:
    logits, labels = draw(8)
    theta = estimates_of(len(logits)).double().requires_grad_()
    e, p = torch.sigmoid(theta), torch.sigmoid(logits)
    cross = (-p * torch.log(e) - (1 - p) * torch.log(1 - e)).mean()
    (slope,) = torch.autograd.grad(cases(labels, -torch.log(e), -torch.log(1 - e), 0 * e) + cross + penalty(e), theta)
    count = e.sum(1).mean().item()
    after = estimates_step(theta.detach(), logits, labels, step=0.3, expected=2.5, count=count)
    torch.testing.assert_close(after, theta.detach() - 0.3 * slope * theta.numel())


# --- Settings --------------------------------------------------------------------------------------------------------


def test_settings_are_read_and_used() -> None:
    assert read_settings("asl", "gamma_neg=2, clip=0") == {"gamma_neg": 2.0, "clip": 0.0}
    assert read_settings("an", "") == {}
    logits, labels = draw(1)
    p = torch.sigmoid(logits)
    found = scheme_loss(
        "asl", logits, labels, StepContext(global_rows=5, settings=read_settings("asl", "gamma_neg=2,clip=0"))
    )
    expected = cases(labels, -torch.log(p), -(p**2) * torch.log(1 - p), -(p**2) * torch.log(1 - p))
    assert found[0].item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("scheme", "text", "said"),
    [
        (
            "asl",
            "gama_neg=3",
            r"gama_neg: scheme asl has no such setting; did you mean gamma_neg\? It has: gamma",
        ),
        ("an", "clip=3", "clip: scheme an has no such setting; It has: none"),
        ("asl", "clip=much", "clip=much: not a number"),
        ("asl", "clip=1", "clip=1: at least 0 and below 1"),
        ("asl", "gamma_neg=0.5", "gamma_neg=0.5: 0, or from 1 on"),
        ("gr", "q2=0", "q2=0: must be above 0"),
        ("gr", "slope=nan", "slope=nan: a number between"),
    ],
)
def test_settings_that_cannot_be_are_refused(scheme: Any, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_settings(scheme, text)


def test_an_absolute_threshold_must_last() -> None:
    check_schedule("ll_r_abs", {}, 14)
    with pytest.raises(ValueError, match=r"threshold=1\.5 - 15 x delta_abs=0\.1 is .*every unobserved"):
        check_schedule("ll_r_abs", {}, 15)
