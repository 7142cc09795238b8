"""A step that is not finite: it changes nothing, and is known by its own name one step later."""

from __future__ import annotations

import copy
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raypaml.runs.ranks import Ranks
from raypaml.runs.transfer import HostCopy
from raypaml.training import step
from raypaml.training.gradients import add_exactly
from raypaml.training.nonfinite import Buffers, DivergedError, DivergenceCheck, FiniteCheck, check_gradients
from raypaml.training.step import settle, train_step
from raypaml.training.worker import Worker
from tests.test_faults import train_poisoned
from tests.test_loop import config as whole_run
from tests.test_loop import undisturbed, weights  # noqa: F401
from tests.test_step import config, reader_of, worker_for

SKIPPING = {"nonfinite": "skip", "skip_budget": 0.5, "reproducible": False, "ema": 0.9, "clip_gradient": 1.0}


def held(worker: Worker) -> dict[str, Any]:
    """All that a step may change, as it is."""
    assert worker.average is not None
    return copy.deepcopy(
        {
            "model": worker.model.state_dict(),
            "average": worker.average.state_dict(),
            "optimizer": worker.optimizer.state_dict()["state"],
            "scheme": {**worker.scheme_state.tensors(), "fresh": getattr(worker.scheme_state, "_fresh", [])},
            "tally": worker.tally,
        }
    )


