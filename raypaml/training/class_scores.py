"""The pseudo-negatives of scheme `em_apl`: which unobserved entries of a class they are, by the last epoch's logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from raypaml.labels import UNOBSERVED, IntArray
from raypaml.runs.ranks import Ranks
from raypaml.settings import LossConfig
from raypaml.training.scheme_state import SchemeState


class ClassScores(SchemeState):
    """The logit of each class below which an unobserved entry is a pseudo-negative, and its soft label.

    The paper ranks all unobserved entries of a class after every epoch from the warm-up on, by a pass over the training
    split. Of those left, it makes the lowest 0.9 / (epochs - warm-up) of all entries pseudo-negatives for good, each
    with its own score as soft label; in the end nine tenths of N x K entries have to be stored. Here a histogram of
    each class's logits, as training saw them in the last epoch, gives the logit below which as large a share lies. An
    entry is a pseudo-negative as long as its logit is below that, and its soft label is the mean score of those below.
    """

    WIDTH, BINS = 0.125, 512
    """Width and number of the histogram's bins, which reach from -32 to 32."""

    def __init__(self, num_classes: int, config: LossConfig, epochs: int, share: float):
        self._warmup, self._epochs, self._share = config.warmup_epochs, epochs, share
        self._counts, self._fresh = (torch.zeros(num_classes, self.BINS, dtype=torch.int64) for _ in range(2))
        self.thresholds = torch.full((num_classes,), -torch.inf)
        self.soft = torch.zeros(num_classes)

    def live_on(self, device: torch.device) -> None:
        """Move thresholds, soft labels and the counts of the steps to the device."""
        self.thresholds, self.soft = self.thresholds.to(device), self.soft.to(device)
        self._fresh = self._fresh.to(device)

    def known(self, rows: IntArray, labels: Tensor) -> Mapping[str, Tensor]:  # noqa: ARG002
        """The threshold [K] and the soft label [K] of each class."""
        return {"threshold": self.thresholds, "soft": self.soft}

    def note(self, rows: IntArray, labels: Tensor, logits: Tensor, ranks: Ranks, global_rows: int) -> None:  # noqa: ARG002
        """Count the logits of unobserved entries by class and bin."""
        bins = (logits.detach().double() / self.WIDTH).floor().long() + self.BINS // 2
        classes = torch.arange(len(self._fresh), device=logits.device)
        cells = classes * self.BINS + bins.clamp(0, self.BINS - 1)
        # not bincount over the unobserved entries: on a GPU the host would wait to learn how many there are
        self._fresh.view(-1).scatter_add_(0, cells.flatten(), (labels == UNOBSERVED).long().flatten())

    def exchange(self, ranks: Ranks) -> None:
        """Add up the counts of all ranks."""
        self._counts += ranks.sum(self._fresh).cpu()
        self._fresh.zero_()

    def close(self, epoch: int) -> None:
        """Choose the thresholds and soft labels of the next epoch."""
        left = self._epochs - self._warmup
        share = self._share * (epoch + 2 - self._warmup) / left if left > 0 else 0.0
        if share > 0:
            self._choose(min(share, self._share))
        self._counts.zero_()

    def _choose(self, share: float) -> None:
        below = self._counts.cumsum(1)
        bins = (below <= (share * below[:, -1:]).floor()).sum(1)  # whole bins below the threshold
        self.thresholds = ((bins - self.BINS // 2) * self.WIDTH).to(self.soft.device)
        middle = (torch.arange(self.BINS) - self.BINS // 2 + 0.5) * self.WIDTH
        chosen = self._counts * (torch.arange(self.BINS) < bins[:, None])
        soft = (chosen * torch.sigmoid(middle.double())).sum(1) / chosen.sum(1).clamp(min=1)
        self.soft = soft.float().to(self.soft.device)

    def tensors(self) -> dict[str, Tensor]:
        """Thresholds, soft labels, and the counts of this epoch."""
        return {"thresholds": self.thresholds, "soft": self.soft, "counts": self._counts}

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Restore what a checkpoint kept."""
        self.thresholds, self.soft = (kept[name].to(self.soft.device) for name in ("thresholds", "soft"))
        self._counts = kept["counts"]
