"""One training step: forward, rejection, loss, gradients, update, count.

With micro batches (gradient accumulation) a step makes two passes: first without gradients, for the logits of the whole
part, so that rejection sees the whole global batch; then with gradients, micro batch by micro batch, each from its rows
of the loss's gradient with respect to the logits. The sum equals that of one large pass, for the price of one more
forward pass, except with BatchNorm, whose statistics are a micro batch's, the same in both passes and counted once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from raypaml.augmentation.augmenting import augment
from raypaml.augmentation.draws import Draws
from raypaml.collectives import CLOCK
from raypaml.data.batches import Batch
from raypaml.data.plan import lane_slices
from raypaml.losses.large_loss import check_labels, finite_rows
from raypaml.losses.scheme_losses import StepContext, scheme_loss
from raypaml.losses.schemes import all_settings
from raypaml.runs.models import autocast, copy_buffers
from raypaml.runs.transfer import HostCopy, send
from raypaml.training.gradients import add_exactly, lay_out_gradients
from raypaml.training.learning_rates import follow_schedule
from raypaml.training.nonfinite import (
    Buffers,
    DivergenceCheck,
    FiniteCheck,
    PendingStep,
    check_gradients,
)
from raypaml.training.outcome import StepOutcome, keep_outcome, skip_outcome
from raypaml.training.worker import COMPILING, Worker


def train_step(worker: Worker, batch: Batch) -> None:
    """Train on one global batch, of which `batch` is this rank's part.

    Compiled graphs have the sizes of a whole batch. A shorter one, the last of an epoch or one with broken samples,
    runs uncompiled; it is not padded, because BatchNorm and the loss would see the padding.

    Raises:
        FloatingPointError: logits are not finite; on a GPU those of the step before.
        DivergedError: with nonfinite=rollback, the step before was not finite on some rank; all ranks raise it.
    """
    if not worker.config.optim.compile:
        _step(worker, batch)
    elif batch.global_rows < worker.plan.global_batch_size:
        with torch.compiler.set_stance("force_eager"):
            _step(worker, batch)
    else:
        if not worker.compiled:
            worker.now(COMPILING)
        _step(worker, batch)
        worker.compiled = True


def _step(worker: Worker, batch: Batch) -> None:
    config, ranks = worker.config, worker.ranks
    check_labels(batch.labels, config.loss.scheme)  # on the host, so that nothing waits for a GPU
    sent, pieces = _send(worker, batch), _pieces(worker, batch)
    images, labels = sent.images, sent.labels
    twice = config.optim.micro_batch_size > 0 and len(pieces) > 1
    careful = config.run.nonfinite != "stop"
    buffers = Buffers(worker.model) if careful else None

    # --- Forward ----------------------------------------------------------------------------------------------
    with _without_gradients(worker.model) if twice else nullcontext():
        outputs = [_forward(worker, images[piece]) for piece in pieces]
    logits = torch.cat([*outputs, _no_logits(worker)]).detach()
    settle(worker)
    finite = finite_rows(logits)
    finite_check = FiniteCheck(HostCopy.of(finite), batch.keys, f"rank {ranks.rank}, {worker.place}")
    if careful:
        logits = logits.masked_fill(~finite[:, None], 0.0)  # the loss refuses others
    else:
        worker.finite_check = finite_check
        if ranks.device.type == "cpu":
            settle(worker)
    logits.requires_grad_()

    # --- Rejection and loss -----------------------------------------------------------------------------------
    loss, rejected = _loss(worker, batch, logits, labels)

    # --- Gradients --------------------------------------------------------------------------------------------
    (gradient,) = torch.autograd.grad(loss, logits)  # 0 for the logits that are only for ranking
    worker.optimizer.zero_grad(set_to_none=True)

    def output(number: int) -> Tensor:
        return _forward(worker, images[pieces[number]]) if twice else outputs[number]

    if config.optim.reproducible:
        lanes = ((output(number), gradient[piece]) for number, piece in enumerate(pieces))
        add_exactly(worker.model, lanes, ranks)
        if not careful:
            check_gradients(worker.model, finite_check.where)
    else:
        for number, piece in enumerate(pieces):
            with _without_reduction(worker) if number < len(pieces) - 1 else nullcontext():
                # DistributedDataParallel averages over ranks; the loss is already a share of the global mean
                output(number).backward(gradient[piece] * ranks.world_size)
        CLOCK.backward_ended(ranks.device)
        lay_out_gradients(worker.model)

    # --- Update -----------------------------------------------------------------------------------------------
    outcome = _outcome(worker, batch, sent, logits, loss, rejected)
    if buffers is None:
        _update(worker)
        keep_outcome(worker, outcome)
    else:
        check = DivergenceCheck.about(finite_check, finite, worker.model, ranks, worker.place)
        _update_where_finite(worker, buffers, check.bad.any())
        left_out = partial(skip_outcome, worker, outcome) if config.run.nonfinite == "skip" else None
        worker.finite_check = PendingStep(check, partial(keep_outcome, worker, outcome), left_out)


def settle(worker: Worker) -> None:
    """Wait until it is known whether the last step was finite, and complete it; with nonfinite=skip, or skip it.

    Raises:
        FloatingPointError: it was not; with nonfinite=rollback a DivergedError.
    """
    check, worker.finite_check = worker.finite_check, None
    if check is not None:
        check.settle()


@dataclass(frozen=True)
class _Sent:
    """A batch on the device, ready for the step."""

    images: Tensor
    """uint8 [B, 3, H, W], augmented, or float16 features [B, D, h, w] where these are kept."""
    labels: Tensor
    """int8 [B, K]; corrected entries are positive."""
    truth: Tensor | None
    """int8 [B, K] full labels, where they are known."""


def _send(worker: Worker, batch: Batch) -> _Sent:
    """Send a batch to the device; a GPU copies it while it computes the step before."""
    config, augmentation = worker.config, worker.config.augmentation
    labels = worker.corrections.apply(batch.labels, batch.rows)
    known = [] if batch.truth is None else [batch.truth]
    images, labels, flip, *known = send((batch.images, labels, batch.flip, *known), worker.ranks.device)
    if config.mirrors:
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    # once a step, so that both passes and all micro batches see the same images
    numbers = augmentation.numbers(config.data.augment_settings)
    images = augment(images, augmentation, numbers, Draws(config.run.seed, worker.state.epoch, batch.rows))
    return _Sent(images, labels, known[0] if known else None)


def _pieces(worker: Worker, batch: Batch) -> list[slice]:
    """The slices of the batch that pass through the network one by one: lanes, micro batches, or the whole part."""
    if worker.config.optim.reproducible:
        return lane_slices(batch.lane_sizes)
    size = worker.config.optim.micro_batch_size or max(1, len(batch.rows))
    return [slice(start, start + size) for start in range(0, max(1, len(batch.rows)), size)]


def _forward(worker: Worker, images: Tensor) -> Tensor:
    """Compute logits [b, K]; for no images by a pass of zeros, because all ranks must take part in collectives."""
    padded = images if len(images) else images.new_zeros((1, *images.shape[1:]))
    with autocast(worker.config.optim.precision, worker.ranks.device):
        logits: Tensor = worker.wrapped(padded)
    return logits[: len(images)]


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Within the block compute no gradients, and leave BatchNorm's running statistics unchanged."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    with torch.no_grad():
        yield
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value


def _without_reduction(worker: Worker) -> AbstractContextManager[None]:
    """Within the block gradients add up on this rank; with the last micro batch they are reduced over the ranks."""
    if worker.ranks.group is None:
        return nullcontext()
    unsynchronised: AbstractContextManager[None] = worker.wrapped.no_sync()  # type: ignore[operator]
    return unsynchronised


def _no_logits(worker: Worker) -> Tensor:
    """Logits of no images, [0, K] or [0, 2 K]: the result where a rank has no lane of a short last batch."""
    head = worker.model.head
    columns = head.out_channels * (1 if worker.model.rejection_alpha is None else 2)
    return head.weight.new_zeros((0, columns))


def _loss(worker: Worker, batch: Batch, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and rejected entries for the model's logits: [B, K], or [B, 2 K] with a second set for ranking."""
    config, state = worker.config.loss, worker.state
    ranking = None
    if worker.model.rejection_alpha is not None:
        logits, ranking = logits.chunk(2, 1)
    context = StepContext(
        epoch=state.epoch,
        epochs=worker.config.optim.epochs,
        step=state.step,
        steps=worker.plan.steps,
        warmup_epochs=config.warmup_epochs,
        delta_rel=config.delta_rel,
        continuous=config.schedule == "samples",
        global_rows=batch.global_rows,
        first_row=batch.first_row,
        group=worker.ranks.group,
        scope=config.rejection_scope,
        rounding=config.rejection_rounding,
        settings=all_settings(config.scheme, config.scheme_settings, config.scheme_defaults),
        ranking=None if ranking is None else ranking.detach(),
        known=worker.scheme_state.known(batch.rows, labels),
    )
    return scheme_loss(config.scheme, logits, labels, context)