def poison(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """What is not finite from here on: images after the first layer, one logit, or a gradient."""
    forward, lay_out = step._forward, step.lay_out_gradients

    def bad_forward(worker: Worker, images: Tensor) -> Tensor:
        first = next(module for module in worker.model.modules() if isinstance(module, nn.BatchNorm2d))
        hook = first.register_forward_pre_hook(lambda _, given: (given[0] * torch.nan,))
        logits = forward(worker, images)
        hook.remove()
        return logits

    def bad_logit(worker: Worker, images: Tensor) -> Tensor:
        logits = forward(worker, images)
        return logits + torch.where(torch.arange(logits.numel()).view_as(logits) == 5, -torch.inf, 0.0)

    def bad_gradient(model: Any) -> None:
        lay_out(model)
        model.head.weight.grad[0] = torch.inf

    if where == "gradient":
        monkeypatch.setattr(step, "lay_out_gradients", bad_gradient)
    else:
        monkeypatch.setattr(step, "_forward", {"images": bad_forward, "logit": bad_logit}[where])


@pytest.mark.parametrize(
    ("where", "values", "said"),
    [
        ("images", {"backbone": "resnet18"}, "logits are not finite for 32 samples"),
        (
            "logit",
            {"scheme": "role", "micro_batch_size": 20},
            r"logits are not finite for 2 samples, such as \['train-\d+', 'train-\d+'\]",
        ),
        ("gradient", {"scheme": "ll_cp"}, "gradients are not finite"),
    ],
    ids=["images", "logit", "gradient"],
)
def test_a_skipped_step_changes_nothing(
    where: str, values: dict[str, Any], said: str, tiny_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_for(config(**SKIPPING, **values), tiny_digits)
    worker.state.epoch, events = 2, list[str]()
    worker.report = lambda event: bool(events.append(event.text))
    batches = [reader_of(worker, 2)[number] for number in range(3)]
    train_step(worker, batches[0])
    settle(worker)
    before = held(worker)
    with monkeypatch.context() as patch:
        poison(patch, where)
        worker.state.step = 1
        train_step(worker, batches[1])
    assert not events  # not looked at yet
    unchanged = held(worker)
    worker.state.step = 2
    train_step(worker, batches[2])
    assert [row for row, _ in worker.skipped] == batches[1].rows.tolist()
    torch.testing.assert_close(unchanged, before, rtol=0, atol=0, equal_nan=True)  # NaN: not yet seen
    (event,) = events
    assert re.fullmatch(f"rank 0, epoch 3, step 2: {said}.*; its 32 samples are skipped", event)
    settle(worker)
    assert worker.tally[1] == 64
    assert all(tensor.isfinite().all() for tensor in held(worker)["model"].values())


@pytest.mark.parametrize(("value", "finite"), [(1e30, True), (torch.inf, False), (torch.nan, False)])
def test_gradients_are_finite_whose_squares_are_not(value: float, finite: bool) -> None:
    model, rows = nn.Linear(3, 2), torch.ones(2, dtype=torch.bool)
    for parameter, entry in zip(model.parameters(), (value, 1.0), strict=True):
        parameter.grad = torch.full_like(parameter, entry)
    check = FiniteCheck(HostCopy.of(rows), ["a", "b"], "here")
    doubt = DivergenceCheck.about(check, rows, model, Ranks(0, 1, torch.device("cpu"), None), "0-0")
    with nullcontext() if finite else pytest.raises(DivergedError, match="here: gradients are not finite"):
        doubt.settle()
    with nullcontext() if finite else pytest.raises(FloatingPointError, match="here: gradients are not finite"):
        check_gradients(model, "here")


@pytest.mark.parametrize(("optimizer", "bad"), [("adam", 1), ("adamw", 1), ("sgd", 0), ("sgd", 1)])
def test_after_a_skipped_step_training_goes_on_as_without_it(
    optimizer: str, bad: int, tiny_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty, ends = torch.empty_like, []
    monkeypatch.setattr(torch, "empty_like", lambda *given, **how: empty(*given, **how).fill_(3))  # not 0, by chance
    for skips in (False, True):
        worker = worker_for(config(**SKIPPING, optimizer=optimizer, weight_decay=0.1), tiny_digits)
        worker.state.epoch = 2
        batches = [reader_of(worker, 2)[number] for number in range(3)]
        for number, batch in enumerate(batches):
            worker.state.step = number
            with monkeypatch.context() as patch:
                if number == bad:
                    poison(patch, "gradient")
                if number != bad or skips:
                    train_step(worker, batch)
        settle(worker)
        ends.append(held(worker))
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_rollback_names_the_step_and_saves_nothing_of_it(
    tiny_digits: Path,
    tmp_path: Path,
    undisturbed: Path,  # noqa: F811
) -> None:
    settings = whole_run(nonfinite="rollback", checkpoint_steps=1)
    said = train_poisoned(0, 1, settings, tiny_digits, tmp_path, 1, "logits")
    assert said[0].startswith("rank 0, epoch 2, step 2: logits are not finite for 8 samples")
    assert said[1] == "continues from epoch 2, step 2 with 1 worker"
    assert weights(tmp_path) == weights(undisturbed)


def test_exact_gradients_that_are_not_finite_are_nan_or_refused(
    tiny_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exploding(model: nn.Module, lanes: Any, ranks: Any) -> None:
        add_exactly(model, [(logits, gradient * torch.inf) for logits, gradient in lanes], ranks)

    monkeypatch.setattr(step, "add_exactly", exploding)
    stopping = worker_for(config(), tiny_digits)
    with pytest.raises(FloatingPointError, match="rank 0, epoch 1, step 1: gradients are not finite; lower lr"):
        train_step(stopping, reader_of(stopping, 0)[0])
    assert stopping.model.head.weight.grad.isnan().all()
    going_back = worker_for(config(nonfinite="rollback"), tiny_digits)
    train_step(going_back, reader_of(going_back, 0)[0])
    going_back.state.step = 1
    with pytest.raises(DivergedError, match="rank 0, epoch 1, step 1: gradients are not finite") as error:
        settle(going_back)
    assert error.value.place == "epoch 1, step 1"


def test_buffers_of_every_type_are_put_back_or_left() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(5))
    before = copy.deepcopy(model.state_dict())
    for diverged in (False, True):
        model.load_state_dict(before)
        buffers = Buffers(model)
        model[0](torch.full((2, 3, 1, 1), torch.nan))
        after = copy.deepcopy(model.state_dict())
        buffers.restore_where(torch.tensor(diverged))
        torch.testing.assert_close(model.state_dict(), before if diverged else after, rtol=0, atol=0, equal_nan=True)
