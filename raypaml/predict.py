"""`python -m raypaml.predict`: predicts the classes of pictures in one process or in many Ray workers."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from raypaml.cli import Parser, add_alpha_flag, add_worker_flags, command, requested, run_command, say, shown_output
from raypaml.extensions import add_import_flag
from raypaml.mapper import Processes


def parse(argv: Sequence[str]) -> Namespace:
    """Read the flags."""
    about = (
        "Say which classes pictures show. A picture of which no class reaches its threshold has a row without class."
    )
    parser = Parser(prog=command("predict"), description=about)
    add = parser.add_argument
    add("model", metavar="RUN", help="folder of a run, a checkpoint or an export")
    about = "pictures: files, folders or shards (.tar), on disk or at s3:// or gs://"
    add("images", nargs="+", metavar="IMAGES", help=about)
    about = "write the answers to this .csv, .parquet or .jsonl file [CSV on standard output]"
    add("--out", default="", metavar="FILE", help=about)
    add("--top", type=int, default=0, metavar="N", help="answer the N best classes, whatever their score")
    about = "answer classes of at least this probability [each class's own, chosen on validation with alpha; else 0.5]"
    add("--threshold", type=float, metavar="P", help=about)
    about = "answer each class from the threshold of its best F1 in these predictions of a validation split"
    add("--thresholds-from", default="", metavar="PREDICTIONS", help=about)
    about = "write each picture, at its own size, with the map of each class that is answered into this folder"
    add("--overlays", default="", metavar="DIR", help=about)
    about = "colour under transparent pixels, the same as when the data set was prepared [white]"
    add("--background", default="white", metavar="COLOUR", help=about)
    add_alpha_flag(parser)
    add_worker_flags(parser)
    add_import_flag(parser)
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, write the answers, and name broken pictures; 1 if there are any."""
    asked = parse(sys.argv[1:] if argv is None else argv)
    from raypaml.api.predicted import PicturesRequest, predict_pictures  # with torch
    from raypaml.inference.choice import ChoiceRequest

    asked.out = asked.out or shown_output()
    asked.choosing = requested(ChoiceRequest, asked)
    request = requested(PicturesRequest, asked)
    predicted = predict_pictures(Path(asked.model), request, requested(Processes, asked), say)
    return 1 if predicted.broken else 0


if __name__ == "__main__":
    run_command(main, command("predict"))
