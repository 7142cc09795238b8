"""`python -m raypaml.predict`: the classes of pictures, by one process or many Ray workers, and maps over them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raypaml.cli import Parser, add_alpha_flag, add_worker_flags, command, run_command, say
from raypaml.extensions import add_import_flag


def parse(argv: Sequence[str]) -> Any:
    """The flags."""
    about = "Say which classes pictures show. Where no class reaches its threshold, a picture has a row without class."
    parser = Parser(prog=command("predict"), description=about)
    add = parser.add_argument
    add("model", metavar="RUN", help="folder of a run, a checkpoint or an export")
    add("images", nargs="+", metavar="IMAGES", help="files, folders, shards (.tar), s3:// or gs://")
    add("--out", default="", metavar="FILE", help=".csv, .parquet or .jsonl [CSV on standard output]")
    add("--top", type=int, default=0, metavar="N", help="the N best classes, whatever their score")
    about = "classes of at least this probability [each class's own, chosen with the alpha; else 0.5]"
    add("--threshold", type=float, metavar="P", help=about)
    about = "predictions of a validation split: each class at the threshold of its best F1 there"
    add("--thresholds-from", default="", metavar="PREDICTIONS", help=about)
    add("--overlays", default="", metavar="DIR", help="write each picture with the map of its best class")
    add("--background", default="white", metavar="COLOUR", help="under transparent pixels; as in preparation [white]")
    add_alpha_flag(parser)
    add_worker_flags(parser)
    add_import_flag(parser)
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, write, and name what was broken."""
    asked = parse(sys.argv[1:] if argv is None else argv)
    from raypaml.api.predicted import predict_pictures  # with torch
    from raypaml.inference.answer_files import standard_output

    predicted = predict_pictures(
        Path(asked.model),
        asked.images,
        out=asked.out or standard_output(),
        choosing={name: getattr(asked, name) for name in ("top", "threshold", "thresholds_from")},
        overlays=asked.overlays,
        background=asked.background,
        alpha=asked.alpha,
        processes=(asked.workers, asked.address, asked.device),
        say=say,
    )
    return 1 if predicted.broken else 0


if __name__ == "__main__":
    run_command(main, command("predict"))
