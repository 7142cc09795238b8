"""Rehearses the full size: a generated Open Images V3 release at a share of its true size, and every command on it.

    python tools/rehearsal.py --scale 0.01 --out /disk/r01                       # everything, measured
    python tools/rehearsal.py --scale 1.0 --out /disk/r1 --phases release,shard  # the first two phases
    python tools/rehearsal.py --fit /disk/r002 /disk/r01 /disk/r1                # how each figure grows
    python -m tools.full_size.truth /disk/r01                                    # what its truth says of its runs

Phases run in this order: release, shard, verify, doctor, plan, suggest, training that is killed in mid-epoch and goes
on with another number of workers, validation, test, aggregate, thresholds, audit, explain, predict, export, report; up
to a scale of 0.1 also LL-Cp, killed and resumed, a search, assumed negatives, and all entries of the test. Each line
of DIR/results.jsonl is one run of one phase, and DIR/logs has what the commands printed. Results:
tools/bench/REHEARSAL.md.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from raypaml.cli import Parser, run_command, say, show
from tools.full_size.growth import table
from tools.full_size.measured import adopt_orphans
from tools.full_size.phases import NAMES, Place, chosen, rehearse
from tools.full_size.release import write_release

PROG = "python tools/rehearsal.py"
HERE = Path(__file__).parent.parent


def _commit() -> str:
    asked = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+", "--abbrev=7", "--exclude=*"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def main() -> int:
    """Runs the phases that were asked for, or fits what earlier ones measured."""
    flags = Parser(prog=PROG, description=__doc__.split("\n")[0])
    add = flags.add_argument
    add("--scale", type=float, default=0.002, metavar="S", help="share of the true size, up to 1 [0.002]")
    add("--out", type=Path, metavar="DIR", help="folder for the release, the data set, the runs and the results")
    add("--class-lists", type=Path, metavar="DIR", help="folder of the official class lists of V3 [generated ones]")
    add("--phases", default="", metavar="A,B", help=f"phases to run, of {', '.join(NAMES)} [all of this scale]")
    add("--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="that write the release [all cores]")
    add("--seed", type=int, default=0, metavar="N", help="seed of the release [0]")
    add("--fit", type=Path, nargs="+", metavar="DIR", help="print the figures of these rehearsals, and how they grow")
    add("--write-release", action="store_true", help="only write DIR/release; the phase `release` does this")
    asked = flags.parse()
    if asked.fit:
        show(table(asked.fit))
        return 0
    if not 0 < asked.scale <= 1 or asked.out is None:
        raise ValueError(f"scale={asked.scale}, out={asked.out}: give --out DIR and a --scale above 0, at most 1")
    if asked.write_release:
        write_release(asked.out / "release", asked.scale, asked.class_lists, asked.seed, asked.processes, say)
        return 0
    adopt_orphans()
    place = Place(asked.out.absolute(), asked.scale, asked.class_lists, asked.processes)
    failed = rehearse(place, chosen(asked.phases, asked.scale), _commit(), say)
    show(table([place.out]))
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main, PROG)
