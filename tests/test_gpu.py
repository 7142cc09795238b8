"""The method on a CUDA device, against the CPU. Not part of `make test`: `make gpu-check`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from raypaml.data.batches import Batch, Reader
from raypaml.labels import UNOBSERVED
from raypaml.losses.large_loss import large_loss
from raypaml.losses.schemes import scheme_names
from raypaml.losses.selection import select
from raypaml.model import pooling
from raypaml.model.cam import pool_parts
from raypaml.model.pooling import pooled_map
from raypaml.recipes import recipe
from raypaml.runs.checkpoint import valid_checkpoints
from raypaml.runs.events import Event, StepReport
from raypaml.runs.models import build_model
from raypaml.settings import ModelConfig
from raypaml.training.loop import train
from raypaml.training.nonfinite import DivergedError
from raypaml.training.step import settle, train_step
from raypaml.training.worker import Worker, build_worker

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def gpu_worker(data: Path, **values: Any) -> Worker:
    short = {
        "epochs": 3,
        "warmup_epochs": 1,
        "delta_rel": 2.0,
        "reproducible": False,
        "precision": "float32",
        "matmul_precision": "highest",
    }
    return build_worker(
        recipe("digits").override(short | values), data, Path("nowhere"), torch.device("cuda"), lambda _: False
    )


@contextmanager
def waiting_for_nothing() -> Iterator[None]:
    """What makes the host wait for the GPU in the block is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that this is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def pinned(worker: Worker, step: int = 0) -> Batch:
    """A batch as training reads it on a GPU."""
    return reader_of(worker).batch(step, pin_memory=True)


def reader_of(worker: Worker) -> Reader:
    return Reader(worker.data.path, worker.data.splits["train"], worker.plan.epoch(worker.state.epoch, 0, 1))


@pytest.mark.parametrize("ties", [False, True])
def test_the_rejected_set_is_that_of_the_cpu(ties: bool) -> None:
    logits = 2 * torch.randn(64, 5000)
    logits = logits.round() if ties else logits
    labels = torch.randint(UNOBSERVED, 1, logits.shape).to(torch.int8)
    assert torch.equal(select(logits.cuda(), labels.cuda(), 6400).cpu(), select(logits, labels, 6400))


