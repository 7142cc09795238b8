"""Colours, panels and SVG text that all figures use, and the figures that several pages show."""

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

from raypaml.runs.history import History, column

BLUE, ORANGE, GREY = "#2f6db5", "#d9772b", "#b9c0c8"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "raypaml",  # the same figure gives the same bytes
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "text.parse_math": False,  # a dollar in the name of a run or a class is a dollar
}


@mpl.rc_context(STYLE)
def missed_positives(runs: Mapping[str, Sequence[History]]) -> str:
    """Draws for several runs, by epoch: the missed positives that were rejected, and precision and recall of rejection.

    Args:
        runs: for each name, the epochs of every seed; the line is their mean, the band their range.
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
            values = np.array([column(history[:epochs], key) for history in histories], np.float64)  # None: nan
            shown = np.flatnonzero(np.isfinite(values).all(0))
            x, values = shown + 1, times * values[:, shown]
            axis.plot(x, values.mean(0), color=f"C{n}", marker=".", label=name)
            axis.fill_between(x, values.min(0), values.max(0), color=f"C{n}", alpha=0.15, lw=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.set(title=words, xlabel="epoch", ylim=(0, 100) if times == 100 else (0, None))
    axes[0].legend(frameon=False, fontsize=7)
    return svg(figure)


@mpl.rc_context(STYLE)
def ap_by_annotations(
    annotations: NDArray[np.int64], class_group: NDArray[np.int64], runs: dict[str, NDArray[np.float64]]
) -> str:
    """AP of every class against its training annotations, with a panel for each run and the mean of each class group.

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
    """A figure with `count` panels side by side."""
    figure = Figure(figsize=(4.6 * count, 2.9), layout="constrained")
    return figure, [figure.add_subplot(1, count, n + 1) for n in range(count)]


def svg(figure: Figure) -> str:
    """The figure as an SVG element; the same figure gives the same text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
