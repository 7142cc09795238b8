"""`python -m raypaml.explain`: what a model looked at, beside another's, and the papers' comparison of their maps."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from raypaml.cli import Parser, add_alpha_flag, add_worker_flags, command, run_command
from raypaml.extensions import add_import_flag


def parse(argv: Sequence[str]) -> Any:
    """The flags."""
    parser = Parser(
        prog=command("explain"), description="Look at a model's maps, and compare them with those of other models."
    )
    add = parser.add_argument
    add("run", metavar="RUN_OR_CHECKPOINT", help="folder of a run (its best checkpoint) or of one")
    add("--against", default="", metavar="RUN", help="compare with this run's maps, usually trained on full labels")
    add("--beside", default="", metavar="RUN,RUN", help="show the maps of these runs too, side by side")
    add("--data", default="", help="folder of shards, index and vocabulary [the run's]")
    add("--split", default="test", help="[test]")
    add("--boxes", default="", metavar="FILE", help="box CSV of Open Images for this split [the data's own]")
    add("--limit", type=int, default=0, metavar="N", help="only the first N images of the split [0: all]")
    add("--classes", default="", metavar="NAME,NAME", help="show only these classes, by name or id")
    add("--group", default="", metavar="G1|..|G5", help="show only classes of this group")
    add(
        "--show",
        choices=("spread", "high", "low", "errors"),
        default="spread",
        help="spread: positives of every score; high or low ones; errors: negatives that score highest [spread]",
    )
    add("--rows", type=int, default=12, metavar="N", help="images shown [12]")
    add("--raw", action="store_true", help="show maps before BoostLU")
    add("--out", default="", metavar="DIR", help="[RUN/explanations/SPLIT, or .../SPLIT-against-RUN]")
    add_alpha_flag(parser)
    add_worker_flags(parser)
    add_import_flag(parser)
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, write figures and page, and say where."""
    asked = parse(sys.argv[1:] if argv is None else argv)
    from raypaml.api.run import Run  # with torch

    explained = Run.open(asked.run).explain(
        against=asked.against,
        beside=[run for run in asked.beside.split(",") if run],
        data=asked.data,
        split=asked.split,
        boxes=asked.boxes,
        limit=asked.limit,
        show=asked.show,
        rows=asked.rows,
        classes=asked.classes.split(",") if asked.classes else (),
        group=asked.group,
        raw=asked.raw,
        out=asked.out,
        alpha=asked.alpha,
        workers=asked.workers,
        address=asked.address,
        device=asked.device,
    )
    print(explained.page)
    return 0


if __name__ == "__main__":
    run_command(main, command("explain"))
