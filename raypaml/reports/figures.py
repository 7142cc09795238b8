"""Figures of a run as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

BLUE, ORANGE, GREY = "#2f6db5", "#d9772b", "#b9c0c8"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "raypaml",  # the same figure gives the same bytes
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}

History = list[dict[str, Any]]


@mpl.rc_context(STYLE)
def training_curves(history: History, best_epoch: int) -> str:
    """Training loss and validation mAP by epoch."""
    figure, (left, right) = panels(2)
    epochs = [record["epoch"] + 1 for record in history]
    left.plot(epochs, [record["loss"] for record in history], color=BLUE, marker=".")
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(title="training loss", xlabel="epoch", ylim=(0, None))
    scores = [100 * record["validation_mean_ap"] for record in history]
    right.plot(epochs, scores, color=BLUE, marker=".")
    right.plot([best_epoch + 1], [scores[best_epoch]], "o", mfc="none", color=ORANGE, ms=9, label="tested checkpoint")
    right.set(title="validation mAP, %", xlabel="epoch", ylim=(0, None))
    right.legend(frameon=False)
    return svg(figure)


@mpl.rc_context(STYLE)
def rejections(history: History) -> str:
    """Entries rejected per epoch and, where the truth is known, how many were missed positives."""
    known = history[0]["missed"] is not None
    figure, axes = panels(2 if known else 1)
    epochs = [record["epoch"] + 1 for record in history]
    rejected = [record["rejected"] for record in history]
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].bar(epochs, rejected, color=GREY, label="rejected")
    axes[0].set(title="rejected entries per epoch", xlabel="epoch")
    if known:
        hits = [record["rejected_missed"] for record in history]
        axes[0].bar(epochs, hits, color=ORANGE, label="of them missed positives")
        judged = [record for record in history if record["rejection_precision"] is not None]
        for name, colour in (("precision", ORANGE), ("recall", BLUE)):
            values = [100 * record[f"rejection_{name}"] for record in judged]
            axes[1].plot([record["epoch"] + 1 for record in judged], values, color=colour, marker=".", label=name)
        axes[1].set(title="rejection as a detector of missed positives, %", xlabel="epoch", ylim=(0, 100))
        axes[1].legend(frameon=False)
    axes[0].legend(frameon=False)
    return svg(figure)


@mpl.rc_context(STYLE)
def missed_positives(runs: Mapping[str, Sequence[History]]) -> str:
    """Rejected entries that were missed positives, and precision and recall of rejection, by epoch, of several runs.

    Args:
        runs: by name, the epochs of each of its seeds; a line is their mean, a band their range.
    """
    figure, axes = panels(3)
    drawings = (
        ("rejected_missed", 1, "missed positives rejected per epoch"),
        ("rejection_precision", 100, "precision of rejection, %"),
        ("rejection_recall", 100, "recall of rejection, %"),
    )
    for axis, (key, times, words) in zip(axes, drawings, strict=True):
        for n, (name, histories) in enumerate(runs.items()):
            epochs = min(len(history) for history in histories)
            values = np.array([[h[epoch][key] for epoch in range(epochs)] for h in histories], np.float64)  # None: nan
            shown = np.flatnonzero(np.isfinite(values).all(0))
            x, values = shown + 1, times * values[:, shown]
            axis.plot(x, values.mean(0), color=f"C{n}", marker=".", label=name)
            axis.fill_between(x, values.min(0), values.max(0), color=f"C{n}", alpha=0.15, lw=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(title=words, xlabel="epoch", ylim=(0, 100) if times == 100 else (0, None))
    axes[0].legend(frameon=False, fontsize=7)
    return svg(figure)


@mpl.rc_context(STYLE)
def drift(history: History) -> str:
    """Maps against the reference's, by epoch: rank correlation, and top attributions over the reference's."""
    figure, axes = panels(2)
    seen = [record for record in history if "drift" in record]
    for axis, name, title in (
        (axes[0], "rank_correlation", "rank correlation with the reference's maps"),
        (axes[1], "scale_ratio", "top attributions over the reference's"),
    ):
        values = [np.nan if record["drift"][name] is None else record["drift"][name] for record in seen]
        axis.plot([record["epoch"] + 1 for record in seen], values, color=BLUE, marker=".")
        axis.axhline(1, color=GREY, lw=0.8)
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return svg(figure)


@mpl.rc_context(STYLE)
def groups(result: dict[str, Any]) -> str:
    """Bars of the five class groups and all classes."""
    figure, (axis,) = panels(1)
    names = [*result["groups"], "All"]
    values = [100 * value for value in (*result["groups"].values(), result["mean_ap"])]
    bars = axis.bar(names, values, color=[BLUE] * 5 + [ORANGE])
    axis.bar_label(bars, fmt="%.1f", padding=2)
    axis.set(title="test mAP by class group, %", ylim=(0, 105))
    return svg(figure)


@mpl.rc_context(STYLE)
def ap_by_annotations(
    annotations: NDArray[np.int64], class_group: NDArray[np.int64], runs: dict[str, NDArray[np.float64]]
) -> str:
    """AP of every class against its training annotations, a panel a run; each group's mean as a line over its classes.

    Args:
        annotations: [K] training labels of each class.
        class_group: [K] 1..5.
        runs: [K] AP by the run's name, nan where not scored.
    """
    figure, axes = panels(len(runs))
    for axis, (name, ap) in zip(axes, runs.items(), strict=True):
        x = np.maximum(annotations, 0.5)  # a class without annotations at the left of a logarithmic axis
        axis.scatter(x, 100 * ap, s=5, color=BLUE, alpha=0.5, linewidths=0)
        for group in np.unique(class_group):
            mine = (class_group == group) & ~np.isnan(ap)
            if mine.any():
                mean, centre = 100 * ap[mine].mean(), np.exp(np.log(x[mine]).mean())
                axis.plot([x[mine].min(), x[mine].max()], [mean, mean], color=ORANGE, lw=2)
                axis.annotate(f"G{group}\n{mean:.1f}", (centre, 103), ha="center", va="bottom", color=ORANGE, size=7)
        axis.set(title=f"{name}: AP, %", xlabel="training annotations of the class", xscale="log", ylim=(-3, 120))
    return svg(figure)


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels side by side."""
    figure = Figure(figsize=(4.6 * count, 2.9), layout="constrained")
    return figure, [figure.add_subplot(1, count, n + 1) for n in range(count)]


def svg(figure: Figure) -> str:
    """The figure as an SVG element; the same figure gives the same text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
