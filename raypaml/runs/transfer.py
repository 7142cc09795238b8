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
    """Copy tensors from the host to the device; a GPU does so while it computes, and the host does not wait.

    Tensors that are not in pinned memory are copied there first. On a CPU the tensors themselves are returned.
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
    """Queue the block's work on a separate stream, for which the current stream then waits.

    Tensors put into the yielded list are used by the current stream, which allocates memory independently: they are
    recorded there, so that their memory is not reused too early.
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
    return torch.cuda.Stream(device)


@dataclass(frozen=True)
class HostCopy:
    """A tensor that is being copied to the host, after what the device has yet to compute."""

    _values: Tensor
    _arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, tensor: Tensor) -> HostCopy:
        """Begin the copy into pinned memory, without waiting. On a CPU it is the tensor itself."""
        values = tensor.to("cpu", non_blocking=True)
        if tensor.device.type != "cuda":
            return cls(values, None)
        arrived = torch.cuda.Event()
        arrived.record()
        return cls(values, arrived)

    def wait(self) -> Tensor:
        """Wait for the values."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values


class ComingEntries:
    """Entries of masks that are being copied to the host; a mask is read when the next is added, or all are taken."""

    def __init__(self) -> None:
        self._coming: list[tuple[NDArray[np.int64], HostCopy]] = []
        self._read: list[tuple[NDArray[np.int64], NDArray[np.int32]]] = [(np.empty(0, np.int64), np.empty(0, np.int32))]

    def add(self, rows: NDArray[np.int64], mask: HostCopy) -> None:
        """Note the entries of a bool mask [B, K] of samples with these rows [B]."""
        self._read_all()
        self._coming.append((rows, mask))

    def take(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The row and the class of every entry noted since the last call."""
        self._read_all()
        rows, classes = (np.concatenate(column) for column in zip(*self._read, strict=True))
        del self._read[1:]
        return rows, classes

    def _read_all(self) -> None:
        for rows, mask in self._coming:
            position, classes = mask.wait().numpy().nonzero()
            self._read.append((rows[position], classes.astype(np.int32)))
        self._coming = []
