"""Panels of how a run was trained, by epoch: loss, validation, learning rates, rejection rate, time, and cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from raypaml.counting import epoch_number
from raypaml.labels import FloatArray
from raypaml.reports.plots import BLUE, GREEN, ORANGE, STYLE, panels, plots
from raypaml.runs.history import VALIDATION_MEAN_AP, EpochRecord, History, column
from raypaml.runs.run_cost import RunCost


@mpl.rc_context(STYLE)
def training_curves(history: History, best_epoch: int) -> str:
    """Training loss, validation mAP, learning rates, and the share of entries rejected, where they were recorded."""
    loss, validation, rates, rejection = panels(4)
    epochs = _epochs(history)
    loss.plot(epochs, [record["loss"] for record in history], color=BLUE, marker=".", label="mean over samples")
    loss.set(title="training loss", ylim=(0, None))
    scores = _percent(history, VALIDATION_MEAN_AP)
    validation.plot(epochs, scores, color=BLUE, marker=".", label="validation mAP")
    _mark_tested(validation, epoch_number(best_epoch))
    validation.set(title="validation mAP, %", ylim=score_limits(scores))
    shown = [loss, validation]
    if any("learning_rate" in record for record in history):
        rates.plot(epochs, _values(history, "learning_rate"), color=BLUE, marker=".", label="backbone")
        rates.plot(epochs, _values(history, "head_learning_rate"), color=ORANGE, marker=".", label="head")
        rates.set(title="learning rate at the end of the epoch", ylim=(0, None))
        shown.append(rates)
    if any(record.get("rejection_rate") for record in history):
        rejection.plot(epochs, _percent(history, "rejection_rate"), color=BLUE, marker=".", label="rejected")
        rejection.set(title="share of all entries rejected, %", ylim=(0, None))
        shown.append(rejection)
    for axis in shown:
        over_epochs(axis, len(history))
    return plots(*shown)


@mpl.rc_context(STYLE)
def time_and_cost(history: History, usage: Sequence[EpochRecord], cost: RunCost, best_epoch: int) -> str:
    """Seconds of every epoch's training and what they were spent on, and validation mAP over the hours of the workers.

    Args:
        history: the records of the epochs.
        usage: the same with time and memory of every epoch (`run_page.usage_by_epoch`).
        cost: the cost of the run.
        best_epoch: the tested epoch, from 0.
    """
    time, price = panels(2)
    seconds = np.array([record["epoch_seconds"] for record in usage])
    under, epochs = np.zeros(len(usage)), _epochs(history)
    waiting, talking = (
        seconds * np.nan_to_num(_values(usage, name)) for name in ("data_wait_share", "collective_share")
    )
    parts = ((seconds - waiting - talking, BLUE, "computing"), (waiting, ORANGE, "waiting for data"))
    for part, colour, label in (*parts, (talking, GREEN, "in collectives")):
        time.bar(epochs, part, bottom=under, color=colour, label=label)
        under = under + part
    time.set(title="seconds of training, by epoch", ylim=(0, None))
    over_epochs(time, len(history))
    hours = np.array([record.get("held_worker_seconds", math.nan) for record in history]) / 3600
    if np.isnan(hours).all():
        return plots(time)
    scores = _percent(history, VALIDATION_MEAN_AP)
    price.plot(hours, scores, color=BLUE, marker=".", label="after each epoch")
    _mark_tested(price, float(hours[best_epoch]))
    price.set(title="validation mAP, %, by cost", xlabel=cost["unit"], ylim=score_limits(scores), xlim=(0, None))
    return plots(time, price)


def score_limits(percents: FloatArray) -> tuple[float, float]:
    """The ends of an axis of AP in percent: near the values rather than at 0, and never above 100."""
    known = percents[np.isfinite(percents)]
    if not len(known):
        return 0.0, 100.0
    margin = max(1.0, 0.15 * (known.max() - known.min()))
    return max(0.0, math.floor(known.min() - margin)), min(100.0, math.ceil(known.max() + margin))


def _mark_tested(axis: Axes, at: float) -> None:
    """A line across the panel at the tested checkpoint."""
    axis.axvline(at, color=ORANGE, ls="--", lw=1.2, label="tested checkpoint")


def over_epochs(axis: Axes, count: int) -> None:
    """Make the x axis one of whole epochs, with room beside the first and the last."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set(xlabel="epoch", xlim=(0.4, count + 0.6))


def _epochs(history: History) -> list[int]:
    return [epoch_number(record["epoch"]) for record in history]


def _values(history: Sequence[EpochRecord], key: str) -> FloatArray:
    """A figure of all epochs; NaN, which is not drawn, where a record has none."""
    return np.array(column(history, key), np.float64)


def _percent(history: History, key: str) -> FloatArray:
    return 100 * _values(history, key)
