"""`python -m raypaml.predict`: the classes of pictures, by one process or many Ray workers, and maps over them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
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
    from raypaml.cluster.tasks import device_mapper  # all below with torch
    from raypaml.counting import Count
    from raypaml.data.hidden_files import PassedOver
    from raypaml.inference.answer_files import check_out, writer
    from raypaml.inference.choice import choose
    from raypaml.inference.classifying import classify, loaded
    from raypaml.inference.pictures import find_pictures
    from raypaml.runs.alpha_of_use import alpha_text

    check_out(asked.out)
    card = loaded(asked.model, "cpu", asked.alpha).card
    choice = choose(card, top=asked.top, threshold=asked.threshold, thresholds_from=asked.thresholds_from)
    say(f"alpha {alpha_text(card.alpha)}: {card.alpha_origin}; threshold: {choice.said}")
    passed_over = PassedOver(list)
    pictures = list(find_pictures(asked.images, asked.background, passed_over))
    broken: list[tuple[str, str]] = []
    empty, count = 0, Count("predicting", len(pictures), say)
    with writer(asked.out) as out, device_mapper(asked.workers, asked.address, asked.device) as (run, device):
        for name, answer in classify(asked.model, pictures, choice, asked.overlays, run, device, asked.alpha):
            count.add()
            empty += not answer
            if isinstance(answer, str):
                broken.append((name, answer))
            else:
                out.write(name, [(card.class_ids[k], card.names[k], score) for k, score in answer])
    rows = ", which have a row without class and score" if empty else ""
    count.show(f"{len(broken):,} broken", f"{empty:,} without a class that reaches its threshold{rows}")
    if passed_over:
        kinds = (f"{reason} {len(names):,} (such as {names[0]})" for reason, names in sorted(passed_over.items()))
        say(f"files passed over, by suffix or other reason: {', '.join(kinds)}")
    for name, reason in broken:
        say(f"broken: {name}: {reason}")
    return 1 if broken else 0


if __name__ == "__main__":
    run_command(main, command("predict"))
