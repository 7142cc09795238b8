"""Every registered scheme's loss against its formula written down again in float64, and against itself on processes."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raypaml.config import TrainConfig
from raypaml.data.data_folder import open_folder
from raypaml.extensions import named_function
from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED
from raypaml.losses import formulas, fused_terms
from raypaml.losses.formulas import estimates_step
from raypaml.losses.otherwise import otherwise_table
from raypaml.losses.pseudo_label_losses import pseudo_labels_of
from raypaml.losses.scheme import Bounds, Scheme, Setting
from raypaml.losses.scheme_losses import StepContext, check_schedule, scheme_loss
from raypaml.losses.schemes import (
    SCHEMES,
    all_settings,
    help_text,
    markdown_table,
    published_table,
    read_settings,
    register_scheme,
    scheme_of,
)
from raypaml.losses.selection import rejection_count
from raypaml.runs.run_folder import claim
from raypaml.search.spaces import make_space
from raypaml.train import parse
from raypaml.training.state_builders import STATE_BUILDERS
from tests.conftest import run_distributed
from tests.test_loop import config, history, train_here

K = 7
KNOWN: dict[str, Any] = {
    "csl": {"priors": torch.tensor([0.01, 0.3, 0.05, 0.0, 0.06, 0.04, 0.02], dtype=torch.float64)},
    "epr": {"expected": 2.5},
    "role": {"expected": 2.5},
    "gpr": {"expected": 2.5},
    "em_apl": {
        "threshold": torch.tensor([-1.0, 0.0, -math.inf, 1.0, 2.0, -3.0, 0.5]),
        "soft": torch.tensor([0.1, 0.05, 0.0, 0.2, 0.3, 0.01, 0.15]),
    },
}
EPOCH = {"splc": 1, "gr": 3, "gpr": 3} | {name: 2 for name, scheme in SCHEMES.items() if scheme.rejects_by}
DELTA_REL = 8.0
ALL = list(SCHEMES)


def moment(scheme: str, rows: int, **values: Any) -> StepContext:
    known = dict(KNOWN.get(scheme, {}))
    if scheme == "role":
        known["estimates"] = estimates_of(rows)[values.get("first_row", 0) :][: values.pop("own", rows)]
    if scheme == "gpr":
        known["scores"] = scores_of(rows)[values.get("first_row", 0) :][: values.pop("own", rows)]
    values.pop("own", None)
    place = {"epoch": EPOCH.get(scheme, 0), "epochs": 10, "delta_rel": DELTA_REL}
    return StepContext(**place, global_rows=rows, known=known, **values)


def estimates_of(rows: int) -> Tensor:
    return torch.randn((rows, K), generator=torch.Generator().manual_seed(3))


def scores_of(rows: int) -> Tensor:
    """Pseudo labels, ties among them; a third of the entries have none."""
    scores = torch.randint(-4, 9, (rows, K), generator=torch.Generator().manual_seed(4)) / 8
    return torch.where(scores < 0, torch.nan, scores)


def as_needed(scheme: str, labels: Tensor) -> Tensor:
    """The labels, all of them observed where the scheme needs that."""
    return labels.clamp(min=NEGATIVE) if SCHEMES[scheme].needs_truth else labels


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


def held(x: Tensor, before: bool = False) -> Tensor:
    """The probability in a focusing weight: constant, and before `detach_focal` was a setting not."""
    return torch.sigmoid(x if before else x.detach())


def pasl(x: Tensor, y: Tensor, before: bool = False, keep: Tensor | float = 1.0) -> Tensor:
    p, q = torch.sigmoid(x), held(x, before)
    return cases(y, -torch.log(p), -q * torch.log(1 - p), keep * -(q**4) * torch.log(1 - p))


def csl(x: Tensor, y: Tensor, before: bool = False) -> Tensor:
    keep = torch.ones_like(x)
    keep[:, KNOWN["csl"]["priors"] > 0.05] = 0
    ranked = sorted((-float(x.detach()[b, k]), b, k) for b, k in (y == UNOBSERVED).nonzero().tolist())
    for _, b, k in ranked[: 1 * len(x)]:
        keep[b, k] = 0
    return pasl(x, y, before, keep)


def asl(x: Tensor, y: Tensor, before: bool = False) -> Tensor:
    p = torch.sigmoid(x)
    q, weight = torch.clamp(p - 0.05, min=0), torch.clamp(held(x, before) - 0.05, min=0) ** 4
    return cases(y, -torch.log(p), -weight * torch.log(1 - q), -weight * torch.log(1 - q))


def neg_log(p: Tensor, before: bool = False, epsilon: float = 1e-5) -> Tensor:
    """As the code of Cole et al. and Zhou et al. has it; before `epsilon` was a setting, without."""
    return -torch.log(p + (0 if before else epsilon))


def wan(x: Tensor, y: Tensor, before: bool = False) -> Tensor:
    negative = neg_log(1 - torch.sigmoid(x), before)
    return cases(y, neg_log(torch.sigmoid(x), before), negative, negative / 6)


def penalty(p: Tensor) -> Tensor:
    return (p.sum(1).mean() - 2.5) ** 2 / K**2


def epr(x: Tensor, y: Tensor, before: bool = False) -> Tensor:
    p = torch.sigmoid(x)
    return cases(y, neg_log(p, before), neg_log(1 - p, before), 0 * p) + penalty(p)


def role(x: Tensor, y: Tensor, before: bool = False) -> Tensor:
    p, e = torch.sigmoid(x), torch.sigmoid(estimates_of(len(x)).double())
    return (epr(x, y, before) + (e * neg_log(p, before) + (1 - e) * neg_log(1 - p, before)).mean()) / 2


def em(x: Tensor, y: Tensor, before: bool = False) -> Tensor:
    p = torch.sigmoid(x)
    entropy = p * neg_log(p, before) + (1 - p) * neg_log(1 - p, before)
    return cases(y, neg_log(p, before), neg_log(1 - p, before), -0.1 * entropy)


def em_apl(x: Tensor, y: Tensor, before: bool = False) -> Tensor:
    p, soft = torch.sigmoid(x), KNOWN["em_apl"]["soft"].double()
    pseudo = 0.9 * (soft * neg_log(p, before) + (1 - soft) * neg_log(1 - p, before))
    entropy = p * neg_log(p, before) + (1 - p) * neg_log(1 - p, before)
    below = x.detach() < KNOWN["em_apl"]["threshold"]
    unobserved = torch.where(below, pseudo, -0.1 * entropy)
    return cases(y, neg_log(p, before), neg_log(1 - p, before), unobserved)


def gr(x: Tensor, y: Tensor, before: bool = False) -> Tensor:
    p = torch.sigmoid(x)
    w, mu, sigma = 2 * 3 / 10, 0.5 + 0.3 * 4 / 10, 2 - 1.5 * 4 / 10
    k, v = torch.sigmoid(w * p.detach() - 2), torch.exp(-((p.detach() - mu) ** 2) / 2 / sigma**2)
    observed = (neg_log(q, before, 1e-7) for q in (p, 1 - p))
    return cases(y, *observed, v * (k * (1 - p**0.01) / 0.01 + (1 - k) * p))


def gpr(x: Tensor, y: Tensor) -> Tensor:
    p, scores = torch.sigmoid(x), scores_of(len(x)).tolist()
    costs, negative = (neg_log(q, False, 1e-7) for q in (p, 1 - p))
    w, b, mu, sigma = 10 * 3 / 10, -2 - 6 * 3 / 10, 0.5 + 0.3 * 4 / 10, 2 - 1.5 * 4 / 10
    k, v = torch.sigmoid(w * p.detach() + b), torch.exp(-((p.detach() - mu) ** 2) / 2 / sigma**2)
    losses = v * (k * (1 - p**0.01) / 0.01 + (1 - k) * p)
    for row, of_image in enumerate(scores):
        ranked = sorted((-score, j) for j, score in enumerate(of_image) if score >= 0)
        lowest = ranked[len(ranked) - len(ranked) // 4 :]
        for _, j in lowest:
            losses[row, j] = v[row, j] * negative[row, j]
        for score, j in ranked[:3]:
            if -score >= 0.5:
                weight = min(max(1 - v[row, j], 0.5), 0.7)
                losses[row, j] = weight * (0.9 * costs[row, j] + 0.1 * negative[row, j])
    return cases(y, costs, negative, losses) + 0.001 * penalty(p)


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


def by_rate(epochs: int, rejected: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        p, large = torch.sigmoid(x), torch.zeros_like(x, dtype=torch.bool)
        ranked = sorted((-float(x.detach()[b, k]), b, k) for b, k in (y == UNOBSERVED).nonzero().tolist())
        for _, b, k in ranked[: rejection_count(epochs * DELTA_REL / 100, x.numel())]:
            large[b, k] = True
        costs = -torch.log(1 - p)
        return cases(y, -torch.log(p), costs, torch.where(large, rejected(p), costs))

    return loss


def ignore(x: Tensor, y: Tensor) -> Tensor:
    observed = y != UNOBSERVED
    return cases(y, positive(x), positive(-x), 0 * x) * x.numel() / max(1, int(observed.sum()))


def positive(x: Tensor) -> Tensor:
    return -torch.log(torch.sigmoid(x))


def ls(x: Tensor, y: Tensor, before: bool = False) -> Tensor:
    p = torch.sigmoid(x)
    return cases(y, *(t * neg_log(p, before) + (1 - t) * neg_log(1 - p, before) for t in (0.9, 0.1, 0.1)))


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "full": lambda x, y: cases(y, positive(x), positive(-x), positive(-x)),
    "an": lambda x, y: cases(y, positive(x), positive(-x), positive(-x)),
    "ignore": ignore,
    "ll_r": by_rate(2, lambda p: 0 * p),
    "ll_ct": by_rate(2, lambda p: -torch.log(p)),
    "ll_cp": by_rate(1, lambda p: -torch.log(p)),
    "wan": wan,
    "ls": ls,
    "asl": asl,
    "pasl": pasl,
    "csl": csl,
    "epr": epr,
    "role": role,
    "em": em,
    "em_apl": em_apl,
    "gr": gr,
    "gpr": gpr,
    "hill": hill,
    "splc": splc,
    "ll_r_abs": absolute(lambda p: 0 * p),
    "ll_ct_abs": absolute(lambda p: -torch.log(p)),
    "ll_cp_abs": absolute(lambda p: -torch.log(p)),
}
LIKELY = {"csl": {"likely": 1.0}, "gpr": {"lowest": 0.25}}


@pytest.mark.parametrize("scheme", ALL)
def test_every_scheme_has_its_formula_here(scheme: str) -> None:
    assert scheme in FORMULAS, (
        f"{scheme}: write its formula down again, in float64, in FORMULAS of tests/test_schemes.py"
    )


@pytest.mark.parametrize("scheme", ALL)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_value_and_gradient_are_those_of_the_formula(scheme: Any, seed: int, rows: int) -> None:
    logits, labels = draw(seed, rows)
    labels = as_needed(scheme, labels)
    at = moment(scheme, rows, settings=LIKELY.get(scheme, {}))
    value, gradient = value_and_gradient(lambda x: scheme_loss(scheme, x, labels, at)[0], logits)
    expected, slope = value_and_gradient(lambda x: FORMULAS[scheme](x, labels), logits)
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-12)
    value, gradient = value_and_gradient(lambda x: scheme_loss(scheme, x, labels, at)[0], logits.float())
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(gradient.double(), slope, rtol=2e-4, atol=1e-6)


BEFORE = [
    name
    for name, scheme in SCHEMES.items()
    if any(scheme.defaults.get(each) != scheme.earlier_defaults.get(each) for each in ("detach_focal", "epsilon"))
]


@pytest.mark.parametrize("scheme", BEFORE)
def test_runs_begun_earlier_keep_value_and_gradient(scheme: str) -> None:
    logits, labels = draw(3)
    logits[1::2] -= 12 if scheme != "gr" else 16  # where epsilon decides
    settings = all_settings(scheme, "", "earlier") | LIKELY.get(scheme, {})
    at = moment(scheme, len(logits), settings=settings)
    value, gradient = value_and_gradient(lambda x: scheme_loss(scheme, x, labels, at)[0], logits)
    expected, slope = value_and_gradient(lambda x: FORMULAS[scheme](x, labels, before=True), logits)
    _, other = value_and_gradient(lambda x: FORMULAS[scheme](x, labels), logits)
    assert value == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-12)
    assert (gradient - other).abs().max() > 0.1 * slope.abs().max()


def test_asl_begun_earlier_has_the_same_last_bits() -> None:
    logits = (torch.randn(40, 50, generator=torch.Generator().manual_seed(1)) * 4).requires_grad_()
    shifted = (torch.sigmoid(logits) - 0.05).clamp(min=0)
    as_it_was = shifted**4 * -torch.log1p(-shifted)
    nothing = torch.full_like(logits, UNOBSERVED, dtype=torch.int8)
    now = formulas.asl(logits, nothing, **all_settings("asl", "", "earlier"))
    slopes = [torch.autograd.grad(losses.sum(), logits)[0] for losses in (as_it_was, now)]
    assert torch.equal(now, as_it_was)
    assert torch.equal(*slopes)


def test_a_run_begun_earlier_trains_as_it_began(tiny_digits: Path, tmp_path: Path) -> None:
    losses = {}
    stored = config(scheme="pasl", epochs=1, scheme_settings="detach_focal=0").to_dict()
    for name in ("detach_focal=0", "earlier"):
        if name == "earlier":
            stored["loss"]["scheme_settings"] = ""
            del stored["loss"]["scheme_defaults"]
        settings = TrainConfig.from_dict(stored)
        claim(tmp_path / name, settings, open_folder(tiny_digits))
        assert train_here(0, 1, settings, tiny_digits, tmp_path / name, None)
        losses[name] = [record["loss"] for record in history(tmp_path / name)]
    assert losses["earlier"] == losses["detach_focal=0"]
    assert all_settings("pasl", "", "published")["detach_focal"] == 1
    assert all_settings("csl", "gamma_neg=3", "earlier")["gamma_neg"] == 3
    assert (all_settings("ignore", "", "earlier"), all_settings("ignore", "", "published")) == (
        {"last_epoch": 1},
        {"last_epoch": 0},
    )


@pytest.mark.parametrize(
    "scheme", [name for name in ALL if name not in ("gr", "gpr")]
)  # whose weights take no gradient
def test_gradients_are_those_of_finite_differences(scheme: Any) -> None:
    logits, labels = draw(11)
    labels = as_needed(scheme, labels)
    at = moment(scheme, len(logits), settings={"detach_focal": 0.0} if scheme in ("asl", "pasl", "csl") else {})
    assert torch.autograd.gradcheck(lambda x: scheme_loss(scheme, x, labels, at)[0], logits.requires_grad_())


@pytest.mark.parametrize("scheme", ALL)
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


@pytest.mark.parametrize("scheme", ALL)
def test_sweeps_of_any_length_give_the_same_bits(scheme: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = draw(2, 300)
    at = moment(scheme, 300)
    _, gradient = value_and_gradient(lambda x: scheme_loss(scheme, x, labels, at)[0], logits.float())
    monkeypatch.setattr(fused_terms, "_CHUNK_ENTRIES", {"cpu": 320, "cuda": 320})
    _, swept = value_and_gradient(lambda x: scheme_loss(scheme, x, labels, at)[0], logits.float())
    assert torch.equal(gradient, swept)


def test_what_is_rejected_is_what_was_taken_for_positive() -> None:
    logits = torch.tensor([[3.0, 0.3, -1.0, 3.0, 3.0, 0.5, -9.0]])
    labels = torch.tensor([[-1, -1, -1, 1, 0, -1, -1]], dtype=torch.int8)
    found = {
        name: scheme_loss(name, logits, labels, moment(name, 1))[1][0].nonzero().flatten().tolist() for name in ALL
    }
    assert found.pop("splc") == [0, 5]  # p > 0.6: logit > 0.405
    assert found.pop("csl") == [0, 1, 2, 5, 6]
    likeliest = pseudo_labels_of(scores_of(1), 0.5, 3, 0.0)[0] == POSITIVE
    assert found.pop("gpr") == (likeliest & (labels[0] == UNOBSERVED)).nonzero().flatten().tolist() != []
    for name in ("ll_r", "ll_ct"):
        assert found.pop(name) == [0, 5]  # 16 % of 7 entries are 1.12
    for name in ("ll_cp", "ll_r_abs", "ll_ct_abs", "ll_cp_abs"):
        assert found.pop(name) == [0]  # 8 % of 7 entries are 0.56; softplus(logit) > 1.3
    assert set(map(tuple, found.values())) == {()}


def test_nothing_is_flipped_or_rejected_in_the_warm_up() -> None:
    logits, labels = torch.full((2, K), 5.0), torch.full((2, K), UNOBSERVED, dtype=torch.int8)
    for name in ("splc", *(name for name, scheme in SCHEMES.items() if scheme.plain_until_rejection)):
        at = StepContext(epoch=1, epochs=10, warmup_epochs=2, global_rows=2, delta_rel=50.0)
        loss, rejected = scheme_loss(name, logits, labels, at)
        assert not rejected.any()
        assert name == "splc" or loss == scheme_loss("an", logits, labels, at)[0]


# --- On processes ----------------------------------------------------------------------------------------------------


def losses_of_a_part(rank: int, world_size: int, cuts: list[int]) -> list[tuple[float, Any, Any]]:
    """Of every scheme: this part's loss, what was rejected, and the gradient."""
    group = torch.distributed.group.WORLD if world_size > 1 else None
    logits, labels = draw(5, cuts[-1])
    low, high = cuts[rank], cuts[rank + 1]
    found = []
    for scheme in ALL:
        part = logits[low:high].float().requires_grad_()
        at = moment(scheme, cuts[-1], own=high - low, first_row=low, group=group, settings=LIKELY.get(scheme, {}))
        loss, rejected = scheme_loss(scheme, part, as_needed(scheme, labels[low:high]), at)
        (gradient,) = torch.autograd.grad(loss, part)
        found.append((loss.item(), rejected.numpy(), gradient.numpy()))
    return found


