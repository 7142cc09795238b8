"""Write vocabulary and indexes beside WebDataset tars, raypaml's own or those of others, in one scan of each tar.

python tools/index_shards.py DIR
python tools/index_shards.py DIR --labels json:positive=tags,negative=absent --classes ids.txt --train 'part-*.tar'

The same as `raypaml shard index`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from raypaml import shard
from raypaml.cli import run_command

PROG = "python tools/index_shards.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `raypaml shard index` with these arguments."""
    return shard.main(["index", *(sys.argv[1:] if argv is None else argv)], PROG)


if __name__ == "__main__":
    run_command(main, PROG)
