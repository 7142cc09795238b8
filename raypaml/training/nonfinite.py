"""Checks whether a step's logits and gradients are finite, without waiting for the GPU: the answer is read later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raypaml.runs.ranks import Ranks
from raypaml.runs.transfer import HostCopy


class DivergedError(FloatingPointError):
    """A step was not finite on some rank. All ranks raise it, one step later; the step itself changed nothing."""

    def __init__(self, message: str, place: str = ""):
        super().__init__(message)
        self.place = place
        """Epoch and step, as in messages."""


@dataclass(frozen=True)
class FiniteCheck:
    """Which rows of a step have finite logits; a GPU copies the answer while it computes what is queued after it."""

    finite: HostCopy
    """Bool [B]."""
    keys: Sequence[str]
    """[B] keys of the samples."""
    where: str
    """Rank, epoch and step."""

    def settle(self) -> None:
        """Raise FloatingPointError, naming rank, step and samples, unless all rows are finite."""
        if message := self.message():
            raise FloatingPointError(message)

    def message(self) -> str:
        """Which samples have logits that are not finite; empty where none has."""
        bad = [self.keys[row] for row in (~self.finite.wait()).nonzero().flatten().tolist()]
        return f"{self.where}: logits are not finite for {len(bad)} samples, such as {bad[:8]}" if bad else ""


def check_gradients(model: nn.Module, where: str) -> None:
    """Raise FloatingPointError unless all gradients are finite; waits for the device."""
    if _not_finite(model).any():
        raise FloatingPointError(f"{where}: gradients are not finite; lower lr")


def _not_finite(model: nn.Module) -> Tensor:
    """Bool, one for each gradient tensor: not finite. Tests the largest entry, for a sum of squares may overflow."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return ~torch.stack(torch._foreach_norm(gradients, torch.inf)).isfinite()


@dataclass(frozen=True)
class DivergenceCheck:
    """Whether logits and gradients of a step are finite on all ranks, each of which gets the same answer."""

    rows: FiniteCheck
    bad: Tensor
    """Bool [2] on the device: logits, and gradients, of any rank are not finite. Either one skips the update."""
    answer: HostCopy
    """`bad` on its way to the host."""
    place: str
    """Epoch and step."""

    @classmethod
    def about(cls, rows: FiniteCheck, finite: Tensor, model: nn.Module, ranks: Ranks, place: str) -> DivergenceCheck:
        """Begin the check on all ranks without waiting for the answer; a collective.

        Args:
            rows: the check of this rank's rows.
            finite: bool [B], which rows have finite logits.
            model: the model, whose gradients are the same on every rank.
            ranks: the ranks that take part.
            place: epoch and step, for messages.
        """
        counts = torch.stack([(~finite).sum(), _not_finite(model).sum()])
        bad = ranks.sum(counts) > 0
        return cls(rows, bad, HostCopy.of(bad), place)

    def settle(self) -> None:
        """Raise DivergedError, naming rank, step and samples, unless everything is finite on all ranks."""
        logits, gradients = self.answer.wait().tolist()
        where = self.rows.where
        if logits:
            raise DivergedError(self.rows.message() or f"{where}: logits of another rank are not finite", self.place)
        if gradients:
            raise DivergedError(f"{where}: gradients are not finite", self.place)


@dataclass(frozen=True)
class PendingStep:
    """A step that the device has been given, while the host does not yet know whether it was finite."""

    check: DivergenceCheck
    keep: Callable[[], None]
    """Completes the step on the host where it was finite."""
    skip: Callable[[DivergedError], None] | None
    """Is called where it was not; None: the error is raised."""

    def settle(self) -> None:
        """Wait for the answer; then keep the step, skip it, or raise DivergedError."""
        try:
            self.check.settle()
        except DivergedError as error:
            if self.skip is None:
                raise
            self.skip(error)
        else:
            self.keep()


class Buffers:
    """A copy of a model's buffers, such as BatchNorm's running statistics, by which they can be restored."""

    def __init__(self, model: nn.Module):
        kinds = {buffer.dtype for buffer in model.buffers()}
        self._kinds = [[buffer for buffer in model.buffers() if buffer.dtype == kind] for kind in kinds]
        # one tensor per type: a few kernels on a GPU, where a copy of each buffer would be hundreds
        self._before = [_joined(buffers) for buffers in self._kinds]

    def restore_where(self, diverged: Tensor) -> None:
        """Restore the buffers where `diverged`, a bool scalar on the device, is true."""
        for buffers, before in zip(self._kinds, self._before, strict=True):
            values = torch.where(diverged, before, _joined(buffers))
            parts = torch.split(values, [buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [part.view_as(to) for part, to in zip(parts, buffers, strict=True)])


def _joined(buffers: Sequence[Tensor]) -> Tensor:
    return torch.cat([buffer.flatten() for buffer in buffers])
