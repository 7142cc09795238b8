"""What some schemes remember from step to step: of each class, or, sparsely, of each sample. The same on every rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from raypaml.config import LossConfig, TrainConfig, rejecting_epochs
from raypaml.data.data_folder import DataFolder
from raypaml.data.index import Index
from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED, IntArray
from raypaml.losses.formulas import estimates_step
from raypaml.losses.fused_terms import UNIT, probability_sum
from raypaml.losses.schemes import SCHEMES, check_schedule, global_sum, read_settings
from raypaml.runs.checkpoint import read_memory
from raypaml.runs.models import find_checkpoint
from raypaml.runs.ranks import Ranks
from raypaml.runs.run_folder import check_trained_classes


class Memory:
    """Of a scheme that remembers nothing; the interface of all."""

    def known(self, rows: IntArray, labels: Tensor) -> Mapping[str, Tensor | float]:  # noqa: ARG002
        """What the loss of these samples, with labels [B, K], takes besides logits and labels."""
        return {}

    def note(self, rows: IntArray, labels: Tensor, logits: Tensor, team: Ranks, global_rows: int) -> None:
        """After a step; called on every rank."""

    def exchange(self, team: Ranks) -> None:
        """Make what any rank noted known to all."""

    def close(self, epoch: int) -> None:
        """At the end of this epoch, all having been exchanged."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, after an exchange."""
        return {}

    def restore(self, kept: dict[str, Tensor]) -> None:
        """The inverse of `tensors`."""


