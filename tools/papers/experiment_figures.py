"""The table and the figures of an experiment with several schemes and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from raypaml.labels import GROUP_NAMES
from raypaml.reports.plots import BLUE, GREY, ORANGE, STYLE, panels, plots
from raypaml.runs.history import History
from tools.papers.claims import GAINS, Figures, Row, half_interval, points, title, value

MODES = ("none", "inference", "training")
SCHEMES = ("full", "an", "ll_r", "ll_ct", "ll_cp")
NAMES = ("All", *GROUP_NAMES)
MARKS = {"none": (GREY, "o"), "inference": (BLUE, "s"), "training": (ORANGE, "D")}


@dataclass(frozen=True)
class Findings:
    """The results for one way of hiding labels."""

    hiding: str
    figures: Figures
    curves: Mapping[Row, Mapping[int, Mapping[float, float]]]
    """mAP by row, seed and alpha at evaluation; the rows are those trained without (`none`) and with (`training`)
    BoostLU."""
    histories: Mapping[Row, Mapping[int, History]]
    """The epochs of each run, by row and seed."""


@dataclass(frozen=True)
class Line:
    """A row of the table, with means over seeds; NaN where there are none."""

    title: str
    seeds: int
    values: dict[str, float]
    half: float
    """Half the width of the 95 % interval of the mean mAP, in points."""


def table(figures: Figures) -> list[Line]:
    """Returns the rows of the table, with mAP in percent."""
    rows = [(scheme, mode) for scheme in SCHEMES for mode in MODES]
    return [_line(figures, row) for row in rows if figures.get(row)]


def _line(figures: Figures, row: Row) -> Line:
    per_seed = figures[row].values()
    names = sorted({name for by_name in per_seed for name in by_name})
    values = {name: float(np.mean([each[name] for each in per_seed if name in each])) for name in names}
    scores = 100 * np.array(list(value(figures, row, "All").values()))
    percent = {name: 100 * values[name] for name in (*NAMES, "recall", "precision") if name in values}
    return Line(title(row), len(scores), values | percent, half_interval(scores))


def map_figures(compared: Mapping[str, Any]) -> dict[str, float]:
    """Returns the table's figures of a comparison of maps, without those that could not be computed.

    Args:
        compared: what `explanations.explanation_figures.map_summary` returns.
    """
    figures = {
        "rank_correlation": compared["rank_correlation"]["p50"],
        "control": compared["rank_correlation_control"]["p50"],
        "scale_ratio": compared["scale_ratio"],
        "pointing_game": compared["localisation"]["pointing_game"],
        "chance": compared["localisation"]["pointing_game_chance"],
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


# --- Drawings -------------------------------------------------------------------------------------------------------


@mpl.rc_context(STYLE)
def overview(found: Sequence[Findings]) -> str:
    """Draws the test mAP of every scheme without BoostLU, with it at inference and trained with it; pale: each seed."""
    axes = panels(len(found))
    for axis, each in zip(axes, found, strict=True):
        for n, scheme in enumerate(SCHEMES):
            for shift, (mode, (colour, marker)) in zip((-0.22, 0, 0.22), MARKS.items(), strict=True):
                scores = 100 * np.array(list(value(each.figures, (scheme, mode), "All").values()))
                axis.plot(scores, np.full(len(scores), n + shift), marker, color=colour, alpha=0.35, ms=4)
                if len(scores):
                    label = {"none": "no BoostLU", "inference": "at inference", "training": "trained with it"}[mode]
                    axis.plot(scores.mean(), n + shift, marker, color=colour, ms=7, label=label if not n else None)
        axis.set(title=f"{each.hiding}: test mAP, %", yticks=range(len(SCHEMES)), ylim=(len(SCHEMES) - 0.5, -0.5))
        axis.set_yticklabels([title((scheme, "none")) for scheme in SCHEMES])
        axis.grid(axis="x", color=GREY, lw=0.4)
    return plots(*axes)


@mpl.rc_context(STYLE)
def alpha_curves(found: Sequence[Findings]) -> str:
    """Draws test mAP by alpha at evaluation; the line is the mean over seeds, the band their range."""
    axes = panels(len(found))
    for axis, each in zip(axes, found, strict=True):
        for scheme, colour in (("full", GREY), ("an", BLUE), ("ll_r", ORANGE)):
            for mode, style in (("none", "-"), ("training", "--")):
                by_seed = list(each.curves.get((scheme, mode), {}).values())
                if by_seed:
                    values = 100 * np.array([list(curve.values()) for curve in by_seed])
                    _band(axis, list(by_seed[0]), values, colour, style, title((scheme, mode)))
        axis.set(title=f"{each.hiding}: test mAP, % by alpha at evaluation", xlabel="alpha")
    return plots(*axes)


def _band(
    axis: Axes, x: Sequence[float], values: NDArray[np.float64], colour: Any, style: str, label: str | None
) -> None:
    """Draws the mean of several seeds as a line and their range as a band; `values` is [seeds, x]."""
    axis.plot(x, values.mean(0), style, color=colour, marker=".", label=label)
    axis.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)


@mpl.rc_context(STYLE)
def gains(found: Findings) -> str:
    """Draws the points of mAP gained in each class group: the mean over seeds and its 95 % interval."""
    axes = panels(len(GAINS))
    for axis, (better, base) in zip(axes, GAINS, strict=True):
        by_group = [np.array(list(points(found.figures, better, base, name).values())) for name in GROUP_NAMES]
        means = [values.mean() if len(values) else 0 for values in by_group]
        error = np.nan_to_num([half_interval(values) for values in by_group])
        bars = axis.bar(GROUP_NAMES, means, yerr=error, color=BLUE, ecolor=ORANGE, capsize=3)
        axis.bar_label(bars, [f"{mean:.1f}" for mean in means], label_type="center", color="white")
        axis.axhline(0, color=GREY, lw=0.8)
        axis.set_title(f"{found.hiding}, points: {title(better)} over {title(base)}")
    return plots(*axes)


@mpl.rc_context(STYLE)
def sweep(by_delta: Mapping[float, Mapping[int, Mapping[str, float]]]) -> str:
    """Draws mAP, and recall and precision of rejection, by delta_rel; pale marks are single seeds."""
    axes = panels(2)
    deltas = sorted(by_delta)
    for axis, names in ((axes[0], ("All",)), (axes[1], ("recall", "precision"))):
        for name, colour in zip(names, (BLUE, ORANGE), strict=False):
            values = [[100 * each.get(name, np.nan) for each in by_delta[delta].values()] for delta in deltas]
            axis.plot(deltas, [np.mean(each) for each in values], color=colour, marker="o", label=name)
            for delta, each in zip(deltas, values, strict=True):
                axis.plot([delta] * len(each), each, "o", color=colour, alpha=0.35, ms=4)
        axis.set(xscale="log", xlabel="delta_rel, % per epoch", xticks=deltas)
        axis.set_xticklabels([f"{delta:.3g}" for delta in deltas])
        axis.minorticks_off()
    axes[0].set_title("LL-R + BoostLU: test mAP, %")
    axes[1].set_title("its rejections, %")
    return plots(*axes)


def rejecting_runs(found: Findings) -> dict[str, list[History]]:
    """Returns the epochs of the runs that reject, by the title of the row."""
    rows = [(scheme, mode) for scheme in SCHEMES for mode in MODES]
    by_row = {title(row): list(found.histories.get(row, {}).values()) for row in rows if row[0].startswith("ll_")}
    return {name: histories for name, histories in by_row.items() if histories}
