"""Losses and gradients against those that the papers' own code gave: `fixtures/published_losses.json`.

The file holds what each published function returned for the same logits and labels, in float64, and from which
repository and commit it was; no code of theirs is here. What our form does otherwise is in the records' `differs`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raypaml.losses.formulas import estimates_step
from raypaml.losses.scheme_losses import StepContext, scheme_loss
from raypaml.losses.schemes import SCHEMES

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures" / "published_losses.json").read_text())
CASES: dict[str, dict[str, Any]] = {case["name"]: case for case in RECORDED["cases"]}
LOGITS = torch.tensor(RECORDED["logits"], dtype=torch.float64)
WITHOUT_CODE = {"full", "ignore", "ll_r_abs", "ll_ct_abs", "ll_cp_abs"}
"""Schemes that are torch's own cross-entropy, or of which only the paper is public."""


def labels_of(case: dict[str, Any]) -> Tensor:
    return torch.tensor(RECORDED["labels"][case["labels"]], dtype=torch.int8)


def known_of(case: dict[str, Any]) -> dict[str, Any]:
    known = case.get("known", {}).items()
    return {
        name: torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value for name, value in known
    }


def context_of(case: dict[str, Any]) -> StepContext:
    place = {name: case[name] for name in ("epoch", "epochs", "delta_rel") if name in case}
    return StepContext(global_rows=len(LOGITS), settings=case.get("settings", {}), known=known_of(case), **place)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_the_published_code(name: str) -> None:
    case = CASES[name]
    logits = LOGITS.clone().requires_grad_()
    loss, _ = scheme_loss(case["scheme"], logits, labels_of(case), context_of(case))
    (gradient,) = torch.autograd.grad(loss, logits)
    scale = LOGITS.numel() if case["reduction"] == "sum" else 1
    expected = torch.tensor(case["gradient"], dtype=torch.float64).view_as(LOGITS)
    torch.testing.assert_close(scale * gradient, expected, rtol=1e-7, atol=1e-13)  # LL has float32 targets
    if "loss" in case:
        assert scale * loss.item() == pytest.approx(case["loss"], rel=1e-7)


def test_estimates_learn_by_the_published_gradient() -> None:
    """Of both halves' mean over the entries, where a step here is one of an entry's cross-entropy."""
    case = CASES["role"]
    known = known_of(case)
    before = known["estimates"]
    learning = {"step": 0.7, "expected": known["expected"], "count": torch.sigmoid(before).sum(1).mean()}
    after = estimates_step(before, LOGITS, labels_of(case), epsilon=1e-5, **learning)
    slope = torch.tensor(case["estimates_gradient"], dtype=torch.float64).view_as(before)
    torch.testing.assert_close((before - after) / 0.7, 2 * LOGITS.numel() * slope, rtol=1e-9, atol=1e-12)


def test_every_scheme_with_public_code_is_recorded() -> None:
    missing = SCHEMES.keys() - WITHOUT_CODE - {case["scheme"] for case in CASES.values()}
    assert not missing, f"{missing}: record what its public code gives (values only), or name it in WITHOUT_CODE"
    assert all(len(case["commit"]) == 40 for case in CASES.values())
