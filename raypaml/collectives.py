"""The collectives of torch.distributed that training uses, and a clock for the time that they take.

Training calls collectives through this module, so that each epoch can report their share of its time. Those that torch
starts itself, for SyncBatchNorm and for DDP's buffers, are not measured. With gloo the calling thread waits inside the
call, and wall-clock time is measured. With CUDA the call returns at once and the GPU's compute stream waits: events are
recorded on the stream before and after the call, and the time between them is read once both have passed, so that
reading it never waits. Gradients are reduced while the backward pass still computes, so that only the wait at its end
is measured, from the moment when the last bucket is sent.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

Timestamp = float | torch.cuda.Event
"""Seconds of `time.perf_counter`, or an event on the GPU's compute stream."""


class CollectiveClock:
    """Measures the seconds that this process, or its GPU, waits for collectives."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._spans = deque[tuple[torch.cuda.Event, torch.cuda.Event]]()
        self._bucket_sent: Timestamp | None = None

    @contextmanager
    def measuring(self, device: torch.device) -> Iterator[None]:
        """Measure the block, which calls a collective on tensors of this device."""
        began = _now(device)
        yield
        self._count(began, device)

    def bucket_sent(self, device: torch.device) -> None:
        """Note that a bucket of gradients is sent, during the backward pass."""
        self._bucket_sent = _now(device)

    def backward_ended(self, device: torch.device) -> None:
        """Note that the backward pass has ended, and so the reduction of gradients, if there was any."""
        if self._bucket_sent is not None:
            self._count(self._bucket_sent, device)
            self._bucket_sent = None

    def _count(self, began: Timestamp, device: torch.device) -> None:
        ended = _now(device)
        if isinstance(began, float) and isinstance(ended, float):
            self._seconds += ended - began
        elif isinstance(began, torch.cuda.Event) and isinstance(ended, torch.cuda.Event):
            self._spans.append((began, ended))

    def take(self) -> float:
        """The seconds since the last call; spans that the GPU's stream has not passed yet are left to the next call."""
        while self._spans and self._spans[0][1].query():
            began, ended = self._spans.popleft()
            self._seconds += began.elapsed_time(ended) / 1000
        seconds, self._seconds = self._seconds, 0.0
        return seconds


CLOCK = CollectiveClock()
"""The clock of this process."""


def _now(device: torch.device) -> Timestamp:
    if device.type != "cuda" or not torch.cuda.is_initialized():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def all_reduce(values: Tensor, group: dist.ProcessGroup, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
    """`torch.distributed.all_reduce`, in place, with its time measured."""
    with CLOCK.measuring(values.device):
        dist.all_reduce(values, op, group=group)


def all_gather(parts: list[Tensor], values: Tensor, group: dist.ProcessGroup) -> None:
    """`torch.distributed.all_gather` into `parts`, with its time measured."""
    with CLOCK.measuring(values.device):
        dist.all_gather(parts, values, group=group)


def broadcast(values: Tensor, group: dist.ProcessGroup) -> None:
    """Copy the values of rank 0 to every rank, in place, with the time measured."""
    with CLOCK.measuring(values.device):
        dist.broadcast(values, 0, group=group)


def measure_buckets(model: DistributedDataParallel, group: dist.ProcessGroup) -> None:
    """Measure the reduction of the model's gradients, which are averaged over the group as without this."""

    def hook(group, bucket):  # type: ignore[no-untyped-def]  # torch refuses annotations that are strings, as here
        CLOCK.bucket_sent(bucket.buffer().device)
        return allreduce_hook(group, bucket)

    model.register_comm_hook(group, hook)
