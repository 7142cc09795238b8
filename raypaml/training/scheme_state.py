"""State that some schemes keep from step to step, by class or, sparsely, by sample; it is the same on every rank.

A scheme's record declares which state it keeps, and `state_builders` builds it; checkpoints hold it in
memory.safetensors.
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
    """The interface of all states; this one is empty, for schemes that keep none."""

    def live_on(self, device: torch.device) -> None:
        """Move to the device what every step reads or adds to, so that no step waits; called before the first step."""

    def known(self, rows: IntArray, labels: Tensor) -> Mapping[str, Tensor | float]:  # noqa: ARG002
        """Further arguments of the loss, by name, for samples with these rows [B] of the index and labels [B, K]."""
        return {}

    def note(self, rows: IntArray, labels: Tensor, logits: Tensor, ranks: Ranks, global_rows: int) -> None:
        """Update the state after a step, by this rank's rows [B], labels [B, K] and logits [B, K]; on every rank."""

    def exchange(self, ranks: Ranks) -> None:
        """Share among all ranks what each has noted; a collective."""

    def close(self, epoch: int) -> None:
        """Finish an epoch, after its last exchange."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint keeps, by name; called after an exchange."""
        return {}

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Restore what a checkpoint kept; the inverse of `tensors`."""


class ClassMeans(SchemeState):
    """Mean training score of each class in a run of scheme `ignore`, which scheme `csl` takes as class priors.

    (E. Ben-Baruch et al., CVPR 2022, section 3.) Our choice: the mean over the scores that training saw in all epochs
    so far, as in the published code, or in the last epoch alone.
    """

    def __init__(self, num_classes: int, *, last_epoch: bool):
        self._last_epoch = last_epoch
        self.means = torch.zeros(num_classes, dtype=torch.float64)
        # sums of scores, and number of samples, of finished epochs
        self._total = torch.zeros(num_classes + 1, dtype=torch.float64)
        self._sums, self._fresh = (torch.zeros(num_classes + 1, dtype=torch.int64) for _ in range(2))

    def live_on(self, device: torch.device) -> None:
        """Move the sums of the steps to the device."""
        self._fresh = self._fresh.to(device)

    def note(self, rows: IntArray, labels: Tensor, logits: Tensor, ranks: Ranks, global_rows: int) -> None:  # noqa: ARG002
        """Add the probabilities of this rank's part by class."""
        self._fresh[:-1] += probability_sum(logits, 0)
        self._fresh[-1] += len(rows)

    def exchange(self, ranks: Ranks) -> None:
        """Add up the sums of all ranks."""
        self._sums += ranks.sum(self._fresh).cpu()
        self._fresh.zero_()

    def close(self, epoch: int) -> None:  # noqa: ARG002
        """Compute the means, over the epoch or over all epochs so far."""
        seen = torch.cat([self._sums[:-1].double() / UNIT, self._sums[-1:].double()])
        self._total = seen if self._last_epoch else self._total + seen
        self.means = self._total[:-1] / self._total[-1]
        self._sums.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """The means, the sums that they are made of, and the sums of this epoch."""
        return {"means": self.means, "total": self._total, "sums": self._sums}

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Restore what a checkpoint kept."""
        self.means, self._sums = kept["means"], kept["sums"]
        self._total = kept.get("total", self._total)  # earlier versions neither kept nor needed it


class ClassPriors(SchemeState):
    """The class priors of scheme `csl`: mean scores of a run of scheme `ignore`."""

    def __init__(self, priors: Tensor):
        self.priors = priors

    def live_on(self, device: torch.device) -> None:
        """Move the priors to the device."""
        self.priors = self.priors.to(device)

    def known(self, rows: IntArray, labels: Tensor) -> Mapping[str, Tensor]:  # noqa: ARG002
        """The priors [K]."""
        return {"priors": self.priors}

    def tensors(self) -> dict[str, Tensor]:
        """The priors."""
        return {"priors": self.priors}

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Restore the priors that the run began with."""
        self.priors = kept["priors"].to(self.priors.device)


class ExpectedPositives(SchemeState):
    """The expected number of positives per image, for scheme `epr` and others: the mean of the validation split."""

    def __init__(self, expected: float):
        self.expected = expected

    def known(self, rows: IntArray, labels: Tensor) -> Mapping[str, Tensor | float]:  # noqa: ARG002
        """The expected number, the same for all samples."""
        return {"expected": self.expected}


class PseudoScores(ExpectedPositives):
    """The scores of a file of pseudo labels, and the expected number of positives per image."""

    def __init__(self, table: ScoreTable, expected: float):
        super().__init__(expected)
        self._table = table

    def known(self, rows: IntArray, labels: Tensor) -> Mapping[str, Tensor | float]:
        """The scores [B, K], NaN for entries without one, and the expected number of positives."""
        (scores,) = send([torch.from_numpy(self._table.scores(rows))], labels.device)
        return {"expected": self.expected, "scores": scores}
