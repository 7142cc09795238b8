"""The figures that several pages show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from raypaml.reports.plots import BLUE, CYCLE, ORANGE, STYLE, panels, plots, svg
from raypaml.runs.history import History, column


@mpl.rc_context(STYLE)
def missed_positives(runs: Mapping[str, Sequence[History]]) -> str:
    """Draws for several runs, by epoch: the missed positives that were rejected, and precision and recall of rejection.

    Args:
        runs: for each name, the epochs of every seed; the line is their mean, the band their range.
    """
    axes = panels(3)
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
            axis.plot(x, values.mean(0), ("-", "--", ":")[n // CYCLE % 3], color=f"C{n}", marker=".", label=name)
            axis.fill_between(x, values.min(0), values.max(0), color=f"C{n}", alpha=0.15, lw=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.set(title=words, xlabel="epoch", ylim=(0, 100) if times == 100 else (0, None))
    return plots(*axes)


@mpl.rc_context(STYLE)
def ap_by_annotations(
    annotations: NDArray[np.int64], class_group: NDArray[np.int64], runs: dict[str, NDArray[np.float64]]
) -> str:
    """AP of every class against its training annotations, with a panel for each run and the mean of each class group.

    Returns an SVG that is a file of its own.

    Args:
        annotations: [K] training labels of each class.
        class_group: [K] 1..5.
        runs: [K] AP by the run's name, nan where not scored.
    """
    figure = Figure(figsize=(4.6 * len(runs), 2.9), layout="constrained")
    for n, (name, ap) in enumerate(runs.items(), start=1):
        axis = figure.add_subplot(1, len(runs), n)
        x = np.maximum(annotations, 0.5)  # a class without annotations at the left of a logarithmic axis
        axis.scatter(x, 100 * ap, s=5, color=BLUE, alpha=0.5, linewidths=0, clip_on=False)
        for group in np.unique(class_group):
            mine = (class_group == group) & ~np.isnan(ap)
            if mine.any():
                mean, centre = 100 * ap[mine].mean(), np.exp(np.log(x[mine]).mean())
                axis.plot([x[mine].min(), x[mine].max()], [mean, mean], color=ORANGE, lw=2)
                said = f"G{group}\n{mean:.1f}"
                axis.text(float(centre), 102, said, ha="center", va="bottom", color=ORANGE, size=7)
        axis.set_title(f"{name}: AP, %", pad=28)  # above the names and means of the groups
        axis.set(xlabel="training annotations of the class", xscale="log", ylim=(0, 100))
    return svg(figure)
