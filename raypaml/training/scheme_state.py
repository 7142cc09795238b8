"""What some schemes remember from step to step, of each class or, sparsely, of each sample; the same on every rank.

A scheme's record declares what it keeps, and `STATE_BUILDERS` makes it; checkpoints hold it in memory.safetensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from raypaml.config import LossConfig, TrainConfig, rejecting_epochs
from raypaml.data.data_folder import DataFolder
from raypaml.data.index import Index
from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED, IntArray
from raypaml.losses.formulas import estimates_step
from raypaml.losses.fused_terms import UNIT, probability_sum
from raypaml.losses.scheme_losses import check_schedule, global_sum
from raypaml.losses.schemes import read_settings, scheme_of
from raypaml.runs.ranks import Ranks
from raypaml.runs.transfer import send
from raypaml.training.priors import mean_positives, read_priors


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
    """The mean score of each class over an epoch of training: what `csl` takes for the prior, from a run of `ignore`.

    (E. Ben-Baruch et al., CVPR 2022, section 3; chosen: the scores that training saw, as in the published code.)
    """

    def __init__(self, num_classes: int):
        self.means = torch.zeros(num_classes, dtype=torch.float64)
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
        """Turn the epoch's sums into its means."""
        self.means = self._sums[:-1].double() / UNIT / self._sums[-1]
        self._sums.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """The means of the last epoch, and the sums of this one."""
        return {"means": self.means, "sums": self._sums}

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Go on with what a checkpoint kept."""
        self.means, self._sums = kept["means"], kept["sums"]


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
    """The expected number of positives of an image, for `epr`: as many as the validation split has."""

    def __init__(self, expected: float):
        self.expected = expected

    def known(self, rows: IntArray, labels: Tensor) -> Mapping[str, Tensor | float]:  # noqa: ARG002
        """The number, the same for all samples."""
        return {"expected": self.expected}


class ClassScores(SchemeState):
    """Below which logit an unobserved entry of a class is a pseudo-negative of `em_apl`, and with which soft label.

    The paper ranks all unobserved entries of a class after each epoch from the warm-up on, by a pass over the training
    split, and makes the lowest of those left, 0.9 / (epochs - warm-up) of all, pseudo-negatives with their own score
    as a soft label, for good. That is an entry for nine tenths of N x K. Chosen here: a histogram of each class's
    logits, as training saw them in the last epoch, gives the logit below which as large a share lies; what is below
    now is pseudo-negative now, and its soft label is the mean score of what lay below.
    """

    WIDTH, BINS = 0.125, 512
    """The histogram has this many bins of this width, from -32 to 32."""

    def __init__(self, num_classes: int, config: LossConfig, epochs: int, share: float):
        self._warmup, self._epochs, self._share = config.warmup_epochs, epochs, share
        self._counts, self._fresh = (torch.zeros(num_classes, self.BINS, dtype=torch.int64) for _ in range(2))
        self.thresholds = torch.full((num_classes,), -torch.inf)
        self.soft = torch.zeros(num_classes)

    def live_on(self, device: torch.device) -> None:
        """Thresholds, soft labels, and the counts of the steps."""
        self.thresholds, self.soft = self.thresholds.to(device), self.soft.to(device)
        self._fresh = self._fresh.to(device)

    def known(self, rows: IntArray, labels: Tensor) -> Mapping[str, Tensor]:  # noqa: ARG002
        """The threshold [K] and the soft label [K] of each class."""
        return {"threshold": self.thresholds, "soft": self.soft}

    def note(self, rows: IntArray, labels: Tensor, logits: Tensor, ranks: Ranks, global_rows: int) -> None:  # noqa: ARG002
        """Count the logits of unobserved entries, by class and bin."""
        bins = (logits.detach().double() / self.WIDTH).floor().long() + self.BINS // 2
        classes = torch.arange(len(self._fresh), device=logits.device)
        cells = classes * self.BINS + bins.clamp(0, self.BINS - 1)
        # not bincount of the unobserved ones: on a GPU the host would wait to learn how many these are
        self._fresh.view(-1).scatter_add_(0, cells.flatten(), (labels == UNOBSERVED).long().flatten())

    def exchange(self, ranks: Ranks) -> None:
        """Add the ranks' counts."""
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
        """The thresholds, the soft labels, and this epoch's counts."""
        return {"thresholds": self.thresholds, "soft": self.soft, "counts": self._counts}

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Go on with what a checkpoint kept."""
        self.thresholds, self.soft = (kept[name].to(self.soft.device) for name in ("thresholds", "soft"))
        self._counts = kept["counts"]


class LabelEstimates(ExpectedPositives):
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
        """The logits of the estimates [B, K], and the expected number of positives."""
        at = torch.from_numpy(rows)
        first = self.OBSERVED * ((labels == POSITIVE).float() - (labels == NEGATIVE).float())
        kept = [values[at] for values in (self.others, self.classes, self.logits)]
        others, classes, logits = send(kept, labels.device)
        dense = others[:, None].repeat(1, labels.shape[1])
        dense.scatter_(1, classes.long(), logits)
        return {"expected": self.expected, "estimates": torch.where(others.isnan()[:, None], first, dense)}

    def note(self, rows: IntArray, labels: Tensor, logits: Tensor, ranks: Ranks, global_rows: int) -> None:
        """Let the estimates of these samples learn from the classifier."""
        before = torch.as_tensor(self.known(rows, labels)["estimates"]).double()
        count = global_sum(probability_sum(before), ranks.group).double() / UNIT / global_rows
        logits = logits.detach().double()
        after = estimates_step(before, logits, labels, step=self._step, expected=self.expected, count=count)
        after = after.float()
        best = after.topk(self.logits.shape[1])
        rest = after.sum(1) - best.values.sum(1)
        others = rest / max(1, self._num_classes - self.logits.shape[1])
        self._fresh.append((torch.from_numpy(rows), best.indices.int(), best.values, others))

    def exchange(self, ranks: Ranks) -> None:
        """Put what all ranks learned into the estimates of every rank."""
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
        """Go on with what a checkpoint kept."""
        self.classes, self.logits, self.others = kept["classes"], kept["logits"], kept["others"]


# --- What a run begins with -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Start:
    """What the state at the start of a run is made from."""

    config: TrainConfig
    data: DataFolder
    settings: Mapping[str, float]
    """All settings of the scheme, given or by default."""


STATE_BUILDERS: dict[str, Callable[[Start], SchemeState]] = {
    "": lambda _: SchemeState(),
    "class_means": lambda start: ClassMeans(len(start.data.vocabulary)),
    "class_priors": lambda start: ClassPriors(read_priors(start.config.loss.priors, start.data)),
    "expected_positives": lambda start: ExpectedPositives(mean_positives(start.data)),
    "class_scores": lambda start: ClassScores(
        len(start.data.vocabulary), start.config.loss, start.config.optim.epochs, start.settings["share"]
    ),
    "label_estimates": lambda start: LabelEstimates(
        start.data.splits["train"], mean_positives(start.data), start.settings
    ),
}
"""The state at the start, by what the record of a scheme declares as its `state`."""


def scheme_state_of(config: TrainConfig, data: DataFolder) -> SchemeState:
    """The state of the run's scheme, at the start.

    Raises:
        ValueError: settings, schedule, priors or labels are not as the scheme needs them.
    """
    loss = config.loss
    scheme = scheme_of(loss.scheme)
    if scheme.needs_truth and not data.splits["train"].has_truth:
        raise ValueError(
            f"scheme={scheme.name}: {data.path} does not know its full labels; choose a partial-label scheme"
        )
    settings = scheme.defaults | read_settings(scheme.name, loss.scheme_settings)
    last = rejecting_epochs(config.optim.epochs, loss.warmup_epochs) + (loss.schedule == "samples")
    check_schedule(scheme.name, settings, last)
    return STATE_BUILDERS[scheme.state](Start(config=config, data=data, settings=settings))