@pytest.mark.parametrize("cuts", [[0, 3, 11], [0, 11, 11]])
def test_two_processes_find_the_loss_and_gradient_of_one_to_the_bit(cuts: list[int]) -> None:
    alone = losses_of_a_part(0, 1, [0, cuts[-1]])
    parts = run_distributed(losses_of_a_part, 2, cuts)
    for name, (loss, rejected, gradient), *ranks in zip(ALL, alone, *parts, strict=True):
        assert sum(rank[0] for rank in ranks) == pytest.approx(loss, rel=1e-5), name
        np.testing.assert_array_equal(np.concatenate([rank[1] for rank in ranks]), rejected, err_msg=name)
        np.testing.assert_array_equal(np.concatenate([rank[2] for rank in ranks]), gradient, err_msg=name)


# --- The estimates of ROLE -------------------------------------------------------------------------------------------


def test_estimates_step_is_the_gradient_of_their_half() -> None:
    logits, labels = draw(8)
    theta = estimates_of(len(logits)).double().requires_grad_()
    e, p = torch.sigmoid(theta), torch.sigmoid(logits)
    cross = (p * neg_log(e) + (1 - p) * neg_log(1 - e)).mean()
    (slope,) = torch.autograd.grad(cases(labels, neg_log(e), neg_log(1 - e), 0 * e) + cross + penalty(e), theta)
    count = e.sum(1).mean().item()
    after = estimates_step(theta.detach(), logits, labels, step=0.3, expected=2.5, count=count, epsilon=1e-5)
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
        ("an", "clip=3", "clip: scheme an has no such setting. It has: none"),
        ("asl", "clip=much", "clip=much: not a number"),
        ("asl", "clip=1", "clip=1: at least 0 and below 1"),
        ("asl", "gamma_neg=0.5", "gamma_neg=0.5: 0, or at least 1"),
        ("gr", "q2=0", "q2=0: must be above 0"),
        ("gr", "slope=nan", "slope=nan: a number between"),
        ("gpr", "lightest=0.8", "lightest=0.8: must be at most heaviest=0.7"),
    ],
)
def test_settings_that_cannot_be_are_refused(scheme: Any, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_settings(scheme, text)


def test_an_absolute_threshold_must_last() -> None:
    check_schedule("ll_r_abs", {}, 14)
    with pytest.raises(ValueError, match=r"threshold=1\.5 - 15 x delta_abs=0\.1 is .*every unobserved"):
        check_schedule("ll_r_abs", {}, 15)


# --- The records -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ALL)
def test_a_record_says_what_there_is(scheme: str) -> None:
    record, fields = SCHEMES[scheme], TrainConfig().flat()
    assert callable(named_function(record.loss))
    assert record.state in STATE_BUILDERS
    assert record.about.endswith(".")
    assert record.corrects <= (record.rejected_become == "positive")
    assert bool(record.rejects_by) <= bool(record.rejected_become)
    for published in record.published:
        assert published.values.keys() <= record.defaults.keys() | fields.keys()
    TrainConfig().override({"scheme": scheme, "delta_rel": 0.1}).check()


def test_records_and_checks_need_no_torch() -> None:
    code = "import sys, raypaml.config, raypaml.losses.schemes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("mark", "table"), [("schemes", markdown_table), ("published", published_table), ("otherwise", otherwise_table)]
)
def test_the_tables_of_the_readme_are_those_of_the_records(mark: str, table: Callable[[], str]) -> None:
    text = (Path(__file__).parent.parent / "raypaml" / "losses" / "README.md").read_text()
    written = text.partition(f"<!-- {mark} -->\n")[2].partition(f"<!-- /{mark} -->")[0]
    assert written == table(), "run python tools/scheme_tables.py"


