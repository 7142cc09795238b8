"""Prepare Open Images V3 from its official files as a data set of shards.

python tools/shard_openimages.py --metadata DIR --images DIR_OR_URL --out DIR       # prepares all three splits
python tools/shard_openimages.py ... --split validation --limit 1000 --dry-run       # says what would be written
python tools/shard_openimages.py --out DIR --verify                                  # checks every shard

After an interruption the same command continues where it stopped, and ends with the same bytes.

The same as `raypaml shard openimages`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from raypaml import shard
from raypaml.cli import run_command

PROG = "python tools/shard_openimages.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `raypaml shard openimages` with these arguments."""
    return shard.main(["openimages", *(sys.argv[1:] if argv is None else argv)], PROG)


if __name__ == "__main__":
    run_command(main, PROG)
