"""Panels as pages show them: title and legend as text that wraps, the drawing as SVG in the colours of the page.

A panel is a matplotlib Axes in a figure of its own, so that panels stand beside each other on a wide screen and below
each other on a narrow one. Colours of `TOKENS` become variables of `style.css`, which has them light and dark.
"""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter, LogFormatterMathtext

from raypaml.cli import visible

BLUE, ORANGE, GREY, GREEN, PURPLE, RED = "#2f6db5", "#b3560f", "#868f99", "#1a7f37", "#7d4cc2", "#b83a5e"
TOKENS = {BLUE: "blue", ORANGE: "orange", GREY: "grey", GREEN: "green", PURPLE: "purple", RED: "red"}
TOKENS |= {"#000000": "ink", "#ffffff": "page"}
"""The variable of `style.css` that stands for each colour of a drawing; any other colour is data and stays."""
_LINES = [BLUE, ORANGE, GREEN, PURPLE, RED, GREY]
CYCLE = len(_LINES)
"""Lines of a panel that have colours of their own; further ones are dashed."""
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": f"cycler('color', {_LINES})",
    "svg.hashsalt": "raypaml",  # the same figure gives the same bytes
    "svg.fonttype": "none",  # text stays text: it can be selected, found and read aloud
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "text.parse_math": False,  # a dollar in the name of a run or a class is a dollar
}
WIDTH, HEIGHT = 3.85, 2.5
"""Size of a panel in inches; 370 CSS pixels are about the width of a telephone, and a third of a wide page."""
_MOST_TOLD = 8
"""Lines, or bars, whose values the alternative text of a panel has."""


def panels(count: int) -> list[Axes]:
    """`count` panels, each an Axes in a figure of its own; `plots` makes HTML of them."""
    return [Figure(figsize=(WIDTH, HEIGHT), layout="constrained").add_subplot() for _ in range(count)]


def figure_of(axis: Axes) -> Figure:
    """The figure that a panel has for itself."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    return figure


def plots(*axes: Axes) -> str:
    """The panels as HTML `figure` elements; the same panels give the same text.

    The title of a panel becomes its caption, and a legend of everything that has a label stands below it. What a screen
    reader says is the title, the label of the x axis, and the first and last value of each line, or each bar's value.
    """
    return "".join(map(_plot, axes))


def _plot(axis: Axes) -> str:
    title, said, keys = axis.get_title(loc="left"), told(axis), ""
    axis.set_title("")
    for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
        kind, colour = _mark(handle)
        keys += f'<span class="key {kind}" style="--key: {variable(to_hex(colour))}">{escape(visible(name))}</span>'
    legend = f'<span class="legend">{keys}</span>' if keys else ""
    drawing = svg(figure_of(axis)).replace("<svg", f'<svg role="img" aria-label="{escape(visible(said))}"', 1)
    return f'<figure class="plot"><figcaption>{escape(visible(title))}{legend}</figcaption>{drawing}</figure>'


def _mark(handle: Any) -> tuple[str, Any]:
    """The kind of mark in a legend, and the colour, of a line, of bars, of a patch or of a collection."""
    if isinstance(handle, Line2D):
        if handle.get_linestyle() == "None" and handle.get_marker() != "_":  # which is a short line
            return "ring" if handle.get_markerfacecolor() == "none" else "dot", handle.get_color()
        return "dashes" if handle.get_linestyle() in ("--", ":", "-.") else "line", handle.get_color()
    colours = (handle[0] if isinstance(handle, BarContainer) else handle).get_facecolor()
    return "area", colours[0] if getattr(colours, "ndim", 1) == 2 else colours  # a collection has one for each part


def told(axis: Axes) -> str:
    """What the panel shows, in words: its title and label, and values where they are few."""
    parts = [axis.get_title(loc="left").replace("\n", " "), axis.get_xlabel().replace("\n", " ")]
    drawn = [line for line in axis.lines if line.get_transform() == axis.transData]  # and not by axhline or axvline
    lines = [line for line in drawn if np.size(line.get_xdata()) > 1]
    if len(lines) <= _MOST_TOLD:
        parts += map(_line_told, lines)
    for bars in axis.containers:
        if isinstance(bars, BarContainer) and len(bars) <= _MOST_TOLD:
            labels = axis.get_yticklabels() if bars.orientation == "horizontal" else axis.get_xticklabels()
            values = zip(labels, np.asarray(bars.datavalues), strict=False)
            parts.append(", ".join(f"{label.get_text()} {_value(value)}" for label, value in values))
    return ". ".join(filter(None, parts))


def _line_told(line: Line2D) -> str:
    x, y = (np.asarray(values) for values in (line.get_xdata(), line.get_ydata()))
    label = str(line.get_label())
    name = "" if label.startswith("_") else f"{label}: "
    return f"{name}{_value(y[0])} at {_value(x[0])}, {_value(y[-1])} at {_value(x[-1])}"


def _value(place: float | str) -> str:
    """A value on an axis: a number, or a name."""
    return place if isinstance(place, str) else f"{place:.4g}"


def variable(colour: str) -> str:
    """The CSS of a colour `#rrggbb`: a variable of `style.css` if it has one, with the light colour outside a page."""
    return f"var(--{TOKENS[colour]}, {colour})" if colour in TOKENS else colour


def svg(figure: Figure) -> str:
    """The figure as an SVG element; the same figure gives the same text."""
    for axis in (side for axes in figure.axes for side in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatterMathtext):  # its formulas would stand there as text
            axis.set_major_formatter("{x:,g}")
            axis.set_minor_formatter(LogFormatter())
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r"<[^!>][^>]*>", _in_page_colours, text)  # of tags only: a name in a text may look like a colour


def _in_page_colours(tag: re.Match[str]) -> str:
    plain = re.sub(r'^<g id="[^"]*"', "<g", tag[0])  # an id must not stand twice in a page
    return re.sub(r"(?<=: )#[0-9a-f]{6}(?=[;\"])", lambda colour: variable(colour[0]), plain)
