"""Copies between the host and the device for which the host does not wait."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of the host on the device; a GPU copies them beside what it computes, and the host waits for nothing.

    What is not in pinned memory is put there first. On a CPU the tensors themselves.
    """
    if device.type == "cpu":
        return list(tensors)
    with _beside(device) as sent:
        for tensor in tensors:
            pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
            sent.append(pinned.to(device, non_blocking=True))
    return sent


@contextmanager
def _beside(device: torch.device) -> Iterator[list[Tensor]]:
    """Do what is queued in the block on a stream of its own; the current stream then waits for it.

    The current stream uses the tensors put into the list: they must outlive it, although the other one made them.
    """
    current, side = torch.cuda.current_stream(device), _side_stream(device)
    sent: list[Tensor] = []
    with torch.cuda.stream(side):
        yield sent
    current.wait_stream(side)
    for tensor in sent:
        tensor.record_stream(current)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class HostCopy:
    """A tensor on its way to the host, behind what the device has yet to compute."""

    _values: Tensor
    _arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, tensor: Tensor) -> HostCopy:
        """Begin the copy, into pinned memory, and do not wait. On a CPU it is the tensor itself."""
        values = tensor.to("cpu", non_blocking=True)
        if tensor.device.type != "cuda":
            return cls(values, None)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return cls(values, arrived)

    def wait(self) -> Tensor:
        """The values, once they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values


class ComingEntries:
    """Entries of masks that are on their way to the host; each is read when the next comes, or when all are taken."""

    def __init__(self) -> None:
        self._coming: list[tuple[NDArray[np.int64], HostCopy]] = []
        self._read: list[tuple[NDArray[np.int64], NDArray[np.int32]]] = [(np.empty(0, np.int64), np.empty(0, np.int32))]

    def add(self, rows: NDArray[np.int64], mask: HostCopy) -> None:
        """Note the entries of a bool mask [B, K] of these samples [B]."""
        self._read_all()
        self._coming.append((rows, mask))

    def take(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Sample and class of every entry noted since the last call."""
        self._read_all()
        rows, classes = (np.concatenate(column) for column in zip(*self._read, strict=True))
        del self._read[1:]
        return rows, classes

    def _read_all(self) -> None:
        for rows, mask in self._coming:
            position, classes = mask.wait().numpy().nonzero()
            self._read.append((rows[position], classes.astype(np.int32)))
        self._coming = []