# --- A scheme of one's own -------------------------------------------------------------------------------------------


def own_formula(logits: Tensor, labels: Tensor, *, gamma: float) -> Tensor:
    negative = torch.sigmoid(logits) ** gamma * torch.nn.functional.softplus(logits)
    return torch.where(labels == POSITIVE, torch.nn.functional.softplus(-logits), negative)


GAMMA = Setting("gamma", 0.5, "power of the focusing weight", Bounds(least=0.25, most=0.75, from_least=True))
OWN = Scheme(name="own", about="A loss of the tests.", loss=f"{__name__}:own_formula", settings=(GAMMA,))


@pytest.fixture
def own() -> Iterator[str]:
    register_scheme(OWN)
    yield OWN.name
    del SCHEMES[OWN.name]


def test_a_registered_scheme_trains(own: str, tiny_digits: Path, tmp_path: Path) -> None:
    settings = config(scheme=own, epochs=2, warmup_epochs=1)
    settings.check()
    claim(tmp_path, settings, open_folder(tiny_digits))
    assert train_here(0, 1, settings, tiny_digits, tmp_path, None)
    assert all(math.isfinite(record["loss"]) and not record["rejected"] for record in history(tmp_path))
    logits, labels = draw(4)
    expected = own_formula(logits, labels, gamma=0.5).mean()
    assert scheme_loss(own, logits, labels, StepContext(global_rows=5))[0].item() == pytest.approx(expected.item())


