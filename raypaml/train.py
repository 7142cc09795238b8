"""`python -m raypaml.train`: trains and tests a run and writes its report, on a laptop or a cluster."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from raypaml.cli import Parser, command, requested, run_command, say, show
from raypaml.config import TrainConfig
from raypaml.runs.idle_settings import idle_settings
from raypaml.runs.run_files import REPORT
from raypaml.runs.run_flags import parse_run, spelled_out

_ABOUT = "Train a multi-label image classifier from partial labels: CAM head, BoostLU, large-loss rejection."


@dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """What the command's own flags ask for."""

    plan: bool
    """Whether only to print what the run needs, and start nothing."""


def parse(argv: Sequence[str]) -> tuple[TrainConfig, TrainFlags]:
    """The configuration of the run, and what the other flags ask for."""
    about = "print parameters, map sizes, memory and the images per second that are needed, and start nothing"

    def add_plan(parser: Parser) -> None:
        parser.add_argument("--plan", action="store_true", help=about)

    base, own = parse_run(spelled_out(argv), command("train"), _ABOUT, add_plan)
    for line in idle_settings(base.config, base.given):
        say(line)
    return base.config, requested(TrainFlags, own)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and test, and print the table of the result and the path of the report."""
    config, asked = parse(sys.argv[1:] if argv is None else argv)
    if asked.plan:
        from raypaml.training.job import plan_job  # with torch, which --help does without

        show(plan_job(config, say))
        return 0
    from raypaml.api.run import Run

    run = Run.train(config)
    if run.stopped:
        return 128 + run.stopped
    from raypaml.evaluation.summary import table

    assert run.result is not None
    show(f"{table(run.result)}\n\nReport: {run.folder / REPORT}")
    return 0


if __name__ == "__main__":
    run_command(main, command("train"))
