"""`raypaml report`: the result and the report of a finished run, written again from what is in its folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raypaml.cli import Parser, command, run_command, say
from raypaml.extensions import add_import_flag
from raypaml.runs.run_folder import stored_config


def parse(argv: Sequence[str]) -> Any:
    """The flags."""
    parser = Parser(prog=command("report"), description="Write result.json and report.html of a finished run again.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--data", default="", help="folder of shards, index and vocabulary [the run's]")
    add_import_flag(parser)
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report, print the table, and say where."""
    asked = parse(sys.argv[1:] if argv is None else argv)
    config = stored_config(asked.run)
    if config is None:
        raise ValueError(f"{asked.run}: not the folder of a run; it has no config.json")
    from raypaml.data.data_folder import open_folder, resolve_data
    from raypaml.evaluation.summary import table
    from raypaml.run_report.conclude import conclude_run  # with torch and matplotlib
    from raypaml.training.job import Job

    data = open_folder(resolve_data(asked.data or config.data.data, say), **config.data.opening)
    result = conclude_run(Job(config.override({"name": asked.run.resolve().name}), data, asked.run))
    print(f"{table(result)}\n\nReport: {asked.run / 'report.html'}")
    return 0


if __name__ == "__main__":
    run_command(main, command("report"))
