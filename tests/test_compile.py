"""--compile: what is compiled, how often, and that it learns the same, also with several workers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from raypaml.training.step import train_step
from raypaml.training.worker import COMPILING, READING, enter_epoch
from tests.test_step import assert_same_step, config, learn, reader_of, worker_for

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own


@pytest.fixture
def alone_in_a_group() -> Iterator[None]:
    """A process group of this process, which then trains as one of several."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are found as ever, and then run as they are: no compiler takes its time."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


@pytest.mark.usefixtures("traced_only", "alone_in_a_group")
@pytest.mark.parametrize(
    ("values", "graphs"),
    [
        ({"micro_batch_size": 16}, 4),
        pytest.param({"micro_batch_size": 18}, 2, marks=pytest.mark.cluster),
        pytest.param({}, 1, marks=pytest.mark.cluster),
    ],
)
def test_nothing_is_compiled_after_the_first_step(values: dict[str, Any], graphs: int, tiny_digits: Path) -> None:
    """36 images are one micro batch, or 16 + 16 + 4, or 18 + 18; each size with and without gradients, where both."""
    counters.clear()
    worker = worker_for(config(reproducible=False, compile=True, global_batch_size=36, **values), tiny_digits)
    assert isinstance(worker.wrapped, DistributedDataParallel)
    compiled, doing = [], []
    for epoch in range(2):
        worker.state.epoch = epoch
        enter_epoch(worker)
        for batch in reader_of(worker, epoch):  # the third has 24 images
            worker.now(READING)
            train_step(worker, batch)
            compiled.append(counters["stats"]["unique_graphs"])
            doing.append(worker.doing)
    assert compiled == [graphs] * 6
    assert not counters["graph_break"]
    assert doing == [COMPILING] + [READING] * 5


@pytest.mark.usefixtures("traced_only")
def test_head_and_network_are_compiled_in_their_turn(tiny_digits: Path, tmp_path: Path) -> None:
    """A frozen backbone, then one that learns."""
    settings = config(reproducible=False, compile=True, freeze_backbone=1, feature_cache="off")
    worker = worker_for(settings, tiny_digits)
    for epoch in range(2):
        worker.state.epoch = epoch
        enter_epoch(worker)
        assert not worker.compiled
        train_step(worker, reader_of(worker, epoch)[0])
        assert worker.compiled
    assert all(weights.grad is not None for weights in worker.model.parameters())


def test_a_compiled_step_rejects_and_learns_the_same(tiny_digits: Path) -> None:
    plain = config(scheme="ll_cp", reproducible=False)
    assert_same_step([learn(plain.override({"compile": True}), tiny_digits)], learn(plain, tiny_digits))


@pytest.mark.cluster
@pytest.mark.usefixtures("alone_in_a_group")
def test_a_compiled_step_of_several_workers_learns_the_same(tiny_digits: Path) -> None:
    plain = config(scheme="ll_cp", reproducible=False, micro_batch_size=16)
    assert_same_step([learn(plain.override({"compile": True}), tiny_digits)], learn(plain, tiny_digits))
