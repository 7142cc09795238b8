"""What stands around a step: the weights' average, and buffers that several workers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raypaml.runs import ranks
from raypaml.runs.models import copy_buffers, update_average
from raypaml.training.step import train_step
from tests.conftest import run_distributed
from tests.test_step import config, reader_of, worker_for


def test_the_average_moves_to_the_bit_as_tensor_by_tensor() -> None:
    average, model = (nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)) for _ in range(2))
    model(torch.rand(2, 3, 8, 8))
    pairs = zip(average.parameters(), model.parameters(), strict=True)
    expected = [mine.detach().lerp(other, 1 - 1 / 10) for mine, other in pairs]
    update_average(average, model, 0.9, 0)
    copy_buffers(average, model)
    assert all(map(torch.equal, average.parameters(), expected))
    assert all(map(torch.equal, average.buffers(), model.buffers()))


def buffers_after(rank: int, world_size: int, data: Path, every_step: bool) -> list[Any]:
    """The statistics that this rank evaluates with after two steps on parts of its own."""
    with pytest.MonkeyPatch.context() as patch:
        if every_step:
            patch.setattr(ranks, "_reads_buffers", lambda _: True)
        worker = worker_for(config(backbone="resnet18", reproducible=False), data)
    assert worker.wrapped.broadcast_buffers == every_step
    for number in range(2):
        train_step(worker, reader_of(worker, 0)[number])
    worker.ranks.follow_first(worker.evaluated)
    return [buffer.numpy() for buffer in worker.evaluated.buffers()]


@pytest.mark.cluster
def test_statistics_given_out_before_evaluation_are_those_given_out_at_every_step(tiny_digits: Path) -> None:
    found = [rank for often in (False, True) for rank in run_distributed(buffers_after, 2, tiny_digits, often)]
    for buffers in zip(*found, strict=True):
        for other in buffers[1:]:
            np.testing.assert_array_equal(buffers[0], other)


class _Running(nn.Module):
    """It divides by a scale that it moves in training, as BatchNorm does not."""

    def __init__(self, persistent: bool):
        super().__init__()
        self.register_buffer("scale", torch.ones(3), persistent=persistent)


def test_buffers_are_given_out_at_every_step_where_training_may_read_them() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    assert not ranks._reads_buffers(plain)
    assert not ranks._reads_buffers(nn.Sequential(plain, _Running(persistent=False)))
    assert ranks._reads_buffers(nn.Sequential(plain, _Running(persistent=True)))