class Means(Memory):
    """The mean score of each class over an epoch of training: what `csl` takes for the prior, from a run of `ignore`.

    (E. Ben-Baruch et al., CVPR 2022, section 3; chosen: the scores that training saw, as in the published code.)
    """

    def __init__(self, num_classes: int):
        self.means = torch.zeros(num_classes, dtype=torch.float64)
        self._sums, self._fresh = (torch.zeros(num_classes + 1, dtype=torch.int64) for _ in range(2))

    def note(self, rows: IntArray, labels: Tensor, logits: Tensor, team: Ranks, global_rows: int) -> None:  # noqa: ARG002
        """Add this part's probabilities."""
        self._fresh[:-1] += probability_sum(logits, 0).cpu()
        self._fresh[-1] += len(rows)

    def exchange(self, team: Ranks) -> None:
        """Add the ranks' sums."""
        self._sums += team.sum(self._fresh).cpu()
        self._fresh.zero_()

    def close(self, epoch: int) -> None:  # noqa: ARG002
        """The epoch's means."""
        self.means = self._sums[:-1].double() / UNIT / self._sums[-1]
        self._sums.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """Means of the last epoch, sums of this one."""
        return {"means": self.means, "sums": self._sums}

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Go on with them."""
        self.means, self._sums = kept["means"], kept["sums"]


class Priors(Memory):
    """The class priors of `csl`: mean scores of a run of `ignore`."""

    def __init__(self, priors: Tensor):
        self.priors = priors

    def known(self, rows: IntArray, labels: Tensor) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Priors [K]."""
        return {"priors": self.priors.to(labels.device)}

    def tensors(self) -> dict[str, Tensor]:
        """The priors."""
        return {"priors": self.priors}

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Those that the run began with."""
        self.priors = kept["priors"]


class Expected(Memory):
    """The expected number of positives of an image, for `epr`: as many as the validation split has."""

    def __init__(self, expected: float):
        self.expected = expected

    def known(self, rows: IntArray, labels: Tensor) -> Mapping[str, Tensor | float]:  # noqa: ARG002
        """A number."""
        return {"expected": self.expected}


class ClassScores(Memory):
    """Below which logit an unobserved entry of a class is a pseudo-negative of `em_apl`, and with which soft label.

    The paper ranks all unobserved entries of a class after each epoch from the warm-up on, by a pass over the training
    split, and makes the lowest of those left, 0.9 / (epochs - warm-up) of all, pseudo-negatives with their own score
    as a soft label, for good. That is an entry for nine tenths of N x K. Chosen here: a histogram of each class's
    logits, as training saw them in the last epoch, gives the logit below which as large a share lies; what is below
    now is pseudo-negative now, and its soft label is the mean score of what lay below.
    """

    WIDTH, BINS = 0.125, 512
    """Of the histogram, from -32 to 32."""

    def __init__(self, num_classes: int, config: LossConfig, epochs: int, share: float):
        self._warmup, self._epochs, self._share = config.warmup_epochs, epochs, share
        self._counts, self._fresh = (torch.zeros(num_classes, self.BINS, dtype=torch.int64) for _ in range(2))
        self.thresholds = torch.full((num_classes,), -torch.inf)
        self.soft = torch.zeros(num_classes)

    def known(self, rows: IntArray, labels: Tensor) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Threshold [K] and soft label [K]."""
        return {"threshold": self.thresholds.to(labels.device), "soft": self.soft.to(labels.device)}

    def note(self, rows: IntArray, labels: Tensor, logits: Tensor, team: Ranks, global_rows: int) -> None:  # noqa: ARG002
        """Count the unobserved entries' logits."""
        position, classes = (labels == UNOBSERVED).nonzero(as_tuple=True)
        bins = (logits.detach()[position, classes].double() / self.WIDTH).floor().long() + self.BINS // 2
        cells = classes * self.BINS + bins.clamp(0, self.BINS - 1)
        self._fresh += torch.bincount(cells, minlength=self._fresh.numel()).view_as(self._fresh).cpu()

    def exchange(self, team: Ranks) -> None:
        """Add the ranks' counts."""
        self._counts += team.sum(self._fresh).cpu()
        self._fresh.zero_()

    def close(self, epoch: int) -> None:
        """Thresholds and soft labels of the next epoch."""
        left = self._epochs - self._warmup
        share = self._share * (epoch + 2 - self._warmup) / left if left > 0 else 0.0
        if share > 0:
            self._choose(min(share, self._share))
        self._counts.zero_()

    def _choose(self, share: float) -> None:
        below = self._counts.cumsum(1)
        bins = (below <= (share * below[:, -1:]).floor()).sum(1)  # whole bins below the threshold
        self.thresholds = (bins - self.BINS // 2) * self.WIDTH
        middle = (torch.arange(self.BINS) - self.BINS // 2 + 0.5) * self.WIDTH
        chosen = self._counts * (torch.arange(self.BINS) < bins[:, None])
        self.soft = ((chosen * torch.sigmoid(middle.double())).sum(1) / chosen.sum(1).clamp(min=1)).float()

    def tensors(self) -> dict[str, Tensor]:
        """Thresholds, soft labels, and this epoch's counts."""
        return {"thresholds": self.thresholds, "soft": self.soft, "counts": self._counts}

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Go on with them."""
        self.thresholds, self.soft, self._counts = kept["thresholds"], kept["soft"], kept["counts"]


class Estimates(Expected):
    """The label estimates of `role`: of each sample the KEPT highest classes, and one number for all others.

    With K <= KEPT this is the whole matrix of the paper. Its logits begin at 0 (chosen; the paper: random, 0.4 to 0.6),
    at those of 0.995 and 0.005 for observed positives and negatives, as published. A sample is seen once per epoch, so
    what a rank learns of it is needed, by whichever rank, only in the next.
    """

    KEPT = 64
    OBSERVED = math.log(0.995 / 0.005)

    def __init__(self, index: Index, expected: float, settings: Mapping[str, float]):
        super().__init__(settings["expected"] or expected)
        self._step, self._num_classes = settings["step"], index.num_classes
        kept = min(self.KEPT, index.num_classes)
        self.classes = torch.zeros((len(index), kept), dtype=torch.int32)
        self.logits = torch.zeros((len(index), kept))
        self.others = torch.full((len(index),), torch.nan)  # NaN: not yet seen
        self._fresh: list[tuple[Tensor, ...]] = []

    def known(self, rows: IntArray, labels: Tensor) -> Mapping[str, Tensor | float]:
        """Logits of the estimates [B, K], and the expected number of positives."""
        at = torch.from_numpy(rows)
        first = self.OBSERVED * ((labels == POSITIVE).float() - (labels == NEGATIVE).float())
        others = self.others[at]
        dense = others[:, None].repeat(1, labels.shape[1])
        dense.scatter_(1, self.classes[at].long(), self.logits[at])
        seen = ~others.isnan()[:, None].to(labels.device)
        return {"expected": self.expected, "estimates": torch.where(seen, dense.to(labels.device), first)}

    def note(self, rows: IntArray, labels: Tensor, logits: Tensor, team: Ranks, global_rows: int) -> None:
        """Let the estimates of these samples learn from the classifier."""
        before = torch.as_tensor(self.known(rows, labels)["estimates"]).double()
        count = global_sum(probability_sum(before), team.group).item() / UNIT / global_rows
        logits = logits.detach().double()
        after = estimates_step(before, logits, labels, step=self._step, expected=self.expected, count=count)
        after = after.float().cpu()
        best = after.topk(self.logits.shape[1])
        rest = after.sum(1) - best.values.sum(1)
        others = rest / max(1, self._num_classes - self.logits.shape[1])
        self._fresh.append((torch.from_numpy(rows), best.indices.int(), best.values, others))

    def exchange(self, team: Ranks) -> None:
        """Put what all ranks learned in its place."""
        empty = (torch.zeros(0, dtype=torch.int64), self.classes[:0], self.logits[:0], self.others[:0])
        learned = [torch.cat(parts).flatten().numpy() for parts in zip(empty, *self._fresh, strict=True)]
        rows, classes, logits, others = (torch.from_numpy(team.gather(values)) for values in learned)
        self.classes[rows], self.logits[rows] = classes.view(len(rows), -1), logits.view(len(rows), -1)
        self.others[rows] = others
        self._fresh = []

    def tensors(self) -> dict[str, Tensor]:
        """All estimates."""
        return {"classes": self.classes, "logits": self.logits, "others": self.others}

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Go on with them."""
        self.classes, self.logits, self.others = kept["classes"], kept["logits"], kept["others"]


def memory_of(config: TrainConfig, data: DataFolder) -> Memory:
    """What the run's scheme remembers, at the start.

    Raises:
        ValueError: settings, schedule, priors or labels are not as the scheme needs them.
    """
    loss, num_classes = config.loss, len(data.vocabulary)
    if loss.scheme == "full" and not data.splits["train"].has_truth:
        raise ValueError(f"scheme=full: {data.path} does not know its full labels; choose a partial-label scheme")
    settings = SCHEMES[loss.scheme].settings | read_settings(loss.scheme, loss.scheme_settings)
    last = rejecting_epochs(config.optim.epochs, loss.warmup_epochs) + (loss.schedule == "samples")
    check_schedule(loss.scheme, settings, last)
    if loss.scheme == "ignore":
        return Means(num_classes)
    if loss.scheme == "csl":
        return Priors(read_priors(loss.priors, data))
    if loss.scheme == "epr":
        return Expected(_positives(data))
    if loss.scheme == "em_apl":
        return ClassScores(num_classes, loss, config.optim.epochs, settings["share"])
    if loss.scheme == "role":
        return Estimates(data.splits["train"], _positives(data), settings)
    return Memory()


def _positives(data: DataFolder) -> float:
    """Observed positives of a validation image, on average."""
    index = data.splits["validation"]
    return len(index.positives.values) / len(index)


def read_priors(run: str, data: DataFolder) -> Tensor:
    """[K] mean scores of the classes, from a run of scheme `ignore` or a checkpoint of it."""
    if not run:
        raise ValueError("scheme=csl needs class priors: train with --scheme ignore first, then give --priors RUN")
    if not Path(run).is_dir():
        raise ValueError(f"priors={run}: no such run")
    folder, checkpoint = find_checkpoint(Path(run))
    check_trained_classes(folder, data.vocabulary.digest, str(data.path))
    kept = read_memory(checkpoint)
    if "means" not in kept:
        raise ValueError(f"priors={run}: holds no mean scores; give a run of --scheme ignore")
    return kept["means"]
