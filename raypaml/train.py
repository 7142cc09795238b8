"""`python -m raypaml.train`: a training run from its command line to its report, on a laptop or a cluster."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from raypaml.cli import Parser, command, run_command, say
from raypaml.config import TrainConfig
from raypaml.runs.run_flags import parse_run, spelled_out

_ABOUT = "Train a multi-label image classifier from partial labels: CAM head, BoostLU, large-loss rejection."


def parse(argv: Sequence[str]) -> tuple[TrainConfig, Any]:
    """The configuration asked for, and whether only to plan it."""
    return parse_run(spelled_out(argv), command("train"), _ABOUT, _add_plan)


def _add_plan(parser: Parser) -> None:
    about = "print parameters, map sizes, memory and the images per second needed; start nothing"
    parser.add_argument("--plan", action="store_true", help=about)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, test, report."""
    config, asked = parse(sys.argv[1:] if argv is None else argv)
    if asked.plan:
        from raypaml.training.job import plan_job  # with torch, which --help does without

        print(plan_job(config, say))
        return 0
    from raypaml.api.run import Run

    run = Run.train(config)
    if run.stopped:
        return 128 + run.stopped
    from raypaml.evaluation.summary import table

    assert run.result is not None
    print(f"{table(run.result)}\n\nReport: {run.folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    run_command(main, command("train"))