def _outcome(worker: Worker, batch: Batch, sent: _Sent, logits: Tensor, loss: Tensor, rejected: Tensor) -> StepOutcome:
    return StepOutcome(
        rows=batch.rows,
        global_rows=batch.global_rows,
        labels=sent.labels,
        truth=sent.truth,
        logits=logits.detach()[:, : sent.labels.shape[1]],
        loss=loss.detach(),
        rejected=rejected,
        steps_done=worker.steps_done,
    )


def _update_where_finite(worker: Worker, buffers: Buffers, diverged: Tensor) -> None:
    """Call `_update`, but change nothing where `diverged`, a bool scalar on the device, is true."""
    buffers.restore_where(diverged)
    worker.optimizer.found_inf = diverged.float()  # type: ignore[attr-defined]  # as torch.amp.GradScaler sets it
    _update(worker)


def _update(worker: Worker) -> None:
    """Make one step of the optimizer."""
    optim = worker.config.optim
    if optim.clip_gradient:
        nn.utils.clip_grad_norm_(worker.model.parameters(), optim.clip_gradient)
    follow_schedule(worker.optimizer, optim, worker.steps_done, worker.plan.steps)
    worker.optimizer.step()
    if worker.average is not None:  # now, because the next forward pass changes them
        copy_buffers(worker.average, worker.model)
