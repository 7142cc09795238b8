"""Collectives that work alike in a process group and in a single process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raypaml.collectives import all_gather, all_reduce, broadcast, measure_buckets


@dataclass(frozen=True)
class Ranks:
    """This process and the others of its process group, if it has one."""

    rank: int
    world_size: int
    device: torch.device
    group: dist.ProcessGroup | None
    """None for a single process."""

    @classmethod
    def here(cls, device: torch.device) -> Ranks:
        """The ranks of torch's default process group, or this process alone where none is initialised."""
        if not dist.is_initialized():
            return cls(0, 1, device, None)
        return cls(dist.get_rank(), dist.get_world_size(), device, dist.group.WORLD)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wrap a model to average gradients over the ranks, and to copy buffers that training reads from rank 0."""
        if self.group is None:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
        wrapped.broadcast_buffers = _reads_buffers(model)  # set after construction, which copies them once
        measure_buckets(wrapped, self.group)
        return wrapped

    def follow_first(self, model: nn.Module) -> None:
        """Copy the buffers of rank 0, which checkpoints hold, to every rank."""
        if self.group is not None:
            for buffer in model.buffers():
                broadcast(buffer, self.group)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, on every rank; on a GPU it may not be computed yet."""
        if self.group is not None:
            values = values.to(self.device, copy=True)
            all_reduce(values, self.group)
        return values

    def gather(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Concatenate the one-dimensional arrays of all ranks, of any lengths, in rank order, on every rank."""
        if self.group is None:
            return values
        mine = torch.from_numpy(np.ascontiguousarray(values)).to(self.device)
        sizes = self.sum(torch.eye(self.world_size, dtype=torch.int64)[self.rank] * len(mine)).tolist()
        padded = torch.nn.functional.pad(mine, (0, max(sizes) - len(mine)))
        parts = [torch.empty_like(padded) for _ in sizes]
        all_gather(parts, padded, self.group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).cpu().numpy()

    def barrier(self) -> None:
        """Wait for every rank, by reading a result: with NCCL the host does not wait for the collective itself."""
        self.sum(torch.zeros(1)).item()


def _reads_buffers(model: nn.Module) -> bool:
    """Whether training may read a buffer that it also changes.

    BatchNorm does not read its running statistics in training, index tables are integers, and buffers that are not kept
    in checkpoints are constant.
    """
    return any(
        buffer.is_floating_point() and name not in module._non_persistent_buffers_set
        for module in model.modules()
        if not isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, buffer in module.named_buffers(recurse=False)
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread in the block, because the number of threads may change the last bits of results."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def own_gpu(device: str) -> bool:
    """Whether this process is to compute on a GPU; ValueError where `device` is cuda and there is none."""
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ValueError("device=cuda: this machine has no GPU that torch can use; use --device cpu")
    return there and device != "cpu"
