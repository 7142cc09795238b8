"""One training step: what its options mean, alone and on gloo processes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raypaml.cluster.worker_errors import as_user_error
from raypaml.config import TrainConfig
from raypaml.data.batches import Reader
from raypaml.losses.scheme_losses import scheme_loss
from raypaml.recipes import recipe
from raypaml.runs.checkpoint import load_model, valid_checkpoints
from raypaml.runs.events import Event, StepReport
from raypaml.training import step
from raypaml.training.loop import train
from raypaml.training.step import settle, train_step
from raypaml.training.worker import Worker, build_worker
from tests.conftest import MEASURED, newest_files, run_distributed

CPU = torch.device("cpu")
REJECTING_EPOCH = 2


def config(**values: Any) -> TrainConfig:
    short = {"epochs": 3, "warmup_epochs": 1, "delta_rel": 2.0, "lr_schedule": "constant", "lr": 1e-3}
    return recipe("digits").override(short | values)


def worker_for(settings: TrainConfig, data: Path) -> Worker:
    torch.set_num_threads(1)
    return build_worker(settings, data, Path("nowhere"), CPU, lambda _: False)


def reader_of(worker: Worker, epoch: int) -> Reader:
    parts = worker.plan.epoch(epoch, worker.ranks.rank, worker.ranks.world_size)
    return Reader(worker.data.path, worker.data.splits["train"], parts)


Learned = tuple[dict[str, Tensor], Tensor]


def learn_together(world_size: int, settings: TrainConfig, data: Path, number: int = 0) -> list[Learned]:
    """`learn` on every rank."""
    found = run_distributed(learn_as_arrays, world_size, settings, data, number)
    return [({name: torch.from_numpy(g) for name, g in part.items()}, torch.from_numpy(r)) for part, r in found]


def learn_as_arrays(rank: int, world_size: int, *args: Any) -> Any:
    gradients, rejected = learn(*args)
    return {name: gradient.numpy() for name, gradient in gradients.items()}, rejected.numpy()


def learn(settings: TrainConfig, data: Path, number: int = 0) -> Learned:
    """The gradients and the rejected entries of a step, without an update."""
    worker = worker_for(settings, data)
    worker.state.epoch = REJECTING_EPOCH
    worker.optimizer.step = lambda: None
    seen: list[Tensor] = []
    worker.corrections.fresh.add = lambda _, rejected: seen.append(rejected.wait())  # scheme ll_cp
    train_step(worker, reader_of(worker, REJECTING_EPOCH)[number])
    return {name: weights.grad.clone() for name, weights in worker.model.named_parameters()}, torch.cat(seen)


def assert_same_step(found: list[Learned], expected: Learned) -> None:
    assert torch.equal(torch.cat([rejected for _, rejected in found]), expected[1])
    assert expected[1].any()
    for gradients, _ in found:
        for name, gradient in expected[0].items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)


# --- Many workers against one -----------------------------------------------------------------------------------------


def train_watched(rank: int, world_size: int, settings: TrainConfig, data: Path, run: Path) -> list[tuple[Any, ...]]:
    """Loss, rejected set and gradient by the logits of every step of a whole run."""
    seen: list[tuple[Any, ...]] = []

    def watched(scheme: Any, logits: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        loss, rejected = scheme_loss(scheme, logits, *args)
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        seen.append((loss.item(), rejected.numpy().copy(), gradient.numpy().copy()))
        return loss, rejected

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "scheme_loss", watched)
        train_here(settings, data, run)
    return seen


@pytest.mark.parametrize("scheme", ["ll_r", "ll_cp"])
def test_four_workers_reject_and_learn_as_one_over_a_whole_run(scheme: str, tiny_digits: Path, tmp_path: Path) -> None:
    settings = config(scheme=scheme, epochs=6, schedule="samples")
    alone = train_watched(0, 1, settings, tiny_digits, tmp_path / "one")
    together = run_distributed(train_watched, 4, settings, tiny_digits, tmp_path / "four")
    assert len(alone) == 6 * 3
    for number, (loss, rejected, gradient) in enumerate(alone):
        losses, parts, gradients = zip(*(ranks[number] for ranks in together), strict=True)
        np.testing.assert_array_equal(np.concatenate(parts), rejected, err_msg=str(number))
        assert sum(losses) == pytest.approx(loss, rel=1e-6)
        np.testing.assert_allclose(np.concatenate(gradients), gradient, rtol=1e-6, err_msg=str(number))
    counts = [int(rejected.sum()) for _, rejected, _ in alone]
    assert counts[:3] == [0, 0, 0]
    assert counts[-1] == (32 if scheme == "ll_cp" else 182)  # 2 %, and 2 % x (5 + 2 / 3) = 181.3, of 32 x 50


@pytest.mark.parametrize(("rounding", "count"), [("up", 1), ("half_up", 0)])
def test_a_run_rounds_as_its_configuration_says(rounding: str, count: int, tiny_digits: Path, tmp_path: Path) -> None:
    """0.03 % of 32 x 50 entries are 0.48."""
    settings = config(scheme="ll_cp", epochs=2, delta_rel=0.03, rejection_rounding=rounding)
    steps = train_watched(0, 1, settings, tiny_digits, tmp_path / "run")
    assert [int(rejected.sum()) for _, rejected, _ in steps] == [0, 0, 0, count, count, count]


# --- Accumulation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [1, 3, 16, 100])
def test_micro_batches_reject_and_learn_as_one_batch(micro: int, tiny_digits: Path) -> None:
    whole = config(scheme="ll_cp", reproducible=False)
    found = learn(whole.override({"micro_batch_size": micro}), tiny_digits)
    assert_same_step([found], learn(whole, tiny_digits))


@pytest.mark.parametrize("size", [32, 36])  # 36: the last batch has 24 images in 4 lanes
def test_micro_batches_of_two_workers_learn_as_one_batch_of_one(size: int, tiny_digits: Path) -> None:
    whole = config(scheme="ll_cp", reproducible=False, global_batch_size=size)
    accumulated = whole.override({"micro_batch_size": 5})
    found = learn_together(2, accumulated, tiny_digits, 2)
    assert_same_step(found, learn(whole, tiny_digits, 2))


def test_micro_batches_beside_an_empty_part(tiny_digits: Path) -> None:
    """48 images a batch leave none, 95 one image to the last: three of four workers have an empty part."""
    whole = config(scheme="ll_cp", reproducible=False, global_batch_size=95, lanes=5)
    found = learn_together(4, whole.override({"micro_batch_size": 7}), tiny_digits, 1)
    assert [len(rejected) for _, rejected in found].count(0) == 3
    assert_same_step(found, learn(whole, tiny_digits, 1))


@pytest.mark.parametrize("world_size", [1, 2])
def test_reproducible_micro_batches_give_the_same_bits(world_size: int, tiny_digits: Path) -> None:
    lanes = config(scheme="ll_cp", micro_batch_size=8)
    found = learn_together(world_size, lanes, tiny_digits)
    gradients, rejected = learn(config(scheme="ll_cp"), tiny_digits)
    assert torch.equal(torch.cat([part for _, part in found]), rejected)
    assert all(torch.equal(part[name], gradient) for part, _ in found for name, gradient in gradients.items())


def test_reproducible_lanes_are_not_cut(tiny_digits: Path) -> None:
    with pytest.raises(ValueError, match="micro_batch_size=7: reproducible computes whole lanes, here of 8 images"):
        worker_for(config(micro_batch_size=7), tiny_digits)


def test_the_first_pass_leaves_batch_norm_statistics_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2))
    images = torch.randn(3, 2, 4, 4)
    with step._without_gradients(model):
        first = model(images)
    assert model[0].running_mean.tolist() == [0, 0]
    assert model[0].momentum == 0.1
    second = model(images)
    assert torch.equal(first, second)
    assert second.requires_grad
    assert not first.requires_grad
    torch.testing.assert_close(model[0].running_mean, 0.1 * images.mean((0, 2, 3)))


# --- Clipping -------------------------------------------------------------------------------------------------------


def norm(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients.values()))


@pytest.mark.parametrize("values", [{}, {"reproducible": False}, {"reproducible": False, "micro_batch_size": 5}])
def test_the_whole_gradient_is_clipped(values: dict[str, Any], tiny_digits: Path) -> None:
    free, _ = learn(config(scheme="ll_cp", **values), tiny_digits)
    limit = norm(free) / 3
    clipped, _ = learn(config(scheme="ll_cp", clip_gradient=limit, **values), tiny_digits)
    assert norm(clipped) == pytest.approx(limit, rel=1e-4)
    for name, gradient in free.items():
        torch.testing.assert_close(clipped[name], gradient / 3, rtol=1e-3, atol=1e-9)
    within, _ = learn(config(scheme="ll_cp", clip_gradient=3 * norm(free), **values), tiny_digits)
    assert all(torch.allclose(within[name], gradient, rtol=1e-5, atol=0) for name, gradient in free.items())


def test_two_workers_clip_the_global_gradient(tiny_digits: Path) -> None:
    settings = config(scheme="ll_cp", reproducible=False, clip_gradient=0.01)
    found = learn_together(2, settings, tiny_digits)
    assert_same_step(found, learn(settings, tiny_digits))
    assert norm(found[0][0]) == pytest.approx(0.01, rel=1e-4)


# --- The weights' average -------------------------------------------------------------------------------------------


def test_the_average_follows_the_weights(tiny_digits: Path) -> None:
    worker = worker_for(config(ema=0.15), tiny_digits)
    name, weights = next(iter(worker.model.named_parameters()))
    expected = weights.detach().double().clone()
    for number in range(3):
        train_step(worker, reader_of(worker, 0)[number])
        worker.state.step += 1
        share = min(0.15, (1 + number) / (10 + number))
        expected = share * expected + (1 - share) * weights.detach().double()
    averaged = worker.evaluated.get_parameter(name)
    torch.testing.assert_close(averaged.double(), expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(averaged, weights)
    assert not averaged.requires_grad


def train_here(settings: TrainConfig, data: Path, run: Path, stop_at: int | None = None) -> bool:
    torch.set_num_threads(1)

    def report(event: Event) -> bool:
        return isinstance(event, StepReport) and stop_at is not None and event.steps_done >= stop_at

    return train(settings, data, run, CPU, report)


SGD = {"optimizer": "sgd", "weight_decay": 1e-3, "freeze_backbone": 1, "feature_cache": "off"}
CYCLE = {"optimizer": "adamw", "weight_decay": 0.01, "decay_biases": False, "lr_schedule": "one-cycle"}


@pytest.mark.parametrize(
    "values",
    [{"ema": 0.9}, {"schedule": "samples"}, {"clip_gradient": 0.05}, SGD, CYCLE],
    ids=str,
)
def test_a_stopped_run_continues_exactly(values: dict[str, Any], tiny_digits: Path, tmp_path: Path) -> None:
    settings = config(checkpoint_steps=1, **values)
    assert train_here(settings, tiny_digits, tmp_path / "whole")
    assert not train_here(settings, tiny_digits, tmp_path / "stopped", stop_at=4)
    assert not train_here(settings, tiny_digits, tmp_path / "stopped", stop_at=8)
    assert train_here(settings, tiny_digits, tmp_path / "stopped")
    assert newest_files(tmp_path / "stopped") == newest_files(tmp_path / "whole")
    history = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "stopped")]
    for one, other in zip(*([_figures(line) for line in lines] for lines in history), strict=True):
        assert one == other


def _figures(line: str) -> dict[str, Any]:
    return {name: value for name, value in json.loads(line).items() if name not in MEASURED}


def test_the_average_is_what_is_evaluated_and_kept(tiny_digits: Path, tmp_path: Path) -> None:
    assert train_here(config(ema=0.9), tiny_digits, tmp_path)
    newest = valid_checkpoints(tmp_path / "checkpoints")[0][-1]
    files = newest_files(tmp_path)
    assert set(files) == {"model.safetensors", "trained.safetensors", "optimizer.safetensors"}
    assert files["model.safetensors"] != files["trained.safetensors"]
    worker = worker_for(config(ema=0.9), tiny_digits)
    load_model(newest, worker.evaluated)
    assert worker.evaluated is worker.average


# --- Numbers that are not finite --------------------------------------------------------------------------------------


def test_samples_whose_logits_are_not_finite_are_named(tiny_digits: Path) -> None:
    worker = worker_for(config(), tiny_digits)
    batch = reader_of(worker, 0)[0]
    forward = worker.model.forward

    def spoilt(images: Tensor) -> Tensor:
        logits = forward(images)
        return torch.where(torch.arange(len(logits))[:, None] == 2, torch.nan, logits)

    worker.model.forward = spoilt
    with pytest.raises(FloatingPointError) as failure:
        train_step(worker, batch)
    keys = [batch.keys[row] for row in (2, 10, 18, 26)]  # one in each of four lanes
    assert str(failure.value) == f"rank 0, epoch 1, step 1: logits are not finite for 4 samples, such as {keys}"


def test_the_driver_says_the_rank_once() -> None:
    failures = {1: FloatingPointError("rank 1, epoch 1, step 4: logits are not finite"), 2: ValueError("other")}
    assert str(as_user_error(failures)) == "rank 1, epoch 1, step 4: logits are not finite"
    assert str(as_user_error({2: ValueError("other")})) == "rank 2: other"


# --- SyncBatchNorm ----------------------------------------------------------------------------------------------------


def test_batch_norm_is_synchronised_where_there_is_one(tiny_digits: Path) -> None:
    values = {"backbone": "resnet18", "reproducible": False, "sync_batchnorm": True}
    worker = worker_for(config(**values), tiny_digits)
    norms = [module for module in worker.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 20
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    train_step(worker, reader_of(worker, 0)[0])
    with pytest.raises(ValueError, match="sync_batchnorm: this backbone has no BatchNorm; use --no-sync-batchnorm"):
        worker_for(config(sync_batchnorm=True), tiny_digits)


def refused(rank: int, world_size: int, settings: TrainConfig, data: Path) -> str:
    with pytest.raises(ValueError, match="sync_batchnorm") as refusal:
        worker_for(settings, data)
    return str(refusal.value)


def test_batch_norm_of_several_workers_needs_gpus(tiny_digits: Path) -> None:
    settings = config(backbone="resnet18", reproducible=False, sync_batchnorm=True)
    said = "sync_batchnorm: torch synchronises BatchNorm on GPUs only; use one worker or GPUs"
    assert run_distributed(refused, 2, settings, tiny_digits) == [said, said]


def test_a_doubt_is_settled_once(tiny_digits: Path) -> None:
    worker = worker_for(config(), tiny_digits)
    train_step(worker, reader_of(worker, 0)[0])
    assert worker.finite_check is None
    settle(worker)
