"""The table of faults that each process of `make test-cluster` prints, with time to recover and verdict."""

from __future__ import annotations

import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A fault that a run met."""

    fault: str
    seconds: float
    """From the fault to the first word of the workers that go on."""
    verdict: str
    """Whether the weights are those of the undisturbed run."""


ROWS: list[Row] = []


def note(row: Row) -> None:
    """Add a row."""
    ROWS.append(row)


def table() -> str:
    """The rows, as Markdown; of a fault that was met several times the median and the longest time."""
    lines = ["| fault | seconds to recover | result |", "| --- | ---: | --- |"]
    for fault in dict.fromkeys(row.fault for row in ROWS):
        seconds = [row.seconds for row in ROWS if row.fault == fault]
        many = f" at most, {statistics.median(seconds):.0f} as a rule" if len(seconds) > 1 else ""
        times = f", {len(seconds)} times" if len(seconds) > 1 else ""
        verdicts = ", ".join(sorted({row.verdict for row in ROWS if row.fault == fault}))
        lines.append(f"| {fault}{times} | {max(seconds):.0f}{many} | {verdicts} |")
    return "\n".join(lines)