def test_a_registered_scheme_has_its_own_bounds(own: str) -> None:
    assert read_settings(own, "gamma=0.5") == {"gamma": 0.5}
    assert read_settings(own, "gamma=0.25") == {"gamma": 0.25}
    for value in ("0.75", "2", "0", "nan"):
        with pytest.raises(ValueError, match=rf"gamma={value}: at least 0\.25 and below 0\.75"):
            read_settings(own, f"gamma={value}")
    with pytest.raises(ValueError, match=r"gamma=0\.5: 0, or at least 1"):
        read_settings("hill", "gamma=0.5")
    with pytest.raises(ValueError, match=r"gamma=2: at least 0\.25"):
        TrainConfig().override({"scheme": own, "scheme_settings": "gamma=2"}).check()


def test_a_registered_scheme_can_be_asked_for(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["--scheme", own])[0].loss.scheme == own
    assert make_space(TrainConfig(), name="s", field="scheme", distribution="choice", values=[own]).values == (own,)
    with pytest.raises(SystemExit):
        parse(["--help"])
    help_of_all = capsys.readouterr().out
    assert "--scheme NAME" in help_of_all
    assert "  own        A loss of the tests. [gamma=0.5]\n" in help_of_all
    assert "| `own` | A loss of the tests. |" in markdown_table()


