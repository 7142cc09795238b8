"""Collectives of torch.distributed, and how long they hold up this process.

Collectives of training go through this module, so that an epoch can say what share of it they took; those that torch
begins by itself, of SyncBatchNorm and of DDP for its buffers, are not counted. With gloo the calling thread waits
inside the call, and its time by the clock is counted. With CUDA the call returns at once and the GPU's stream of
computations waits: an event is recorded on the stream before and after, and their distance is read once both have
passed, so that reading it waits for nothing. Gradients travel while the backward pass computes; of them counts only
what the pass waits at its end, from the departure of the last bucket on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

Moment = float | torch.cuda.Event
"""Seconds of `time.perf_counter`, or a place in the GPU's stream of computations."""


class CollectiveClock:
    """The seconds that collectives held up this process, or its GPU."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._spans = deque[tuple[torch.cuda.Event, torch.cuda.Event]]()
        self._departure: Moment | None = None

    @contextmanager
    def holding(self, device: torch.device) -> Iterator[None]:
        """Count the block, a collective on tensors of this device."""
        began = _now(device)
        yield
        self._count(began, device)

    def depart(self, device: torch.device) -> None:
        """A bucket of gradients leaves during the backward pass."""
        self._departure = _now(device)

    def arrive(self, device: torch.device) -> None:
        """The backward pass has ended, and with it the gradients' way, if they went any."""
        if self._departure is not None:
            self._count(self._departure, device)
            self._departure = None

    def _count(self, began: Moment, device: torch.device) -> None:
        ended = _now(device)
        if isinstance(began, float) and isinstance(ended, float):
            self._seconds += ended - began
        elif isinstance(began, torch.cuda.Event) and isinstance(ended, torch.cuda.Event):
            self._spans.append((began, ended))

    def take(self) -> float:
        """Seconds since the last call; of a GPU only what its stream has passed, the rest comes with the next call."""
        while self._spans and self._spans[0][1].query():  # type: ignore[no-untyped-call]
            began, ended = self._spans.popleft()
            self._seconds += began.elapsed_time(ended) / 1000
        seconds, self._seconds = self._seconds, 0.0
        return seconds


CLOCK = CollectiveClock()
"""This process's own."""


def _now(device: torch.device) -> Moment:
    if device.type != "cuda" or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def all_reduce(values: Tensor, group: dist.ProcessGroup, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
    """As `torch.distributed.all_reduce`, in place, and counted."""
    with CLOCK.holding(values.device):
        dist.all_reduce(values, op, group=group)


def all_gather(parts: list[Tensor], values: Tensor, group: dist.ProcessGroup) -> None:
    """As `torch.distributed.all_gather`, into `parts`, and counted."""
    with CLOCK.holding(values.device):
        dist.all_gather(parts, values, group=group)


def broadcast(values: Tensor, group: dist.ProcessGroup) -> None:
    """The values of rank 0 on every rank, in place, and counted."""
    with CLOCK.holding(values.device):
        dist.broadcast(values, 0, group=group)


def count_buckets(model: DistributedDataParallel, group: dist.ProcessGroup) -> None:
    """Note when the buckets of the model's gradients depart; they are averaged over the group as without this."""
    # without annotations, which torch wants as classes and not as the strings of this module
    model.register_comm_hook(group, lambda group, bucket: _departing(group, bucket))


def _departing(group: dist.ProcessGroup, bucket: Any) -> torch.futures.Future[Tensor]:
    CLOCK.depart(bucket.buffer().device)
    return allreduce_hook(group, bucket)
