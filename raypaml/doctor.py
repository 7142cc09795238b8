"""`python -m raypaml.doctor`: lists what would go wrong with a run, on a laptop or a cluster, each with its remedy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import SimpleNamespace

from raypaml.cli import Parser, command, run_command
from raypaml.config import TrainConfig
from raypaml.runs.run_flags import parse_run, spelled_out

_ABOUT = (
    "Check a run before it starts, and start Ray as the run would. Takes the flags of train. Exit code 1 if something "
    "would stop the run."
)


def parse(argv: Sequence[str]) -> tuple[TrainConfig, SimpleNamespace]:
    """The configuration of the run, and what is assumed about the machines."""
    return parse_run(spelled_out(argv), command("doctor"), _ABOUT, _add_own)


def _add_own(parser: Parser) -> None:
    about = "TFLOP/s that a worker sustains, for the estimate of hours; 0: a guess by device [0]"
    parser.add_argument("--tflops", type=float, default=0.0, metavar="X", help=about)
    about = "mean hours until a node, such as a spot instance, is lost, for the estimate of lost work [24]"
    parser.add_argument("--node-hours", type=float, default=24.0, metavar="X", help=about)


def main(argv: Sequence[str] | None = None) -> int:
    """Print every finding; returns 1 if any is fatal."""
    config, asked = parse(sys.argv[1:] if argv is None else argv)
    from raypaml.cluster.checks import FATAL, examine  # with torch, which --help does without

    fatal = 0
    for finding in examine(config, asked.tflops, asked.node_hours):
        print(finding, flush=True)
        fatal += finding.level == FATAL
    print(f"\n{fatal} fatal findings" if fatal else "\nnothing that would stop the run")
    return int(fatal > 0)


if __name__ == "__main__":
    run_command(main, command("doctor"))