@pytest.mark.parametrize("scheme", ["an", "ignore", "ll_r", "ll_ct"])
def test_loss_and_gradient_are_those_of_the_cpu(scheme: str) -> None:
    logits, labels = 5 * torch.randn(32, 500), torch.randint(UNOBSERVED, 2, (32, 500)).to(torch.int8)
    found = []
    for device in ("cpu", "cuda"):
        values = logits.to(device).requires_grad_()
        loss, rejected = large_loss(values, labels.to(device), scheme, 0.01)
        found.append([tensor.cpu() for tensor in (loss.detach(), rejected, *torch.autograd.grad(loss, values))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)


def test_selection_and_loss_wait_for_nothing() -> None:
    logits = torch.randn(64, 500, device="cuda", requires_grad=True)
    labels = torch.full((64, 500), UNOBSERVED, dtype=torch.int8, device="cuda")
    with waiting_for_nothing():
        large_loss(logits, labels, "ll_r", 0.01, check_values=False)[0].backward()


@pytest.mark.parametrize("scheme", [name for name in scheme_names() if name not in ("full", "csl", "gpr")])
def test_no_step_waits(scheme: str, tiny_digits: Path) -> None:
    """tests/test_waits.py says the same without a GPU, also for schemes that need more than this data."""
    worker = gpu_worker(tiny_digits, scheme=scheme, history=True, flip=True, ema=0.9, clip_gradient=1.0)
    worker.state.epoch = 2
    reader = reader_of(worker)
    train_step(worker, reader.batch(0, pin_memory=True))  # the first one builds what later ones use
    batch = reader.batch(1, pin_memory=True)
    with waiting_for_nothing():
        train_step(worker, batch)
    settle(worker)


@pytest.mark.parametrize("values", [{"nonfinite": "skip", "skip_budget": 0.5}, {"nonfinite": "rollback"}], ids=str)
def test_no_step_waits_to_know_whether_it_is_finite(values: dict[str, Any], tiny_digits: Path) -> None:
    worker = gpu_worker(tiny_digits, scheme="ll_cp", history=True, ema=0.9, clip_gradient=1.0, **values)
    batches = [pinned(worker, number) for number in range(3)]
    train_step(worker, batches[0])
    with waiting_for_nothing():
        train_step(worker, batches[1])
    weights = [weight.detach().clone() for weight in worker.model.parameters()]
    with torch.no_grad():
        worker.model.head.bias[0] = torch.nan  # from here on nothing changes
    train_step(worker, batches[2])
    pairs = zip(weights, worker.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs if other is not worker.model.head.bias)
    if values["nonfinite"] == "skip":
        settle(worker)
        assert len(worker.skipped) == len(batches[2].rows)
    else:
        with pytest.raises(DivergedError, match="logits are not finite"):
            settle(worker)


@pytest.mark.parametrize("values", [{"precision": "auto"}, {"micro_batch_size": 8}], ids=str)
def test_no_step_waits_in_half_precision_or_parts(values: dict[str, Any], tiny_digits: Path) -> None:
    worker = gpu_worker(tiny_digits, **values)
    train_step(worker, pinned(worker))
    batch = pinned(worker, 1)
    with waiting_for_nothing():
        train_step(worker, batch)
    settle(worker)


@pytest.mark.parametrize("tile", [1, 1 << 26])
def test_the_head_is_right_in_float64_and_close_in_bfloat16(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pooling.TILE_VALUES, "cuda", tile)
    sizes = ((3, 64, 7, 5), (40, 64, 1, 1), (40,))
    tensors = [torch.randn(size, dtype=torch.float64, device="cuda").requires_grad_() for size in sizes]
    for one, other in zip(pooled_map(*tensors), pool_parts(F.conv2d(*tensors)), strict=True):
        torch.testing.assert_close(one, other)
        for found, wanted in zip(
            torch.autograd.grad(one.square().sum(), tensors, retain_graph=True),
            torch.autograd.grad(other.square().sum(), tensors, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(found, wanted)
    low = [tensor.detach().float().requires_grad_() for tensor in tensors]
    with torch.autocast("cuda", torch.bfloat16):
        positive, negative = pooled_map(*low)
    assert positive.dtype == torch.float32
    whole = pool_parts(F.conv2d(*tensors))
    torch.testing.assert_close(positive.double(), whole[0], rtol=0.02, atol=0.05)
    for found, wanted in zip(
        torch.autograd.grad((5 * positive + negative).sum(), low),
        torch.autograd.grad((5 * whole[0] + whole[1]).sum(), tensors),
        strict=True,
    ):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize(
    "values", [{}, {"precision": "auto"}, {"micro_batch_size": 5}, {"clip_gradient": 0.1, "ema": 0.9}]
)
def test_steps_learn(values: dict[str, Any], tiny_digits: Path) -> None:
    worker = gpu_worker(tiny_digits, **values)
    batch = reader_of(worker)[0]
    losses = []
    for _ in range(8):
        worker.tally.zero_()
        train_step(worker, batch)
        losses.append(worker.tally[0].item())
    settle(worker)
    assert losses[-1] < losses[0]


@pytest.mark.filterwarnings("ignore")  # torch's own
@pytest.mark.parametrize("values", [{}, {"micro_batch_size": 8}, {"precision": "auto", "ema": 0.9}], ids=str)
def test_the_compiled_step_learns_what_the_plain_one_does(values: dict[str, Any], tiny_digits: Path) -> None:
    losses = []
    for compiled in (False, True):
        worker = gpu_worker(tiny_digits, compile=compiled, **values)
        for step in range(3):
            train_step(worker, pinned(worker, step))
        settle(worker)
        losses.append(worker.tally[0].item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02 if "precision" in values else 1e-3)


def test_logits_that_are_not_finite_are_named_a_step_later(tiny_digits: Path) -> None:
    worker = gpu_worker(tiny_digits)
    reader = reader_of(worker)
    torch.nn.init.constant_(worker.model.head.bias, torch.inf)
    train_step(worker, reader[0])
    with pytest.raises(
        FloatingPointError, match=f"epoch 1, step 1: logits are not finite for 32 samples.*{reader[0].keys[0]}"
    ):
        settle(worker)


def test_synchronised_batch_norm_alone_is_batch_norm(tiny_digits: Path) -> None:
    found = []
    for synchronised in (False, True):
        worker = gpu_worker(tiny_digits, backbone="resnet18", sync_batchnorm=synchronised)
        train_step(worker, reader_of(worker)[0])
        settle(worker)
        found.append(worker.model.head.weight.grad.cpu())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-6)


def test_the_network_is_channels_last(tiny_digits: Path) -> None:
    worker = gpu_worker(tiny_digits)
    assert worker.model.backbone.block1[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert build_model(ModelConfig(), 3).backbone.block1[0].weight.is_contiguous()


def strides_agree(worker: Worker) -> bool:
    """Whether moments and the average lie as their weights do."""
    moments = worker.optimizer.state
    return all(
        moments[weight][name].stride() == weight.stride()
        for weight in worker.model.parameters()
        for name in ("exp_avg", "exp_avg_sq")
    ) and all(
        mine.stride() == weight.stride()
        for mine, weight in zip(worker.evaluated.parameters(), worker.model.parameters(), strict=True)
    )


def test_the_average_is_channels_last_and_that_of_the_cpu(tiny_digits: Path) -> None:
    worker = gpu_worker(tiny_digits, ema=0.5)
    wanted = [weight.detach().cpu().clone() for weight in worker.model.parameters()]
    for step in range(3):
        train_step(worker, pinned(worker))
        worker.state.step += 1
        for mine, weight in zip(wanted, worker.model.parameters(), strict=True):
            mine.lerp_(weight.detach().cpu(), 1 - min(0.5, (1 + step) / (10 + step)))
    settle(worker)
    assert strides_agree(worker)
    for mine, weight in zip(wanted, worker.evaluated.parameters(), strict=True):
        torch.testing.assert_close(weight.cpu(), mine, rtol=1e-5, atol=1e-7)


def trained(data: Path, run: Path, stop_at: tuple[int, int] | None = None, **values: Any) -> bool:
    """A digits run by training.loop on the GPU; whether it was finished, rather than stopped."""
    short = {"epochs": 2, "warmup_epochs": 1, "delta_rel": 2.0, "workers": 1, "checkpoint_steps": 1}

    def stop(event: Event) -> bool:
        return stop_at is not None and isinstance(event, StepReport) and (event.epoch, event.step) >= stop_at

    return train(recipe("digits").override(short | values), data, run, torch.device("cuda"), stop)


def files(run: Path) -> dict[str, dict[str, Any]]:
    newest = valid_checkpoints(run / "checkpoints")[0][-1]
    return {path.name: load_file(path) for path in sorted(newest.glob("*.safetensors"))}


@pytest.mark.parametrize(
    "values", [{"reproducible": True}, {"reproducible": True, "ema": 0.9}, {"reproducible": False, "ema": 0.9}], ids=str
)
def test_a_run_stopped_and_continued_is_the_undisturbed_one(
    values: dict[str, Any], tiny_digits: Path, tmp_path: Path
) -> None:
    """To the bit if reproducible; else kernels may add in any order, and the steps after the stop drift apart."""
    assert trained(tiny_digits, tmp_path / "whole", **values)
    assert not trained(tiny_digits, tmp_path / "parted", (1, 1), **values)
    assert trained(tiny_digits, tmp_path / "parted", **values)
    one, other = files(tmp_path / "whole"), files(tmp_path / "parted")
    assert one.keys() == other.keys()
    close = {"rtol": 0, "atol": 0} if values["reproducible"] else {"rtol": 0.05, "atol": 0.02}
    for name, tensors in one.items():
        if values["reproducible"] or name == "model.safetensors":
            torch.testing.assert_close(tensors, other[name], **close)


def test_reproducible_runs_are_equal_to_the_bit(tiny_digits: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        assert trained(tiny_digits, tmp_path / name, reproducible=True)
    torch.testing.assert_close(files(tmp_path / "one"), files(tmp_path / "other"), rtol=0, atol=0)
