"""The same calls alone and in a process group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raypaml.collectives import all_gather, all_reduce, count_buckets


@dataclass(frozen=True)
class Ranks:
    """This process and those it trains with."""

    rank: int
    world_size: int
    device: torch.device
    group: dist.ProcessGroup | None
    """None when alone."""

    @classmethod
    def here(cls, device: torch.device) -> Ranks:
        """The initialised default process group, or this process alone."""
        if not dist.is_initialized():
            return cls(0, 1, device, None)
        return cls(dist.get_rank(), dist.get_world_size(), device, dist.group.WORLD)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Average gradients over the ranks; buffers follow rank 0."""
        if self.group is None:
            return model
        wrapped = DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)
        count_buckets(wrapped, self.group)
        return wrapped

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, on every rank."""
        if self.group is not None:
            values = values.to(self.device, copy=True)
            all_reduce(values, self.group)
        return values

    def gather(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """One-dimensional arrays of any lengths, joined in rank order, on every rank."""
        if self.group is None:
            return values
        mine = torch.from_numpy(np.ascontiguousarray(values)).to(self.device)
        sizes = self.sum(torch.eye(self.world_size, dtype=torch.int64)[self.rank] * len(mine)).tolist()
        padded = torch.nn.functional.pad(mine, (0, max(sizes) - len(mine)))
        parts = [torch.empty_like(padded) for _ in sizes]
        all_gather(parts, padded, self.group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).cpu().numpy()

    def barrier(self) -> None:
        """Wait for every rank."""
        self.sum(torch.zeros(1))


def own_gpu(device: str) -> bool:
    """Whether this process computes on a GPU of its own; ValueError where `device` is cuda and there is none."""
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ValueError("device=cuda: this machine has no GPU that torch can use; use --device cpu")
    return there and device != "cpu"
