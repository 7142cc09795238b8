"""The table of faults, with time to recover and verdict, of all that `make test-cluster` put to the test.

`make test-cluster` runs several processes of pytest beside each other. They add their rows to the file that
RAYPAML_FAULT_ROWS names, and `python -m tests.fault_table FILE` prints one table of them in the end. Without that
variable every process of pytest prints the table of its own rows.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "RAYPAML_FAULT_ROWS"


@dataclass(frozen=True)
class Row:
    """A fault that a run met."""

    fault: str
    seconds: float
    """From the fault to the first word of the workers that go on."""
    verdict: str
    """Whether the weights are those of the undisturbed run."""


ROWS: list[Row] = []
"""Of this process."""


def note(row: Row) -> None:
    """Add a row."""
    ROWS.append(row)
    if place := os.environ.get(FILE):
        test = os.environ.get("PYTEST_CURRENT_TEST", "").split("::")[0]
        with Path(place).open("a") as file:
            file.write(json.dumps([test, asdict(row)]) + "\n")


def rows_of(file: Path) -> list[Row]:
    """All processes' rows, those of one file of tests together, in the order in which they came."""
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [Row(**values) for _, values in sorted(found, key=lambda of_test: of_test[0])]


def table(rows: list[Row]) -> str:
    """The rows, as Markdown, "" for none; of a fault that was met several times the median and the longest time."""
    if not rows:
        return ""
    lines = ["| fault | seconds to recover | result |", "| --- | ---: | --- |"]
    for fault in dict.fromkeys(row.fault for row in rows):
        seconds = [row.seconds for row in rows if row.fault == fault]
        many = f" at most, {statistics.median(seconds):.0f} as a rule" if len(seconds) > 1 else ""
        times = f", {len(seconds)} times" if len(seconds) > 1 else ""
        verdicts = ", ".join(sorted({row.verdict for row in rows if row.fault == fault}))
        lines.append(f"| {fault}{times} | {max(seconds):.0f}{many} | {verdicts} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table(rows_of(Path(sys.argv[1]))))
