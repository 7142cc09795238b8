"""One training step: forward, rejection, loss, gradients, update, count."""

from __future__ import annotations

import torch
from torch import Tensor

from raypaml.data.batches import Batch
from raypaml.labels import POSITIVE, UNOBSERVED
from raypaml.losses.large_loss import large_loss, scheduled_rate
from raypaml.training.gradients import add_exactly, lane_slices
from raypaml.training.worker import Worker

WARMUP_STEPS = 100
"""Of the learning rate, with lr_schedule=trapezoid."""


def train_step(worker: Worker, batch: Batch) -> None:
    """Train on one global batch, of which `batch` is this rank's part."""
    config, device, state = worker.config, worker.team.device, worker.state
    loss_config = config.loss
    labels = worker.corrections.apply(batch.labels, batch.rows).to(device, non_blocking=True)
    rate = scheduled_rate(
        loss_config.scheme,
        loss_config.delta_rel,
        epoch=state.epoch,
        step=state.step,
        steps=worker.plan.steps,
        warmup_epochs=loss_config.warmup_epochs,
        continuous=loss_config.schedule == "samples",
    )
    lane_logits = _forward(worker, batch)
    logits = torch.cat(lane_logits)
    try:
        loss, rejected = large_loss(
            logits,
            labels,
            loss_config.scheme,
            rate,
            global_rows=batch.global_rows,
            first_row=batch.first_row,
            group=worker.team.group,
            scope=loss_config.rejection_scope,
        )
    except FloatingPointError:
        bad = (~logits.isfinite()).any(1).nonzero().flatten().tolist()
        keys = [batch.keys[row] for row in bad[:8]]
        where = f"rank {worker.team.rank}, epoch {state.epoch}, step {state.step}"
        raise FloatingPointError(f"{where}: logits are not finite for {len(bad)} samples, such as {keys}") from None
    if loss_config.scheme == "ll_cp":
        worker.corrections.add(batch.rows, rejected)
    _set_lr(worker)
    worker.optimizer.zero_grad(set_to_none=True)
    if config.optim.reproducible:
        (gradient,) = torch.autograd.grad(loss, logits)
        add_exactly(worker.model, lane_logits, gradient, worker.team)
    else:
        (loss * worker.team.world_size).backward()  # type: ignore[no-untyped-call]  # the wrapper averages over ranks
    worker.optimizer.step()
    _count(worker, batch, labels, loss.detach(), rejected)


def _forward(worker: Worker, batch: Batch) -> list[Tensor]:
    """Logits of this rank's part, as one batch or, if reproducible, one a lane."""
    device = worker.team.device
    images = batch.images.to(device, non_blocking=True)
    if worker.config.data.flip:
        images = torch.where(batch.flip.to(device)[:, None, None, None], images.flip(-1), images)
    with torch.autocast(device.type, torch.bfloat16, enabled=_bfloat16(worker.config.optim.precision, device)):
        if worker.config.optim.reproducible:
            lanes = lane_slices(batch.lane_sizes)
            return [worker.model(images[lane]) for lane in lanes] or [_no_logits(worker)]
        # an empty part of a short last batch still takes part in the gradients' average, with zeros
        padded = images if len(images) else images.new_zeros((1, *images.shape[1:]))
        return [worker.wrapped(padded)[: len(images)]]


def _no_logits(worker: Worker) -> Tensor:
    return worker.model.head.weight.new_zeros((0, worker.model.head.out_channels), requires_grad=True)


def _bfloat16(precision: str, device: torch.device) -> bool:
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16"


def _set_lr(worker: Worker) -> None:
    optim, state = worker.config.optim, worker.state
    scale = 1.0
    if optim.lr_schedule == "trapezoid":
        done = state.epoch * worker.plan.steps + state.step
        left = 1 - done / (optim.epochs * worker.plan.steps)
        scale = min(1.0, (done + 1) / WARMUP_STEPS, 3 * left)
    backbone, head = worker.optimizer.param_groups
    backbone["lr"] = optim.lr * scale
    head["lr"] = optim.lr * optim.head_lr_mult * scale


def _count(worker: Worker, batch: Batch, labels: Tensor, loss: Tensor, rejected: Tensor) -> None:
    counts = [loss * batch.global_rows, loss.new_tensor(len(batch.rows)), rejected.sum()]
    if batch.truth is not None:
        missed = (labels == UNOBSERVED) & (batch.truth.to(labels.device) == POSITIVE)
        counts += [(rejected & missed).sum(), missed.sum()]
    else:
        counts += [loss.new_zeros(()), loss.new_zeros(())]
    worker.tally += torch.stack([count.double() for count in counts])
