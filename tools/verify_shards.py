"""Check the shards of a data folder against their indexes and name every fault by shard, key and byte.

python tools/verify_shards.py DIR [--split train] [--workers 8] [--no-decode]

The exit code is 0 without faults, 1 with faults, and 2 where there is nothing to check.

The same as `raypaml shard verify`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from raypaml import shard
from raypaml.cli import run_command

PROG = "python tools/verify_shards.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `raypaml shard verify` with these arguments."""
    return shard.main(["verify", *(sys.argv[1:] if argv is None else argv)], PROG)


if __name__ == "__main__":
    run_command(main, PROG)
