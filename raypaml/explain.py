"""`python -m raypaml.explain`: shows a model's class activation maps, and compares them with those of other models."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from raypaml.cli import Parser, add_alpha_flag, add_worker_flags, command, requested, run_command, say, show
from raypaml.extensions import add_import_flag
from raypaml.labels import class_words
from raypaml.mapper import Processes


def parse(argv: Sequence[str]) -> Namespace:
    """Read the flags."""
    parser = Parser(
        prog=command("explain"),
        description="Show a model's class activation maps, and compare them with those of other models.",
    )
    add = parser.add_argument
    about = "folder of a run, whose best checkpoint is explained, or of a checkpoint"
    add("run", metavar="RUN_OR_CHECKPOINT", help=about)
    about = "compare with the maps of this run, which is usually trained on full labels"
    add("--against", default="", metavar="RUN", help=about)
    add("--beside", default="", metavar="RUN,RUN", help="show the maps of these runs too, without comparing them")
    add("--data", default="", help="data set (folder of shards, index and vocabulary) [the run's]")
    add("--split", default="test", help="split whose images are shown [test]")
    about = "CSV with known boxes of this split, in the format of Open Images [the data set's own]"
    add("--boxes", default="", metavar="FILE", help=about)
    add("--limit", type=int, default=0, metavar="N", help="use only the first N images of the split; 0: all [0]")
    about = "show only these classes, by name or id; G1 to G5: those of a class group, G1 the rarest [all]"
    add("--classes", default="", metavar="NAME,NAME", help=about)
    add("--group", default="", metavar="G1|..|G5", help="show only classes of this class group, G1 the rarest [all]")
    add(
        "--show",
        choices=("spread", "high", "low", "errors"),
        default="spread",
        help="which pairs of image and class are shown: positives over the whole range of scores (spread), with the "
        "highest or lowest scores, or negatives with the highest scores (errors) [spread]",
    )
    add("--rows", type=int, default=12, metavar="N", help="number of pairs of image and class shown [12]")
    add("--raw", action="store_true", help="show the maps before BoostLU [after it]")
    about = "folder for the page [RUN/explanations/SPLIT, with --against RUN/explanations/SPLIT-against-OTHER]"
    add("--out", default="", metavar="DIR", help=about)
    add_alpha_flag(parser)
    add_worker_flags(parser)
    add_import_flag(parser)
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the maps, write figures and page, and print the path of the page."""
    asked = parse(sys.argv[1:] if argv is None else argv)
    from raypaml.api.explained import explain_run  # with torch
    from raypaml.api.run import Run
    from raypaml.explanations.explain_runs import MapsRequest

    asked.beside = [run for run in asked.beside.split(",") if run]
    asked.classes = class_words(asked.classes)
    run, request, processes = Run.open(asked.run), requested(MapsRequest, asked), requested(Processes, asked)
    show(explain_run(run.path, request, processes, say).page)
    return 0


if __name__ == "__main__":
    run_command(main, command("explain"))
