"""The method on a CUDA device, against the CPU. Not part of `make test`: `python -m pytest -m gpu`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from raypaml.config import ModelConfig
from raypaml.data.batches import Reader
from raypaml.labels import UNOBSERVED
from raypaml.losses.large_loss import large_loss
from raypaml.losses.schemes import scheme_names
from raypaml.losses.selection import select
from raypaml.model import pooling
from raypaml.model.cam import pool_parts
from raypaml.model.pooling import pooled_map
from raypaml.recipes import recipe
from raypaml.runs.models import build_model
from raypaml.training.step import settle, train_step
from raypaml.training.worker import Worker, build_worker

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def gpu_worker(data: Path, **values: Any) -> Worker:
    short = {"epochs": 3, "warmup_epochs": 1, "delta_rel": 2.0, "reproducible": False, "precision": "float32"}
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


@pytest.mark.parametrize("scheme", [name for name in scheme_names() if name not in ("full", "csl")])
def test_no_step_waits(scheme: str, tiny_digits: Path) -> None:
    """Of every scheme; tests/test_waits.py says the same without a GPU, and of those that need more than this data."""
    worker = gpu_worker(tiny_digits, scheme=scheme, history=True, flip=True, ema=0.9, clip_gradient=1.0)
    worker.state.epoch = 2
    reader = reader_of(worker)
    train_step(worker, reader.batch(0, pin_memory=True))  # the first one builds what later ones use
    batch = reader.batch(1, pin_memory=True)
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
def test_the_compiled_step_learns(tiny_digits: Path) -> None:
    worker = gpu_worker(tiny_digits, compile=True)
    for _ in range(3):
        train_step(worker, reader_of(worker)[0])
    settle(worker)


def test_logits_that_are_not_finite_are_named_a_step_later(tiny_digits: Path) -> None:
    worker = gpu_worker(tiny_digits)
    reader = reader_of(worker)
    torch.nn.init.constant_(worker.model.head.bias, torch.inf)
    train_step(worker, reader[0])
    with pytest.raises(
        FloatingPointError, match=f"epoch 0, step 0: logits are not finite for 32 samples.*{reader[0].keys[0]}"
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
