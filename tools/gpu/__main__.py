"""Checks training on this machine's GPU, or measures its speed, and prints one table.

    python -m tools.gpu check    # make gpu-check: is training right?
    python -m tools.gpu bench    # make gpu-bench: is training fast?
    python -m tools.gpu check bench --device cpu --small    # both in seconds

Neither needs Ray, nor raypaml to be installed; packages that the machine lacks are taken from the wheels in `wheels/`.
Every entry runs in a process of its own with a time limit; if it fails, its row has the error. The exit code is 1 if
any row is not as expected.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from raypaml.cli import Parser, run_command
from raypaml.outputs import output_folder
from tools.gpu.gpu_wheels import use_wheels

PROG = "python -m tools.gpu"
MARKS = {True: "ok", False: "NOT OK", None: ""}


def main() -> None:
    """Runs the entries of the sets that were asked for, and prints the table."""
    flags = Parser(prog=PROG, description=__doc__)
    flags.add_argument("sets", nargs="+", choices=("check", "bench"), metavar="check|bench", help="what to run")
    flags.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="device to check [cuda]")
    flags.add_argument(
        "--small", action="store_true", help="tiny data and models, and no code generated where a step is compiled"
    )
    flags.add_argument(
        "--only", default="", metavar="NAME,...", help="entries to run, by the first letters of their names [all]"
    )
    flags.add_argument(
        "--minutes", type=float, default=9.0, metavar="X", help="minutes that all entries may take together [9]"
    )
    flags.add_argument(
        "--out", default="", metavar="DIR", help="folder for the table, the logs and a trace [none is kept]"
    )
    asked = flags.parse()
    if asked.minutes <= 0:
        raise ValueError(f"minutes={asked.minutes}: must be more than 0")
    with tempfile.TemporaryDirectory() as folder:
        used = use_wheels(Path(folder) / "wheels")
        if used:
            print(f"from wheels/: {', '.join(used)}", file=sys.stderr)
        with output_folder(Path(asked.out or folder), goes_on=True) as logs:
            asked.logs = str(logs)
            rows = list(_run(asked))
    _conclude(rows, asked.out)


def _run(asked: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Runs the entries; yields the cells of each row as text, and also prints them at once to standard error."""
    from tools.gpu.gpu_entries import chosen_entries  # what it imports may come from the wheels
    from tools.gpu.gpu_rows import run_entry

    entries = chosen_entries(asked.sets, asked.only)
    deadline = time.monotonic() + 60 * asked.minutes
    for entry in entries:
        for row in run_entry(entry, asked, deadline - time.monotonic()):
            cells = (row.what, row.expected, row.result.replace("|", "/"), MARKS[row.passed])
            print("  ".join(cells), file=sys.stderr, flush=True)
            yield cells


def _conclude(rows: list[tuple[str, ...]], out: str) -> None:
    from raypaml.reports.tables import markdown

    table = markdown(["what", "expected", "result", ""], [list(row) for row in rows], left=4)
    print(table)
    if out:
        (Path(out) / "table.md").write_text(table + "\n")
    failed = sum(row[-1] == MARKS[False] for row in rows)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main, PROG)
