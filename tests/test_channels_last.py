"""Networks that lie channels last, as on a GPU: everything that belongs to a weight keeps its strides."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from raypaml.config import TrainConfig
from raypaml.data.batches import Reader
from raypaml.model.layout import laid_out_as
from raypaml.runs import models
from raypaml.runs.ranks import Ranks
from raypaml.settings import ModelConfig
from raypaml.training.resume import restore
from raypaml.training.step import train_step
from raypaml.training.worker import build_worker
from tests.conftest import newest_files, run_distributed
from tests.test_faults import train_poisoned
from tests.test_loop import config, train_here

CPU = torch.device("cpu")


def as_cuda_asks(optimizer: Optimizer, *_: Any) -> None:
    """What CUDA's fused optimizers check before a step: a weight, its gradient and its moments lie alike."""
    for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
        moments = [value for value in optimizer.state.get(weight, {}).values() if value.ndim]
        for other in [weight.grad, *moments]:
            assert other is None or other.stride() == weight.stride(), (weight.shape, other.stride(), weight.stride())


@contextmanager
def on_channels_last() -> Iterator[None]:
    """A network on the CPU lies as on a GPU, and the optimizer is as strict as there."""
    strict = register_optimizer_step_pre_hook(as_cuda_asks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "memory_format", lambda _: torch.channels_last)
        yield
    strict.remove()


@pytest.fixture
def channels_last() -> Iterator[None]:
    with on_channels_last():
        yield


def stop_at(rank: int, world_size: int, settings: TrainConfig, data: Path, run: Path, step: int) -> bool:
    with on_channels_last():
        return not train_here(rank, world_size, settings, data, run, step)


EVERY_STEP = {"checkpoint_steps": 1}
KINDS = [{}, {"reproducible": False, "ema": 0.9}, {"reproducible": False, "micro_batch_size": 5, "freeze_backbone": 1}]
KINDS += [{"optimizer": "sgd"}]


@pytest.mark.usefixtures("channels_last")
@pytest.mark.parametrize("values", KINDS, ids=str)
def test_a_stopped_run_continues_exactly(values: dict[str, Any], tiny_digits: Path, tmp_path: Path) -> None:
    settings = config(**EVERY_STEP, **values)
    assert train_here(0, 1, settings, tiny_digits, tmp_path / "whole", None)
    assert not train_here(0, 1, settings, tiny_digits, tmp_path / "stopped", 5)
    assert train_here(0, 1, settings, tiny_digits, tmp_path / "stopped", None)
    assert newest_files(tmp_path / "stopped") == newest_files(tmp_path / "whole")


@pytest.mark.usefixtures("channels_last")
def test_a_run_resized_or_rolled_back_continues_exactly(tiny_digits: Path, tmp_path: Path) -> None:
    settings = config(**EVERY_STEP, nonfinite="rollback")
    assert train_here(0, 1, settings, tiny_digits, tmp_path / "whole", None)
    assert run_distributed(stop_at, 2, settings, tiny_digits, tmp_path / "resized", 5) == [True, True]
    assert train_here(0, 1, settings, tiny_digits, tmp_path / "resized", None)
    assert train_poisoned(0, 1, settings, tiny_digits, tmp_path / "back", 1, "logits")
    for run in ("resized", "back"):
        assert newest_files(tmp_path / run) == newest_files(tmp_path / "whole")


@pytest.mark.usefixtures("channels_last")
def test_every_tensor_of_a_restored_worker_lies_as_before(tiny_digits: Path, tmp_path: Path) -> None:
    settings = config(ema=0.9, **EVERY_STEP)
    assert not train_here(0, 1, settings, tiny_digits, tmp_path, 1)
    worker = build_worker(settings, tiny_digits, tmp_path, CPU, lambda _: False)
    restore(worker)
    train_step(worker, Reader(worker.data.path, worker.data.splits["train"], worker.plan.epoch(0, 0, 1))[1])
    assert worker.average is not None
    for weight, averaged in zip(worker.model.parameters(), worker.average.parameters(), strict=True):
        own = worker.optimizer.state[weight]
        for other in (averaged, weight.grad, own["exp_avg"], own["exp_avg_sq"]):
            assert other.stride() == weight.stride()
    assert worker.model.backbone.block1[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def alone_in_a_group() -> Iterator[None]:
    """A process group of this process, in which torch repeats what it would say once."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)
    dist.destroy_process_group()


@pytest.mark.usefixtures("channels_last", "alone_in_a_group")
@pytest.mark.parametrize("backbone", ["small", "resnet18", "efficientnet_b0"])
def test_every_gradient_lies_as_its_weight(backbone: str) -> None:
    """Also by itself, before training lays it out: else DistributedDataParallel warns, and a warning is an error."""
    model = models.placed(models.build_model(ModelConfig(backbone=backbone, weights=""), 7), CPU)
    strides = [weight.stride() for weight in model.parameters()]
    average = copy.deepcopy(model)
    model.load_state_dict({name: value.contiguous() for name, value in model.state_dict().items()})
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    model(images).sum().backward()
    for tensors in (model.parameters(), average.parameters(), (weight.grad for weight in model.parameters())):
        assert [tensor.stride() for tensor in tensors if tensor is not None] == strides
    model.zero_grad(set_to_none=True)
    Ranks.here(CPU).wrap(model)(images).sum().backward()


def test_values_that_lie_right_already_are_not_copied() -> None:
    weight = torch.empty(5, 8, 1, 1).to(memory_format=torch.channels_last)
    depthwise = torch.empty(5, 1, 3, 3).to(memory_format=torch.channels_last)
    whole = torch.empty(5, 8, 3, 3).to(memory_format=torch.channels_last)
    for one in (weight, depthwise, whole):
        values: Tensor = torch.randn(one.shape)
        laid = laid_out_as(one, values)
        assert torch.equal(laid, values)
        assert laid.stride() == one.stride()
        assert (laid.data_ptr() == values.data_ptr()) == (one is not whole)
        assert laid_out_as(one, values.double()).dtype == one.dtype
