"""`python -m raypaml.doctor`: lists what would go wrong with a run, on a laptop or a cluster, each with its remedy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raypaml.bounds import between
from raypaml.cli import Parser, command, requested, run_command, show
from raypaml.config import TrainConfig
from raypaml.counting import number_of
from raypaml.runs.run_flags import parse_run, spelled_out

_ABOUT = (
    "Check a run before it starts, and start Ray as the run would. Takes the flags of train. With --file, check a "
    "cluster file. Exit code 1 if something would stop the run or the cluster."
)


@dataclass(frozen=True, kw_only=True)
class DoctorFlags:
    """What the command's own flags ask for."""

    file: Path | None
    """Cluster file that is checked instead of a run."""
    describes_run: bool
    """Whether a recipe, a configuration or settings of a run were given, other than data and storage."""
    addresses: tuple[str, ...]
    """Data and storage, where they were given."""
    tflops: float
    """TFLOP/s that a worker sustains; 0 for a guess by device."""
    node_hours: float
    """Mean hours until a node is lost."""


def parse(argv: Sequence[str]) -> tuple[TrainConfig, DoctorFlags]:
    """The configuration of the run, and what the other flags ask for."""
    base, own = parse_run(spelled_out(argv), command("doctor"), _ABOUT, _add_own)
    addresses = {name: str(base.given[name]) for name in ("data", "storage") if name in base.given}
    own.addresses = tuple(addresses.values())
    own.describes_run = bool(set(base.given) - set(addresses) or own.recipe or own.config)
    return base.config, requested(DoctorFlags, own)


def _add_own(parser: Parser) -> None:
    about = "TFLOP/s that a worker sustains, for the estimate of hours; 0: a guess by device [0]"
    parser.add_argument("--tflops", type=between(float, 0, 10**6), default=0.0, metavar="X", help=about)
    about = "mean hours until a node, such as a spot instance, is lost, for the estimate of lost work [24]"
    parser.add_argument("--node-hours", type=between(float, 0.01, 10**6), default=24.0, metavar="X", help=about)
    about = "check a cluster file (for KubeRay or `ray up`) instead of a run, and start nothing; for AWS, the account "
    about += "is asked too, and about the buckets of --data and --storage"
    parser.add_argument("--file", type=Path, metavar="FILE", help=about)


def main(argv: Sequence[str] | None = None) -> int:
    """Print every finding; returns 1 if any is fatal."""
    config, asked = parse(sys.argv[1:] if argv is None else argv)
    if asked.file and asked.describes_run:
        raise ValueError(
            "--file checks a cluster file alone, with the command in it; leave recipe and settings out (but --data and "
            "--storage, whose buckets are looked for where the file is for AWS)"
        )
    from raypaml.cluster.checks import FATAL, examine  # with torch, which --help does without
    from raypaml.cluster.cluster_files import examine_file

    fatal = 0
    findings = (
        examine_file(asked.file, asked.addresses) if asked.file else examine(config, asked.tflops, asked.node_hours)
    )
    for finding in findings:
        show(finding)
        fatal += finding.level == FATAL
    stopped = "cluster" if asked.file else "run"
    show(f"\n{number_of(fatal, 'fatal finding')}" if fatal else f"\nnothing that would stop the {stopped}")
    return int(fatal > 0)


if __name__ == "__main__":
    run_command(main, command("doctor"))
