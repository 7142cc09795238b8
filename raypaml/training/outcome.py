"""What a step leaves on the host's side and for later steps, and what becomes of it: kept, or the step is skipped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raypaml.labels import POSITIVE, UNOBSERVED, IntArray
from raypaml.losses.schemes import scheme_of
from raypaml.runs.models import update_average
from raypaml.runs.skips import Reason
from raypaml.runs.transfer import HostCopy
from raypaml.training.nonfinite import DivergedError
from raypaml.training.worker import Worker

NOT_FINITE: Reason = "was in a step that was not finite"


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What a step computed, without its images and its graph: it is held until the step is known to be finite."""

    rows: IntArray
    """[B] of the index, this rank's part."""
    global_rows: int
    labels: Tensor
    """int8 [B, K], corrected ones positive."""
    truth: Tensor | None
    """int8 [B, K], where it is known."""
    logits: Tensor
    """[B, K]."""
    loss: Tensor
    """This rank's share."""
    rejected: Tensor
    """Bool [B, K]."""
    steps_done: int
    """Before this one, since training began."""


def keep_outcome(worker: Worker, step: StepOutcome) -> None:
    """Do what a finite step leaves to be done: for the scheme, the weights' average, and the record; waits for nothing.

    It may come after the next step's forward pass, but before that step's loss: nothing that it reads changes before.
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
    _count(worker, step)


def skip_outcome(worker: Worker, step: StepOutcome, error: DivergedError) -> None:
    """Count and tell the samples of a step that was not finite, and so has changed nothing."""
    worker.skipped += [(row, NOT_FINITE) for row in step.rows.tolist()]
    worker.report({"event": f"{error}; its {step.global_rows} samples are skipped"})


def _count(worker: Worker, step: StepOutcome) -> None:
    loss, rejected = step.loss, step.rejected
    counts = [loss * step.global_rows, loss.new_full((), len(step.rows)), rejected.sum()]
    if step.truth is not None:
        missed = (step.labels == UNOBSERVED) & (step.truth == POSITIVE)
        counts += [(rejected & missed).sum(), missed.sum()]
    else:
        counts += [loss.new_zeros(()), loss.new_zeros(())]
    worker.tally += torch.stack([count.double() for count in counts])
