"""Whether the logits of a step are finite: asked of the device at once, looked at when the answer costs no waiting."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raypaml.losses.large_loss import finite_rows
from raypaml.runs.ranks import Ranks
from raypaml.runs.transfer import HostCopy


class DivergedError(FloatingPointError):
    """A step that is not finite on some rank; raised on every rank, before anything was updated."""


@dataclass(frozen=True)
class FiniteCheck:
    """Which rows of a step are finite. On a GPU the answer comes back beside the work that is queued after it."""

    finite: HostCopy
    """Bool [B]."""
    keys: list[str]
    """[B] samples."""
    where: str

    @classmethod
    def about(cls, logits: Tensor, keys: list[str], where: str) -> FiniteCheck:
        """Ask, and do not wait."""
        return cls(HostCopy.of(finite_rows(logits)), keys, where)

    def settle(self) -> None:
        """Raise FloatingPointError, naming rank, step and samples, unless all are finite."""
        if bad := self._bad():
            raise FloatingPointError(self._said(bad))

    def settle_together(self, ranks: Ranks) -> None:
        """Raise DivergedError on every rank, unless all are finite on all ranks; a collective, and a wait."""
        bad = self._bad()
        if ranks.sum(torch.tensor([len(bad)])).item():
            raise DivergedError(self._said(bad) if bad else f"{self.where}: logits of another rank are not finite")

    def _bad(self) -> list[str]:
        return [self.keys[row] for row in (~self.finite.wait()).nonzero().flatten().tolist()]

    def _said(self, bad: list[str]) -> str:
        return f"{self.where}: logits are not finite for {len(bad)} samples, such as {bad[:8]}"


def check_gradients(model: nn.Module, where: str) -> None:
    """Raise DivergedError unless all gradients, which are the same on every rank, are finite."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if not torch.stack(torch._foreach_norm(gradients)).isfinite().all():
        raise DivergedError(f"{where}: gradients are not finite")
