"""Open Images V3 from the official files to verified shards: labels joined, images fetched, everything accounted for.

python tools/shard_openimages.py --metadata DIR --images DIR_OR_URL --out DIR       # all three splits
python tools/shard_openimages.py ... --split validation --limit 1000 --dry-run       # what would be done
python tools/shard_openimages.py --out DIR --verify                                  # read all of it again

Interrupted, the same command goes on where it stopped, and ends with the same bytes.

The same as `raypaml shard openimages`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from raypaml import shard
from raypaml.cli import run_command

PROG = "python tools/shard_openimages.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Run `raypaml shard openimages` with these arguments."""
    return shard.main(["openimages", *(sys.argv[1:] if argv is None else argv)], PROG)


if __name__ == "__main__":
    run_command(main, PROG)
