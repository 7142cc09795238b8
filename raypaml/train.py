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
    # --help and --plan need none of these, which bring torch and ray
    from raypaml.training.job import plan_job, prepare_job

    if asked.plan:
        print(plan_job(config, say))
        return 0
    from raypaml.reports.progress import Display
    from raypaml.runs.run_length import is_finished

    with Display() as display:
        job = prepare_job(config, display.say)
        if not is_finished(job.folder, job.config):
            from raypaml.cluster.launch import fit

            if stopped := fit(job, command("train"), display):
                return 128 + stopped
        from raypaml.evaluation.summary import table  # with matplotlib and scipy, which no step waits for
        from raypaml.run_report.conclude import conclude_run

        result = conclude_run(job)
        display.conclude(result, job.folder / "report.html")
    print(f"{table(result)}\n\nReport: {job.folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    run_command(main, command("train"))
