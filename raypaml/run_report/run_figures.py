"""Figures of one run as panels for a page: curves, rejections, drift from a reference, mAP by class group."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import MaxNLocator

from raypaml.counting import epoch_number
from raypaml.evaluation.result_records import GroupFigures
from raypaml.labels import FloatArray
from raypaml.reports.plots import BLUE, GREY, ORANGE, STYLE, panels, plots
from raypaml.reports.tables import figure as figure_text
from raypaml.run_report.training_figures import over_epochs
from raypaml.runs.history import History, column


@mpl.rc_context(STYLE)
def rejections(history: History) -> str:
    """Entries rejected per epoch and, where the truth is known, how many were missed positives."""
    known = history[0]["missed"] is not None
    axes = panels(2 if known else 1)
    epochs = [epoch_number(record["epoch"]) for record in history]
    rejected = [record["rejected"] for record in history]
    for axis in axes:
        over_epochs(axis, len(history))
    axes[0].bar(epochs, rejected, color=GREY, label="rejected")
    axes[0].set(title="rejected entries per epoch")
    if known:
        hits = [record["rejected_missed"] or 0 for record in history]
        axes[0].bar(epochs, hits, color=ORANGE, label="of them missed positives")
        judged = [record for record in history if record["rejection_precision"] is not None]
        for name, colour in (("precision", ORANGE), ("recall", BLUE)):
            values = 100 * np.array(column(judged, f"rejection_{name}"), np.float64)  # None: nan, which is not drawn
            axes[1].plot(
                [epoch_number(record["epoch"]) for record in judged], values, color=colour, marker=".", label=name
            )
        axes[1].set(title="precision and recall of rejection, %", ylim=(0, 100))
    return plots(*axes)


@mpl.rc_context(STYLE)
def drift(history: History) -> str:
    """How the maps compare with the reference's, by epoch: rank correlation, and the ratio of top attributions."""
    axes = panels(2)
    seen = [record for record in history if "drift" in record]
    for axis, name, title in (
        (axes[0], "rank_correlation", "rank correlation with the reference's maps"),
        (axes[1], "scale_ratio", "ratio of top attributions to the reference's"),
    ):
        values = np.array([dict(record["drift"])[name] for record in seen], np.float64)  # None: nan
        axis.plot([epoch_number(record["epoch"]) for record in seen], values, color=BLUE, marker=".")
        axis.axhline(1, color=GREY, lw=0.8)
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return plots(*axes)


@mpl.rc_context(STYLE)
def groups(result: GroupFigures) -> str:
    """Bars of the test mAP of the five class groups and of all classes."""
    (axis,) = panels(1)
    names = [*result["groups"], "All"]
    values = [100 * value for value in (*result["groups"].values(), result["mean_ap"])]
    bars = axis.bar(names, np.nan_to_num(values), color=[BLUE] * 5 + [ORANGE])
    axis.bar_label(bars, [figure_text(value, ".1f") for value in values], padding=2)
    axis.set(title="test mAP by class group, %", ylim=(0, 100))
    return plots(axis)


@mpl.rc_context(STYLE)
def calibration(bins: FloatArray) -> str:
    """A reliability diagram, and how many labels each bin of the predicted probability has; "" without any label.

    Args:
        bins: [bins, 3] as `metrics.thresholds.calibration_bins`: entries, sum of probabilities, positives.
    """
    entries, probabilities, positives = bins.T
    if not entries.any():
        return ""
    reliability, counts = panels(2)
    some = entries > 0
    reliability.plot([0, 100], [0, 100], color=GREY, ls="--", label="perfectly calibrated")
    x, y = (100 * values[some] / entries[some] for values in (probabilities, positives))
    reliability.plot(x, y, color=BLUE, marker=".", label="this model")
    reliability.set(
        title="positives among labels, %", xlabel="mean predicted probability, %", xlim=(0, 100), ylim=(0, 100)
    )
    edges = 100 * np.arange(len(bins)) / len(bins)
    width = 100 / len(bins)
    counts.bar(edges, entries, width, align="edge", color=GREY, label="labels")
    counts.bar(edges, positives, width, align="edge", color=ORANGE, label="of them positive")
    counts.set_yscale("log")
    counts.set(title="number of labels", xlabel="predicted probability, %", xlim=(0, 100), ylim=(0.8, None))
    return plots(reliability, counts)
