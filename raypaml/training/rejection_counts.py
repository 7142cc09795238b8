"""How many entries a run will reject, told before it starts, and why it may never reject any."""

from __future__ import annotations

from raypaml.config import TrainConfig, rejecting_epochs
from raypaml.data.index import Index
from raypaml.data.plan import Plan, default_lanes
from raypaml.losses.large_loss import scheduled_rate
from raypaml.losses.schemes import read_settings, scheme_of
from raypaml.losses.selection import rejection_count


def plan_of(config: TrainConfig, index: Index) -> Plan:
    """Plan the training split, without mirroring and shuffle windows, which do not change sizes."""
    size = config.data.global_batch_size
    return Plan(num_samples=len(index), global_batch_size=size, lanes=config.data.lanes or default_lanes(size))


def step_parts(config: TrainConfig, index: Index) -> list[int]:
    """Number of images of each worker in a full step."""
    plan, workers = plan_of(config, index), config.run.workers
    return [len(plan.epoch(0, rank, workers)[0].rows) for rank in range(workers)]


def most_rejected(config: TrainConfig, index: Index) -> int:
    """Entries that all workers together reject in a full step at the end of the run; 0 for schemes without a rate."""
    loss, steps = config.loss, plan_of(config, index).steps
    rate = scheduled_rate(
        loss.scheme,
        loss.delta_rel,
        epoch=config.optim.epochs - 1,
        step=steps - 1,
        steps=steps,
        warmup_epochs=loss.warmup_epochs,
        continuous=loss.schedule == "samples",
    )
    parts = step_parts(config, index)
    batches = [sum(parts)] if loss.rejection_scope == "global" else parts
    return sum(rejection_count(rate, rows * index.num_classes, loss.rejection_rounding) for rows in batches)


def nothing_rejected(config: TrainConfig, index: Index) -> str:
    """Why a scheme that rejects will reject nothing in this run, in a sentence; empty otherwise.

    Whether a loss ever exceeds a threshold (ll_r_abs and its kin) cannot be told before training.
    """
    why, _ = _cause(config, index)
    return why and f"{config.loss.scheme} rejects nothing in this whole run: {why}; it trains as scheme an does"


def nothing_was_rejected(config: TrainConfig, index: Index, epochs: int) -> str:
    """Why a scheme that rejects has rejected nothing in the epochs that a run has, and the remedy, in sentences.

    Args:
        config: the configuration of the run.
        index: its training split.
        epochs: the epochs that it has trained, fewer than asked for where it stopped early.

    Returns:
        The sentences; empty for a scheme that never rejects.
    """
    loss = config.loss
    scheme = scheme_of(loss.scheme)
    if not scheme.rejects_by:
        return ""
    why, remedy = _cause(config.override({"epochs": epochs}), index)
    if index.num_labels == len(index) * index.num_classes:
        why, remedy = "every training label is observed, and only unobserved ones are rejected", "use --scheme an"
    elif not why and scheme.rejects_by == "threshold":
        start = (scheme.defaults | read_settings(scheme.name, loss.scheme_settings))["threshold"]
        why = f"no loss of an unobserved entry exceeded the threshold, which begins at {start:g} and falls"
        remedy = "give a smaller threshold or a larger delta_abs (--scheme-settings)"
    elif not why:
        return f"{loss.scheme} rejected nothing in this run; its settings do not tell why."
    return f"{loss.scheme} rejected nothing in this run, because {why}. To have entries rejected, {remedy}."


def _cause(config: TrainConfig, index: Index) -> tuple[str, str]:
    """Why the settings of a scheme that rejects let it reject nothing, and the remedy; two empty texts otherwise."""
    loss, epochs = config.loss, config.optim.epochs
    rejects_by = scheme_of(loss.scheme).rejects_by
    if not rejects_by:
        return "", ""
    if not rejecting_epochs(epochs, loss.warmup_epochs):
        why = f"warmup_epochs={loss.warmup_epochs} leaves none of epochs={epochs} that rejects"
        return why, "train for more --epochs, or give a smaller --warmup-epochs"
    if rejects_by == "rate" and not loss.delta_rel:
        return "delta_rel=0", "give a larger --delta-rel"
    if rejects_by == "rate" and loss.rejection_rounding == "half_up" and not most_rejected(config, index):
        rows = min(config.data.global_batch_size, len(index))
        why = f"delta_rel={loss.delta_rel:g} % of {rows} x {index.num_classes} entries is rounded to 0 by half_up"
        return why, "give a larger --delta-rel, or --rejection-rounding up"
    return "", ""
