"""What some schemes remember from step to step, of each class or, sparsely, of each sample; the same on every rank.

A scheme's record declares what it keeps, and `state_builders` makes it; checkpoints hold it in memory.safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from raypaml.data.score_table import ScoreTable
from raypaml.labels import IntArray
from raypaml.losses.fused_terms import UNIT, probability_sum
from raypaml.runs.ranks import Ranks
from raypaml.runs.transfer import send


class SchemeState:
    """The state of a scheme that remembers nothing, and the interface of all states."""

    def live_on(self, device: torch.device) -> None:
        """Keep on this device what every step reads or adds to, so that no step waits for it; before the first step."""

    def known(self, rows: IntArray, labels: Tensor) -> Mapping[str, Tensor | float]:  # noqa: ARG002
        """What the loss of samples, with these rows [B] of the index and labels [B, K], takes besides these."""
        return {}

    def note(self, rows: IntArray, labels: Tensor, logits: Tensor, ranks: Ranks, global_rows: int) -> None:
        """Remember a step by this rank's rows [B], labels [B, K] and logits [B, K]. Called on every rank."""

    def exchange(self, ranks: Ranks) -> None:
        """Make what any rank noted known to all ranks."""

    def close(self, epoch: int) -> None:
        """Finish an epoch, after its last exchange."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, by name; taken after an exchange."""
        return {}

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Go on from what a checkpoint kept; the inverse of `tensors`."""


class ClassMeans(SchemeState):
    """The mean score of each class in training: what `csl` takes for the prior, from a run of `ignore`.

    (E. Ben-Baruch et al., CVPR 2022, section 3; chosen: the scores that training saw, over all epochs so far, as in the
    published code; or those of the last epoch.)
    """

    def __init__(self, num_classes: int, *, last_epoch: bool):
        self._last_epoch = last_epoch
        self.means = torch.zeros(num_classes, dtype=torch.float64)
        self._total = torch.zeros(num_classes + 1, dtype=torch.float64)  # scores, and samples, of finished epochs
        self._sums, self._fresh = (torch.zeros(num_classes + 1, dtype=torch.int64) for _ in range(2))

    def live_on(self, device: torch.device) -> None:
        """The sums of the steps."""
        self._fresh = self._fresh.to(device)

    def note(self, rows: IntArray, labels: Tensor, logits: Tensor, ranks: Ranks, global_rows: int) -> None:  # noqa: ARG002
        """Add the probabilities of this rank's part, by class."""
        self._fresh[:-1] += probability_sum(logits, 0)
        self._fresh[-1] += len(rows)

    def exchange(self, ranks: Ranks) -> None:
        """Add the ranks' sums."""
        self._sums += ranks.sum(self._fresh).cpu()
        self._fresh.zero_()

    def close(self, epoch: int) -> None:  # noqa: ARG002
        """Turn the sums of the epoch, or of all epochs so far, into means."""
        seen = torch.cat([self._sums[:-1].double() / UNIT, self._sums[-1:].double()])
        self._total = seen if self._last_epoch else self._total + seen
        self.means = self._total[:-1] / self._total[-1]
        self._sums.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """The means, what they are made of, and the sums of this epoch."""
        return {"means": self.means, "total": self._total, "sums": self._sums}

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Go on with what a checkpoint kept."""
        self.means, self._sums = kept["means"], kept["sums"]
        self._total = kept.get("total", self._total)  # earlier versions kept none, nor did they need it


class ClassPriors(SchemeState):
    """The class priors of `csl`: mean scores of a run of `ignore`."""

    def __init__(self, priors: Tensor):
        self.priors = priors

    def live_on(self, device: torch.device) -> None:
        """The priors."""
        self.priors = self.priors.to(device)

    def known(self, rows: IntArray, labels: Tensor) -> Mapping[str, Tensor]:  # noqa: ARG002
        """The priors [K]."""
        return {"priors": self.priors}

    def tensors(self) -> dict[str, Tensor]:
        """The priors."""
        return {"priors": self.priors}

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Go on with the priors that the run began with."""
        self.priors = kept["priors"].to(self.priors.device)


class ExpectedPositives(SchemeState):
    """The expected number of positives of an image, for `epr` and others: as many as the validation split has."""

    def __init__(self, expected: float):
        self.expected = expected

    def known(self, rows: IntArray, labels: Tensor) -> Mapping[str, Tensor | float]:  # noqa: ARG002
        """The number, the same for all samples."""
        return {"expected": self.expected}


class PseudoScores(ExpectedPositives):
    """The scores of a file of pseudo labels, of which each batch gets its rows; beside them the expected positives."""

    def __init__(self, table: ScoreTable, expected: float):
        super().__init__(expected)
        self._table = table

    def known(self, rows: IntArray, labels: Tensor) -> Mapping[str, Tensor | float]:
        """The scores [B, K], NaN for an entry that has none, and the expected number of positives."""
        (scores,) = send([torch.from_numpy(self._table.scores(rows))], labels.device)
        return {"expected": self.expected, "scores": scores}
