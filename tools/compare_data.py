"""Prints in which samples, images and labels two prepared data sets differ; the exit code is 1 if they do.

python tools/compare_data.py A B [--json FILE]

The same as `raypaml shard compare`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from raypaml import shard
from raypaml.cli import run_command

PROG = "python tools/compare_data.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `raypaml shard compare` with these arguments."""
    return shard.main(["compare", *(sys.argv[1:] if argv is None else argv)], PROG)


if __name__ == "__main__":
    run_command(main, PROG)