def test_help_is_readable_in_eighty_columns() -> None:
    with_sentences = [scheme.about for scheme in SCHEMES.values()]
    lines = help_text().splitlines()
    assert max(map(len, lines)) < 80
    assert all(sentence in " ".join(" ".join(lines).split()) for sentence in with_sentences)


def test_a_scheme_that_is_not_registered_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"scheme='hil': no such scheme; did you mean 'hill'\? Known: full, an"):
        scheme_of("hil")
    with pytest.raises(ValueError, match=r"scheme='own': must be one of full, an, .*, splc"):
        TrainConfig().override({"scheme": "own"}).check()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "hill"}, "scheme hill: there is one of this name already"),
        ({"loss": "own_formula"}, "loss='own_formula': give it as 'module:function'"),
        ({"settings": (GAMMA, GAMMA)}, "scheme own: a setting is given twice"),
        ({"settings": (dataclasses.replace(GAMMA, default=1.0),)}, "gamma=1: at least 0.25 and below 0.75"),
    ],
)
def test_records_that_cannot_be_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        register_scheme(dataclasses.replace(OWN, **change))


def test_a_loss_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"^raypaml\.losses\.formulas:hil: cannot be imported"):
        named_function("raypaml.losses.formulas:hil")


@pytest.mark.parametrize(("scheme", "name"), [("gpr", "top"), ("csl", "likely")])
def test_a_count_is_a_whole_number(scheme: str, name: str) -> None:
    for value in ("2.5", "-1", "inf", "nan"):
        with pytest.raises(ValueError, match=f"{name}={value}: a whole number, at least 0 and below 1000"):
            read_settings(scheme, f"{name}={value}")
    assert read_settings(scheme, f"{name}=2") == {name: 2.0}
