"""How the tensors of a network lie in memory, which is part of its state.

CUDA's fused optimizers refuse a weight, its gradient and its moments unless they have the same strides. The CPU's walk
through the memory of all of them at once: with other strides they would update an entry by the gradient of another.
"""

from __future__ import annotations

import torch
from torch import Tensor


def memory_format(device: torch.device) -> torch.memory_format:
    """The order in which a device keeps maps and convolutions' weights: channels last on a GPU, where it is faster."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def laid_out_as(weight: Tensor, values: Tensor) -> Tensor:
    """These values, in the shape, the type and the strides of a weight; a copy only where they must be moved."""
    if values.dtype == weight.dtype:
        if values.stride() == weight.stride():
            return values
        if _long_strides(values) == _long_strides(weight):
            return values.as_strided(weight.shape, weight.stride())
    return torch.empty_like(weight, requires_grad=False, device=values.device).copy_(values)


def _long_strides(tensor: Tensor) -> list[int]:
    """The strides of the dimensions that have more than one entry, which alone say where an entry lies."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1]
