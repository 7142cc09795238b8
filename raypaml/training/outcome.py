"""The outcome of a step, held until the step is known to be finite: then it is kept, or the step is skipped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raypaml.labels import POSITIVE, UNOBSERVED, IntArray
from raypaml.losses.schemes import scheme_of
from raypaml.runs.events import Message
from raypaml.runs.models import update_average
from raypaml.runs.skips import Reason
from raypaml.runs.transfer import HostCopy
from raypaml.training.nonfinite import DivergedError
from raypaml.training.worker import Worker

NOT_FINITE: Reason = "was in a step that was not finite"


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What a step computed on this rank, without its images and its graph."""

    rows: IntArray
    """[B] rows of the index in this rank's part of the batch."""
    global_rows: int
    """Number of images in the global batch."""
    labels: Tensor
    """int8 [B, K]; corrected entries are positive."""
    truth: Tensor | None
    """int8 [B, K] full labels, where they are known."""
    logits: Tensor
    """[B, K]."""
    loss: Tensor
    """This rank's share of the global mean."""
    rejected: Tensor
    """Bool [B, K]."""
    steps_done: int
    """Steps before this one, since training began."""


def keep_outcome(worker: Worker, step: StepOutcome) -> None:
    """Complete a finite step: update the scheme's state and the weights' average, and count it; waits for nothing.

    May be called after the next step's forward pass, but before that step's loss, which needs what changes here.
    """
    noted = [worker.corrections.fresh] if scheme_of(worker.config.loss.scheme).corrects else []
    noted += [worker.rejections.fresh] if worker.config.run.history else []
    if noted:
        rejected = HostCopy.of(step.rejected)
        for entries in noted:
            entries.add(step.rows, rejected)
    worker.scheme_state.note(step.rows, step.labels, step.logits, worker.ranks, step.global_rows)
    if worker.average is not None:
        update_average(worker.average, worker.model, worker.config.optim.ema, step.steps_done)
    place = divmod(step.steps_done, worker.plan.steps)
    worker.calls.note_step(*place, step.loss, step.global_rows, step.rejected)
    by_class = _count_by_class(step)
    worker.class_counts.add(by_class)
    sums = torch.stack([step.loss * step.global_rows, step.loss.new_full((), len(step.rows))])
    worker.tally += torch.cat([sums.double(), by_class.sum(1).double()])


def skip_outcome(worker: Worker, step: StepOutcome, error: DivergedError) -> None:
    """Count the samples of a step that was not finite as skipped, and report them; the step has changed nothing."""
    worker.skipped += [(row, NOT_FINITE) for row in step.rows.tolist()]
    worker.report(Message(f"{error}; its {step.global_rows} samples are skipped"))


def _count_by_class(step: StepOutcome) -> Tensor:
    """Counts of a step, int64 [3, K] in the order of `class_counts.COLUMNS`; without the truth nothing is missed."""
    rejected = step.rejected.sum(0)
    if step.truth is None:
        return torch.stack([rejected, torch.zeros_like(rejected), torch.zeros_like(rejected)])
    missed = (step.labels == UNOBSERVED) & (step.truth == POSITIVE)
    return torch.stack([rejected, (step.rejected & missed).sum(0), missed.sum(0)])
