"""A process group as NCCL's: a collective returns before it is done, and only who reads its result waits for it.

On a GPU a collective is one more piece of work in the device's queue. `dist.all_reduce` returns at once, operations
that take its result are queued behind it, and the host waits where it reads a value: `item`, `tolist`, `cpu`, `numpy`.
Here gloo works in its own threads, the handle's `wait` does not wait, and whatever first touches the memory of a result
that is still under way does: an operation or a read. The host runs no further ahead than it would on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

BACKEND = "late"
_under_way: dict[int, Any] = {}
"""Gloo's work by the address of the memory that it will fill."""


class _Handle(dist._Work):  # type: ignore[misc]
    """What a collective returns: nobody waits by it but torch's DistributedDataParallel, which takes the future."""

    def __init__(self, work: Any, results: Any) -> None:
        super().__init__()
        self._work = work
        _under_way.update({tensor.untyped_storage().data_ptr(): work for tensor in tree_leaves(results)})

    def wait(self, timeout: timedelta | None = None) -> bool:  # noqa: ARG002
        return True

    def get_future(self) -> Any:
        return self._work.get_future()


class _LateGroup(dist.ProcessGroup):  # type: ignore[misc]
    """The collectives that training uses, DistributedDataParallel included."""

    def __init__(self, store: Any, rank: int, world_size: int, timeout: timedelta) -> None:
        super().__init__(rank, world_size)
        self._gloo = dist.ProcessGroupGloo(store, rank, world_size, timeout)

    def allreduce(self, tensors: list[Tensor], options: Any = None) -> _Handle:
        return self._begin("allreduce", tensors, tensors, options or dist.AllreduceOptions())

    def allgather(self, results: list[list[Tensor]], tensors: list[Tensor], options: Any = None) -> _Handle:
        return self._begin("allgather", results, results, tensors, options or dist.AllgatherOptions())

    def broadcast(self, tensors: list[Tensor], options: Any = None) -> _Handle:
        return self._begin("broadcast", tensors, tensors, options or dist.BroadcastOptions())

    def _begin(self, name: str, results: Any, *args: Any) -> _Handle:
        _arrive(args)  # queued behind what it depends on
        with _disable_current_modes():  # gloo's own operations, in its threads, wait for nothing
            return _Handle(getattr(self._gloo, name)(*args), results)

    def getBackendName(self) -> str:
        return BACKEND


def _arrive(values: Any) -> None:
    """Wait for the work that fills any of these tensors."""
    for value in tree_leaves(values):
        if isinstance(value, Tensor) and (work := _under_way.pop(value.untyped_storage().data_ptr(), None)):
            work.wait()


class _Operations(TorchDispatchMode):
    """Operations, queued behind what they depend on."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _arrive((args, kwargs))
        return operation(*args, **(kwargs or {}))


@contextmanager
def late_group(address: str, rank: int, world_size: int) -> Iterator[None]:
    """The default process group of this process, for the block."""
    if BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(BACKEND, _LateGroup, devices=["cpu"])
    dist.init_process_group(BACKEND, address, rank=rank, world_size=world_size, timeout=timedelta(minutes=1))
    with pytest.MonkeyPatch.context() as patch, _Operations():
        for name in ("tolist", "numpy"):  # which read the memory without an operation
            patch.setattr(Tensor, name, _waiting(getattr(Tensor, name)))
        yield
    dist.destroy_process_group()


def _waiting(read: Any) -> Any:
    def waiting(tensor: Tensor, *args: Any, **options: Any) -> Any:
        _arrive(tensor)
        return read(tensor, *args, **options)

    return waiting
