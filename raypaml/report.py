"""`raypaml report`: writes the result and the report of a trained run again, from what is in its folder."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from raypaml.cli import Parser, command, run_command, show
from raypaml.extensions import add_import_flag
from raypaml.runs.run_files import REPORT


def parse(argv: Sequence[str]) -> Namespace:
    """Read the flags."""
    parser = Parser(prog=command("report"), description="Write result.json and report.html of a trained run again.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--data", default="", help="data set (folder of shards, index and vocabulary) [the run's]")
    add_import_flag(parser)
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report, and print the table of the result and the path of the page."""
    asked = parse(sys.argv[1:] if argv is None else argv)
    from raypaml.api.run import Run  # with torch and matplotlib
    from raypaml.evaluation.summary import table

    run = Run.open(asked.run)
    show(f"{table(run.report(data=asked.data))}\n\nReport: {run.folder / REPORT}")
    return 0


if __name__ == "__main__":
    run_command(main, command("report"))
