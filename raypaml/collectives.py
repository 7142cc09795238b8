"""The collectives of torch.distributed, and how long this process waits for them.

Collectives of training go through this module, so that an epoch can report the share of its time that they took. Those
that torch starts by itself, for SyncBatchNorm and for DDP's buffers, are not counted. With gloo the calling thread
waits inside the call, and the time of the call is counted. With CUDA the call returns at once and the GPU's stream
waits: an event is recorded on the stream before and after, and the time between them is read once both have completed,
so that reading never waits. Gradients are reduced while the backward pass computes; of that only the wait at the end of
the pass is counted, from the moment at which the last bucket was ready.
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
"""Seconds of `time.perf_counter`, or an event recorded on the GPU's stream."""


class CollectiveClock:
    """Adds up the seconds that this process, or its GPU, waits for collectives."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._spans = deque[tuple[torch.cuda.Event, torch.cuda.Event]]()
        self._departure: Moment | None = None

    @contextmanager
    def holding(self, device: torch.device) -> Iterator[None]:
        """Count the time of the block, which is a collective on tensors of this device."""
        began = _now(device)
        yield
        self._count(began, device)

    def depart(self, device: torch.device) -> None:
        """Note that a bucket of gradients is ready to be reduced, during the backward pass."""
        self._departure = _now(device)

    def arrive(self, device: torch.device) -> None:
        """Count the wait for the last bucket, now that the backward pass has ended; nothing if there was no bucket."""
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
        """Returns the seconds since the last call; a collective that a GPU has not finished counts in a later call."""
        while self._spans and self._spans[0][1].query():  # type: ignore[no-untyped-call]
            began, ended = self._spans.popleft()
            self._seconds += began.elapsed_time(ended) / 1000
        seconds, self._seconds = self._seconds, 0.0
        return seconds


CLOCK = CollectiveClock()
"""The clock of this process."""


def _now(device: torch.device) -> Moment:
    if device.type != "cuda" or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def all_reduce(values: Tensor, group: dist.ProcessGroup, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
    """Does what `torch.distributed.all_reduce` does, in place, and counts its time."""
    with CLOCK.holding(values.device):
        dist.all_reduce(values, op, group=group)


def all_gather(parts: list[Tensor], values: Tensor, group: dist.ProcessGroup) -> None:
    """Does what `torch.distributed.all_gather` does, into `parts`, and counts its time."""
    with CLOCK.holding(values.device):
        dist.all_gather(parts, values, group=group)


def broadcast(values: Tensor, group: dist.ProcessGroup) -> None:
    """Replaces the values on every rank by those of rank 0, in place, and counts the time."""
    with CLOCK.holding(values.device):
        dist.broadcast(values, 0, group=group)


def count_buckets(model: DistributedDataParallel, group: dist.ProcessGroup) -> None:
    """Count the waits for the gradients of a DDP model, which are averaged over the group as before."""
    # without annotations, which torch wants as classes and not as the strings of this module
    model.register_comm_hook(group, lambda group, bucket: _departing(group, bucket))


def _departing(group: dist.ProcessGroup, bucket: Any) -> torch.futures.Future[Tensor]:
    CLOCK.depart(bucket.buffer().device)
    return allreduce_hook(group, bucket)
