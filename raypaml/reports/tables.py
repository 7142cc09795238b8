"""Numbers as people read them: percent, Markdown tables, intervals over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def figure(value: float | None, form: str = ".2f") -> str:
    """Formats a number; None and NaN, such as the precision of no rejections, become a dash.

    Args:
        value: the number.
        form: a format specification of Python, such as `.4g`, or `+.2f` for a difference.
    """
    return "–" if value is None or math.isnan(value) else format(value, form)


def percent(value: float | None, form: str = ".2f") -> str:
    """0.8123 -> 81.23; a dash where there is no value."""
    return figure(None if value is None else 100 * value, form)


def markdown(names: list[str], rows: list[list[str]], left: int = 0) -> str:
    """A Markdown table; the first `left` columns are aligned left, the others right."""
    widths = [max(len(cell) for cell in column) for column in zip(names, *rows, strict=True)]
    rule = [("-" * width if n < left else "-" * (width - 1) + ":") for n, width in enumerate(widths)]
    lines = [
        [
            cell.ljust(width) if n < left else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in (names, rule, *rows)
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def seed_interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean of at least two paired differences, and the ends of its 95 % interval (Student's t)."""
    from scipy import stats  # slow to import, and only for several seeds

    mean = statistics.fmean(differences)
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    return mean, mean - float(half), mean + float(half)
