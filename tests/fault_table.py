"""The table of faults that `make test-cluster` prints: each with its time to recover and its verdict."""

from __future__ import annotations

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
    """The rows, as Markdown."""
    lines = ["| fault | seconds to recover | result |", "| --- | ---: | --- |"]
    return "\n".join([*lines, *(f"| {row.fault} | {row.seconds:.0f} | {row.verdict} |" for row in ROWS)])
