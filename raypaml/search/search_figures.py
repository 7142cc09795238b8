"""Figures of a search as panels for its page."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from raypaml.counting import epoch_number, number_of
from raypaml.reports.plots import BLUE, GREY, ORANGE, STYLE, figure_of, panels, plots
from raypaml.runs.history import VALIDATION_MEAN_AP, column
from raypaml.search.search_folder import Outcome
from raypaml.search.spaces import Space, Value

LABEL_LETTERS = 22
"""The most letters of a line beside an axis, which is as long as a panel is high."""


@mpl.rc_context(STYLE)
def score_map(outcomes: Sequence[Outcome], epoch: int, spaces: Sequence[Space]) -> str:
    """Validation mAP of all comparable trials at the same epoch over the first two searched ranges, or over one."""
    x, *rest = spaces
    scores = [100 * one.history[epoch - 1][VALIDATION_MEAN_AP] for one in outcomes]
    places: list[list[Value]] = [[dict(one.trial.values)[space.field] for space in spaces] for one in outcomes]
    (axis,) = panels(1)
    if rest:
        across, up = zip(*places, strict=True)
        points = axis.scatter(across, up, c=scores, cmap="viridis", s=120, edgecolors="white")
        figure_of(axis).colorbar(points, ax=axis).set_label("validation mAP, %", labelpad=9)
        for place, score in zip(places, scores, strict=True):
            axis.annotate(
                f"{score:.1f}", (place[0], place[1]), xytext=(8, 0), textcoords="offset points", va="center", size=7
            )
    else:
        axis.plot([place[0] for place in places], scores, "o", color=BLUE)
    axis.set(xlabel=_label(x), ylabel=_label(rest[0]) if rest else "validation mAP, %")
    axis.set(title=f"validation mAP after {number_of(epoch, 'epoch')}, which all reached")
    _scale(axis, x, "x")
    if rest:
        _scale(axis, rest[0], "y")
    return plots(axis)


def _label(space: Space) -> str:
    return f"{space.name}\n" + textwrap.fill(f"({space.unit})", LABEL_LETTERS) if space.unit else space.name


def _scale(axis: Axes, space: Space, which: str) -> None:
    if space.distribution == "log":
        axis.set(**{f"{which}scale": "log"})
        getattr(axis, f"{which}axis").set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        getattr(axis, f"{which}axis").set_minor_formatter(FuncFormatter(lambda *_: ""))
    axis.margins(0.15)


@mpl.rc_context(STYLE)
def trial_curves(outcomes: Sequence[Outcome], best: Outcome | None, own: Outcome | None) -> str:
    """Validation mAP, rejected entries and, where known, the share of missed positives in them, by epoch and trial."""
    known = any(record["missed"] is not None for one in outcomes for record in one.history)
    others = [one for one in outcomes if one is not best and one is not own]
    axes = panels(3 if known else 2)
    names = [VALIDATION_MEAN_AP, "rejected", "rejection_precision"]
    titles = ["validation mAP, %", "rejected entries per epoch", "missed positives among the rejected, %"]
    for axis, name, title in zip(axes, names, titles, strict=False):
        scale = 1 if name == "rejected" else 100
        for one in outcomes:
            colour, width, label = _line(one, best, own, others)
            known_values = [(n, value) for n, value in enumerate(column(one.history, name)) if value is not None]
            epochs = [epoch_number(n) for n, _ in known_values]
            values = [scale * value for _, value in known_values]
            axis.plot(epochs, values, color=colour, lw=width, label=label, zorder=width)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.yaxis.set_major_formatter("{x:,g}")
        axis.set(title=title, xlabel="epoch")
    return plots(*axes)


def _line(
    one: Outcome, best: Outcome | None, own: Outcome | None, others: list[Outcome]
) -> tuple[str, float, str | None]:
    """Colour, width and label of a trial's line; of the others the first has the label for all."""
    if one is best:
        return ORANGE, 2.0, f"best{', the starting point' if one is own else ''}: {one.trial.name}"
    if one is own:
        return BLUE, 1.9, f"starting point: {one.trial.name}"
    return GREY, 0.9, "other trials" if one is others[0] else None


@mpl.rc_context(STYLE)
def alpha_curves(outcomes: Sequence[Outcome], best: Outcome | None, own: Outcome | None) -> str:
    """Validation mAP of finished trials by alpha at evaluation."""
    (axis,) = panels(1)
    others = [one for one in outcomes if one is not best and one is not own]
    for one in outcomes:
        colour, width, label = _line(one, best, own, others)
        values = [100 * ap for ap in one.curve.values()]
        axis.plot(list(one.curve), values, color=colour, lw=width, label=label, marker=".", zorder=width)
    axis.set(title="validation mAP by alpha at evaluation, %", xlabel="alpha")
    return plots(axis)


@mpl.rc_context(STYLE)
def importances(shares: dict[str, float]) -> str:
    """Bars of the importance of each field; `shares` are 0..1."""
    (axis,) = panels(1)
    bars = axis.barh(list(shares), 100 * np.array(list(shares.values())), color=BLUE)
    axis.bar_label(bars, fmt="%.0f", padding=2)
    axis.set(title="importance of each field, %", xlim=(0, 110))
    axis.invert_yaxis()
    return plots(axis)
