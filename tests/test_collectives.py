"""Collectives are counted for as long as they hold up this process, and do what they would do uncounted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from raypaml import collectives
from raypaml.collectives import CLOCK
from raypaml.runs.ranks import Ranks

CPU = torch.device("cpu")
SLOW = 0.2


@pytest.fixture
def alone() -> Iterator[Ranks]:
    """A group of this one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    CLOCK.take()
    yield Ranks.here(CPU)
    dist.destroy_process_group()


def test_what_a_collective_takes_is_counted_once(alone: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    reduce, gather = dist.all_reduce, dist.all_gather

    def slowly(call: Any) -> Any:
        return lambda *args, **kwargs: (time.sleep(SLOW), call(*args, **kwargs))

    monkeypatch.setattr(dist, "all_reduce", slowly(reduce))
    monkeypatch.setattr(dist, "all_gather", slowly(gather))
    began = time.monotonic()  # counted twice, it would be more than the time that passes
    assert alone.sum(torch.ones(3)).tolist() == [1.0] * 3
    assert SLOW < CLOCK.take() < time.monotonic() - began
    began = time.monotonic()
    assert alone.gather(torch.arange(3).numpy()).tolist() == [0, 1, 2]  # which also adds up the lengths
    assert 2 * SLOW < CLOCK.take() < time.monotonic() - began
    time.sleep(SLOW)
    assert CLOCK.take() == 0.0


def test_of_gradients_counts_what_the_backward_pass_waits_for_them(
    alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(group: Any, bucket: Any) -> Any:
        there, future = allreduce_hook(group, bucket), torch.futures.Future[Any]()
        threading.Timer(SLOW, lambda: future.set_result(there.wait())).start()
        return future

    model = nn.Linear(4, 2)
    inputs = torch.arange(12.0).view(3, 4)
    model(inputs).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    monkeypatch.setattr(collectives, "allreduce_hook", late)
    wrapped = alone.wrap(model)
    model.zero_grad()
    loss = wrapped(inputs).square().sum()
    CLOCK.take()
    began = time.monotonic()
    loss.backward()
    CLOCK.backward_ended(CPU)
    assert SLOW * 0.9 < CLOCK.take() < time.monotonic() - began
    CLOCK.backward_ended(CPU)  # no gradients were sent since
    assert CLOCK.take() == 0.0
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient)
