"""Prepare VOC, COCO, NUS-WIDE, CUB, or your own images from a table or a folder, as a data set of shards.

python tools/shard_dataset.py voc VOCdevkit/VOC2012 --out OUT --hide single-positive   # the papers' setting
python tools/shard_dataset.py table labels.csv --images DIR --out OUT                  # your own labels
python tools/shard_dataset.py --out OUT --verify

The same as `raypaml shard voc`, `raypaml shard table`, and so on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from raypaml.cli import Parser, run_command
from raypaml.preparation.formats.format_flags import FORMATS, add_format_flags
from raypaml.shard import prepare_format

PROG = "python tools/shard_dataset.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares, describes, verifies or repairs a data set, as the flags say."""
    parser = Parser(prog=PROG, description=__doc__.split("\n")[0])
    parser.add_argument("format", nargs="?", choices=FORMATS, help="; ".join(f"{k}: {v}" for k, v in FORMATS.items()))
    add_format_flags(parser)
    return prepare_format(parser.parse(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    run_command(main, PROG)
