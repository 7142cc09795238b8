"""A run that is continued with another length: whether it can be, and which schedules change from there on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from raypaml.config import TrainConfig, rejecting_epochs
from raypaml.counting import number_of
from raypaml.losses.schemes import scheme_of
from raypaml.runs.history import read_history
from raypaml.runs.mirror import Mirror
from raypaml.runs.run_files import METRICS_FILE
from raypaml.runs.run_folder import stored_config
from raypaml.runs.run_length import length_of, length_text, reached, since_text
from raypaml.training.early_stopping import early_stop, stopped_by_callback
from raypaml.training.learning_rates import learning_rate


def going_on(folder: Path, config: TrainConfig, steps: int) -> str:
    """What to tell the user where a run is continued with another length; empty where it is not.

    Args:
        folder: the run's folder, which need not exist.
        config: the configuration that is asked for.
        steps: the number of steps of an epoch.

    Raises:
        ValueError: the run has already trained more epochs, or early stopping would end it at once.
    """
    before = stored_config(folder)
    if before is None or length_of(before) == length_of(config):
        return ""
    epoch, step = reached(folder, config.run.storage)
    _check(folder, config, epoch, step)
    change = f"{folder}: {length_text(length_of(config))} instead of {length_text(length_of(before))}"
    if epoch == config.optim.epochs:
        return f"{change}; all of them are trained, and the best is tested"
    effects = "; ".join(_effects(before, config, epoch * steps + step, steps))
    return f"{change}, {since_text(epoch, step)} on; {effects}"


def _check(folder: Path, config: TrainConfig, epoch: int, step: int) -> None:
    epochs, begun = config.optim.epochs, epoch + (step > 0)
    if epochs < begun:
        done = number_of(epoch, "epoch") + (f" and {number_of(step, 'step')}" if step else "")
        raise ValueError(f"epochs={epochs}: {folder} has trained {done}; give {begun} or more, or another --name")
    if not epoch:
        return
    if mirror := Mirror.of(config.run.storage, folder):
        mirror.pull(METRICS_FILE)
    history = read_history(folder)[:epoch]
    if why := early_stop(history, config.optim):
        remedy = "--patience 0 --stop-below 0, or larger ones, too"
        if stopped_by_callback(history, config.optim):
            remedy = "more --epochs"
        raise ValueError(f"epochs={epochs}: {folder} would train none of them, for it is {why}; give {remedy}")


def _effects(before: TrainConfig, config: TrainConfig, done: int, steps: int) -> Iterator[str]:
    """Which schedules follow the new length from step `done` on, and which do not; each part of a sentence."""
    was, now = (learning_rate(each.optim, done, steps) for each in (before, config))
    if was == now:
        yield "the learning rate of the next step is the same"
    else:
        yield f"the {config.optim.lr_schedule} learning rate is {now:.3g} of its highest, and not {was:.3g}"
    loss, scheme = config.loss, scheme_of(config.loss.scheme)
    if scheme.follows_length:
        yield f"what {scheme.name} moves from the first epoch to the last moves over the new length"
    if scheme.rejects_by == "rate" and not scheme.rate_is_constant:
        most = loss.delta_rel * rejecting_epochs(config.optim.epochs, loss.warmup_epochs)
        if most:  # else `nothing_rejected` says so
            yield f"rejection rises as before, to {most:g} % of all entries in the last epoch"
