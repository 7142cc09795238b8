"""Whether the logits of a step are finite: asked of the device at once, looked at when the answer costs no waiting."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raypaml.losses.large_loss import finite_rows


@dataclass(frozen=True)
class Doubt:
    """Which rows of a step are finite. On a GPU the answer comes back beside the work that is queued after it."""

    finite: Tensor
    """Bool [B] on the host, once `answered`."""
    answered: torch.cuda.Event | None
    keys: list[str]
    """[B] samples."""
    where: str

    @classmethod
    def about(cls, logits: Tensor, keys: list[str], where: str) -> Doubt:
        """Ask, and do not wait."""
        finite = finite_rows(logits).to("cpu", non_blocking=True)
        if logits.device.type != "cuda":
            return cls(finite, None, keys, where)
        answered = torch.cuda.Event()  # type: ignore[no-untyped-call]
        answered.record()
        return cls(finite, answered, keys, where)

    def settle(self) -> None:
        """Raise FloatingPointError, naming rank, step and samples, unless all are finite."""
        if self.answered is not None:
            self.answered.synchronize()
        bad = [self.keys[row] for row in (~self.finite).nonzero().flatten().tolist()]
        if bad:
            raise FloatingPointError(f"{self.where}: logits are not finite for {len(bad)} samples, such as {bad[:8]}")
