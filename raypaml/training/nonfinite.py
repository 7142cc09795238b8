"""Whether a step is finite: asked of the device at once, looked at when the answer costs no waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raypaml.runs.ranks import Ranks
from raypaml.runs.transfer import HostCopy


class DivergedError(FloatingPointError):
    """A step that is not finite on some rank: raised on every rank at once, one step later; it changed nothing."""

    def __init__(self, said: str, place: str = ""):
        super().__init__(said)
        self.place = place
        """Epoch and step."""


@dataclass(frozen=True)
class FiniteCheck:
    """Which rows of a step are finite. On a GPU the answer comes back beside the work that is queued after it."""

    finite: HostCopy
    """Bool [B]."""
    keys: Sequence[str]
    """[B] samples."""
    where: str

    def settle(self) -> None:
        """Raise FloatingPointError, naming rank, step and samples, unless all are finite."""
        if said := self.said():
            raise FloatingPointError(said)

    def said(self) -> str:
        """What there is to be said of the samples; nothing where all are finite."""
        bad = [self.keys[row] for row in (~self.finite.wait()).nonzero().flatten().tolist()]
        return f"{self.where}: logits are not finite for {len(bad)} samples, such as {bad[:8]}" if bad else ""


def check_gradients(model: nn.Module, where: str) -> None:
    """Raise FloatingPointError unless all gradients are finite; waits for them."""
    if _not_finite(model).any():
        raise FloatingPointError(f"{where}: gradients are not finite; lower lr")


def _not_finite(model: nn.Module) -> Tensor:
    """Which gradients are not finite, one value a tensor; by their largest entry, for a sum of squares overflows."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return ~torch.stack(torch._foreach_norm(gradients, torch.inf)).isfinite()


@dataclass(frozen=True)
class DivergenceCheck:
    """Whether a step is finite on all ranks, logits and gradients; every rank gets the same answer."""

    rows: FiniteCheck
    bad: Tensor
    """Bool [2]: logits of some rank, gradients. It stays on the device, which leaves out the update by it."""
    answer: HostCopy
    """The same on its way to the host."""
    place: str

    @classmethod
    def about(cls, rows: FiniteCheck, finite: Tensor, model: nn.Module, ranks: Ranks, place: str) -> DivergenceCheck:
        """Ask all ranks, and do not wait; a collective.

        Args:
            rows: of this rank.
            finite: bool [B], which rows have finite logits.
            model: its gradients are the same on every rank.
            ranks: those to ask.
            place: epoch and step.
        """
        counts = torch.stack([(~finite).sum(), _not_finite(model).sum()])
        bad = ranks.sum(counts) > 0
        return cls(rows, bad, HostCopy.of(bad), place)

    def settle(self) -> None:
        """Raise DivergedError, naming rank, step and samples, unless all is finite on all ranks."""
        logits, gradients = self.answer.wait().tolist()
        where = self.rows.where
        if logits:
            raise DivergedError(self.rows.said() or f"{where}: logits of another rank are not finite", self.place)
        if gradients:
            raise DivergedError(f"{where}: gradients are not finite", self.place)


@dataclass(frozen=True)
class DoubtfulStep:
    """A step of which the host does not know yet whether it was finite."""

    check: DivergenceCheck
    keep: Callable[[], None]
    """Does what a finite step leaves to be done on the host's side."""
    skip: Callable[[DivergedError], None] | None
    """Does what is done instead where it was not finite; None: it is an error."""

    def settle(self) -> None:
        """Keep it, skip it, or raise DivergedError."""
        try:
            self.check.settle()
        except DivergedError as error:
            if self.skip is None:
                raise
            self.skip(error)
        else:
            self.keep()


class Buffers:
    """The buffers of a model as they are, such as what BatchNorm saw so far, to go back to."""

    def __init__(self, model: nn.Module):
        kinds = {buffer.dtype for buffer in model.buffers()}
        self._kinds = [[buffer for buffer in model.buffers() if buffer.dtype == kind] for kind in kinds]
        # in one piece: a few launches on a GPU, where a copy of each were hundreds
        self._before = [_joined(buffers) for buffers in self._kinds]

    def restore_where(self, diverged: Tensor) -> None:
        """Put them back where a scalar of the device says so."""
        for buffers, before in zip(self._kinds, self._before, strict=True):
            values = torch.where(diverged, before, _joined(buffers))
            parts = torch.split(values, [buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [part.view_as(to) for part, to in zip(parts, buffers, strict=True)])


def _joined(buffers: Sequence[Tensor]) -> Tensor:
    return torch.cat([buffer.flatten() for buffer in buffers])
