"""The learning rate of every step beside torch's own schedulers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
)

from raypaml.config import TrainConfig, lr_warmup_steps
from raypaml.data.data_folder import open_folder
from raypaml.recipes import recipe
from raypaml.settings import OptimConfig
from raypaml.training.estimate import estimate
from raypaml.training.job import prepare_job
from raypaml.training.learning_rates import follow_schedule, learning_rate
from tests.test_step import worker_for

EPOCHS, STEPS, LR = 5, 8, 0.3
TOTAL = EPOCHS * STEPS


def optimizers() -> list[torch.optim.Optimizer]:
    """Of every kind, its second group ten times as fast."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": LR * mult, "lr_mult": mult} for mult in (1.0, 10.0)]
    return [
        torch.optim.Adam([dict(group) for group in groups]),
        torch.optim.AdamW([dict(group) for group in groups]),
        torch.optim.SGD([dict(group) for group in groups], momentum=0.9),
    ]


def linear(optimizer: torch.optim.Optimizer, steps: int) -> LinearLR:
    return LinearLR(optimizer, 1 / steps, total_iters=steps - 1)


def warmed(after: Callable[[torch.optim.Optimizer], LRScheduler], steps: int) -> Callable[..., LRScheduler]:
    return lambda optimizer: SequentialLR(optimizer, [linear(optimizer, steps), after(optimizer)], [steps])


def one_cycle(share: float) -> Callable[..., LRScheduler]:
    rates = [LR, 10 * LR]
    return lambda optimizer: OneCycleLR(
        optimizer, max_lr=rates, epochs=EPOCHS, steps_per_epoch=STEPS, pct_start=share
    )  # as ASL's code, which has share 0.2


def level(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return LambdaLR(optimizer, lambda _: 1.0)


def cosine(steps: int) -> Callable[..., LRScheduler]:
    return lambda optimizer: CosineAnnealingLR(optimizer, steps)


def trapezoid(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / 100, 3 * (1 - done / TOTAL)))


SCHEDULES: dict[str, tuple[dict[str, Any], Callable[..., LRScheduler]]] = {
    "constant": ({}, level),
    "constant, 1 epoch": ({"lr_warmup": "1 epoch"}, warmed(level, STEPS)),
    "trapezoid": ({}, trapezoid),
    "cosine": ({}, cosine(TOTAL)),
    "cosine, 3 steps": ({"lr_warmup": "3 steps"}, warmed(cosine(TOTAL - 3), 3)),
    "cosine, 1.5 epochs": ({"lr_warmup": "1.5 epochs"}, warmed(cosine(TOTAL - 12), 12)),
    "cosine, 25%": ({"lr_warmup": "25%"}, warmed(cosine(TOTAL - 10), 10)),
    "one-cycle": ({}, one_cycle(0.2)),
    "one-cycle, 2 epochs": ({"lr_warmup": "2 epochs"}, one_cycle(0.4)),
    "one-cycle, 13 %": ({"lr_warmup": "13 %"}, one_cycle(0.13)),  # 5.2 steps
    "one-cycle, 0 steps": ({"lr_warmup": "0 steps"}, one_cycle(0.0)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_step_has_the_rates_and_momenta_of_torch(name: str) -> None:
    values, scheduler = SCHEDULES[name]
    optim = OptimConfig(lr=LR, epochs=EPOCHS, lr_schedule=name.split(",")[0], **values)  # type: ignore[arg-type]
    for ours, theirs in zip(optimizers(), optimizers(), strict=True):
        reference = scheduler(theirs)
        for done in range(TOTAL):
            follow_schedule(ours, optim, done, STEPS)
            for one, other in zip(ours.param_groups, theirs.param_groups, strict=True):
                assert one["lr"] == pytest.approx(other["lr"], rel=1e-9), (done, type(ours))
                for momentum in {"momentum", "betas"} & set(one):
                    assert one[momentum] == pytest.approx(other[momentum], rel=1e-9), (done, type(ours))
            theirs.step()
            if done < TOTAL - 1:
                reference.step()


def test_a_warm_up_of_all_steps_reaches_the_highest_rate_in_the_last() -> None:
    for schedule in ("constant", "cosine", "one-cycle"):
        optim = OptimConfig(epochs=EPOCHS, lr_schedule=schedule, lr_warmup="100%")  # type: ignore[arg-type]
        rates = [learning_rate(optim, done, STEPS) for done in range(TOTAL)]
        assert rates == sorted(rates)
        assert rates[-1] == 1


def test_defaults_are_those_of_the_help() -> None:
    schedules = {"constant": 0, "trapezoid": 100, "cosine": 0, "one-cycle": 0.2 * TOTAL}
    found = {name: lr_warmup_steps(OptimConfig(epochs=EPOCHS, lr_schedule=name), STEPS) for name in schedules}  # type: ignore[arg-type]
    assert found == schedules


def test_a_warm_up_that_is_longer_than_the_run_is_refused_and_a_default_one_is_cut(
    tiny_digits: Path, tmp_path: Path
) -> None:
    """The run has 54 steps, the trapezoid rises over 100."""
    plain: TrainConfig = recipe("digits").override({"data": str(tiny_digits)})
    estimate(plain, open_folder(tiny_digits))
    long = plain.override({"lr_warmup": "55 steps"})
    said = "lr_warmup='55 steps': longer than the run of 54 steps; give less"
    with pytest.raises(ValueError, match=said):
        estimate(long, open_folder(tiny_digits))
    with pytest.raises(ValueError, match=said):
        prepare_job(long.override({"storage": str(tmp_path)}), lambda _: None)  # before the run has a folder
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=said):
        worker_for(long, tiny_digits)
