"""The fuzzer as a command; see the package."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from tests.fuzz.running import Case, Fuzzer, outcome_of
from tests.fuzz.subjects import SUBJECTS


def main() -> int:
    """Run the cases; print each finding with the command that repeats it, then the counts. 1 where there are any."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="number of cases [1000]")
    parser.add_argument("--start", type=int, default=0, help="first seed [0]")
    parser.add_argument("--seed", type=int, help="run the case of this seed alone, with its traceback")
    parser.add_argument("--kind", choices=SUBJECTS, help="the kind of file [all in turn]")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raypaml-fuzz-") as folder:
        if asked.seed is not None:
            outcome = outcome_of(Case(asked.kind or "index", asked.seed), Path(folder), verbose=True)
            print(f"{outcome.said}: {outcome.about}")
            return int(not outcome.is_right)
        kinds = cycle([asked.kind] if asked.kind else SUBJECTS)
        cases = [Case(kind, asked.start + n) for n, kind in enumerate(islice(kinds, asked.count))]
        return _report(Fuzzer(Path(folder)), cases)


def _report(fuzzer: Fuzzer, cases: list[Case]) -> int:
    begun, findings = time.monotonic(), 0
    for case, outcome in fuzzer.run(cases):
        if not outcome.is_right:
            findings += 1
            print(f"{case}\n  {outcome.said}: {outcome.about}", flush=True)
    fuzzer.close()
    print(f"{fuzzer.table()}\n{time.monotonic() - begun:.0f} s")
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
