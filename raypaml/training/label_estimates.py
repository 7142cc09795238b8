"""The label estimates of scheme `role`, which are learned along with the classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from raypaml.data.index import Index
from raypaml.labels import NEGATIVE, POSITIVE, IntArray
from raypaml.losses.formulas import estimates_step
from raypaml.losses.fused_terms import UNIT, probability_sum
from raypaml.losses.scheme_losses import global_sum
from raypaml.runs.ranks import Ranks
from raypaml.runs.transfer import send
from raypaml.training.scheme_state import ExpectedPositives


class LabelEstimates(ExpectedPositives):
    """The estimated labels of every sample, as logits: of its KEPT highest classes, and one value for all others.

    With K <= KEPT this is the paper's whole matrix. Estimates start at 0.5 (our choice; the paper draws them between
    0.4 and 0.6), those of observed positives at 0.995 and of observed negatives at 0.005, as published. A sample is
    seen once per epoch, so that ranks need each other's new estimates only in the next epoch.
    """

    KEPT = 64
    OBSERVED = math.log(0.995 / 0.005)

    def __init__(self, index: Index, expected: float, settings: Mapping[str, float]):
        super().__init__(settings["expected"] or expected)
        self._step, self._epsilon, self._num_classes = settings["step"], settings["epsilon"], index.num_classes
        kept = min(self.KEPT, index.num_classes)
        self.classes = torch.zeros((len(index), kept), dtype=torch.int32)
        self.logits = torch.zeros((len(index), kept))
        self.others = torch.full((len(index),), torch.nan)  # NaN: not yet seen
        self._fresh: list[tuple[Tensor, ...]] = []

    def known(self, rows: IntArray, labels: Tensor) -> Mapping[str, Tensor | float]:
        """The logits of the estimates [B, K], and the expected number of positives."""
        at = torch.from_numpy(rows)
        first = self.OBSERVED * ((labels == POSITIVE).float() - (labels == NEGATIVE).float())
        kept = [values[at] for values in (self.others, self.classes, self.logits)]
        others, classes, logits = send(kept, labels.device)
        dense = others[:, None].repeat(1, labels.shape[1])
        dense.scatter_(1, classes.long(), logits)
        return {"expected": self.expected, "estimates": torch.where(others.isnan()[:, None], first, dense)}

    def note(self, rows: IntArray, labels: Tensor, logits: Tensor, ranks: Ranks, global_rows: int) -> None:
        """Update the estimates of these samples by the classifier's logits."""
        before = torch.as_tensor(self.known(rows, labels)["estimates"]).double()
        count = global_sum(probability_sum(before), ranks.group).double() / UNIT / global_rows
        logits = logits.detach().double()
        settings = {"step": self._step, "expected": self.expected, "epsilon": self._epsilon}
        after = estimates_step(before, logits, labels, count=count, **settings).float()
        best = after.topk(self.logits.shape[1])
        rest = after.sum(1) - best.values.sum(1)
        others = rest / max(1, self._num_classes - self.logits.shape[1])
        self._fresh.append((torch.from_numpy(rows), best.indices.int(), best.values, others))

    def exchange(self, ranks: Ranks) -> None:
        """Give every rank the estimates that all ranks have updated."""
        empty = (torch.zeros(0, dtype=torch.int64), self.classes[:0], self.logits[:0], self.others[:0])
        fresh = ([values.cpu() for values in step] for step in self._fresh)
        learned = [torch.cat(parts).flatten().numpy() for parts in zip(empty, *fresh, strict=True)]
        rows, classes, logits, others = (torch.from_numpy(ranks.gather(values)) for values in learned)
        self.classes[rows], self.logits[rows] = classes.view(len(rows), -1), logits.view(len(rows), -1)
        self.others[rows] = others
        self._fresh = []

    def tensors(self) -> dict[str, Tensor]:
        """The estimates of all samples."""
        return {"classes": self.classes, "logits": self.logits, "others": self.others}

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Restore what a checkpoint kept."""
        self.classes, self.logits, self.others = kept["classes"], kept["logits"], kept["others"]
