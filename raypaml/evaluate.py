"""`python -m raypaml.evaluate`: predicts a split in parts, which do not depend on workers and interruptions."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from raypaml.cli import Parser, add_worker_flags, command, requested, run_command, say, show
from raypaml.extensions import add_import_flag
from raypaml.mapper import Processes
from raypaml.runs.run_files import REPORT


def parse(argv: Sequence[str]) -> Namespace:
    """Read the flags."""
    parser = Parser(
        prog=command("evaluate"), description=f"Predict a split with a trained model, for {command('aggregate')}."
    )
    add = parser.add_argument
    about = "folder of a run, whose best checkpoint is evaluated, or of a checkpoint"
    add("checkpoint", metavar="RUN_OR_CHECKPOINT", help=about)
    add("--data", default="", help="data set (folder of shards, index and vocabulary) [the run's]")
    add("--split", default="", help="split to predict [test, or validation with --choose-alpha]")
    about = "choose the alpha and the thresholds that the model is used with, on the validation split, never on test"
    add("--choose-alpha", action="store_true", help=about)
    add_worker_flags(parser)
    add("--out", default="", metavar="DIR", help="folder for the predictions [predictions/SPLIT in the run's folder]")
    about = "predict unobserved entries too, which makes images x classes rows"
    add("--unobserved", action="store_true", help=about)
    add("--skip-budget", type=float, metavar="SHARE", help="share of the samples that may be broken [the run's]")
    add_import_flag(parser)
    return parser.parse(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Predict the split, choose alpha if asked, and print where the predictions are."""
    asked = parse(sys.argv[1:] if argv is None else argv)
    from raypaml.api.run import Run  # with torch
    from raypaml.evaluation.prediction_plan import SplitRequest

    run = Run.open(asked.checkpoint)
    predicted = run.evaluate_asked(requested(SplitRequest, asked), requested(Processes, asked))
    show(predicted.folder)
    if predicted.skipped:
        say(f"{predicted.skipped:,} broken images skipped; the prediction files name them in their metadata")
    if not asked.choose_alpha:
        say(f"next: {command('aggregate', predicted.folder)}")
        return 0
    show(predicted.choice)
    if run.is_checkpoint or run.result is None:
        return 0
    from raypaml.evaluation.summary import table

    show(f"{table(run.result)}\n\nReport: {run.folder / REPORT}")
    return 0


if __name__ == "__main__":
    run_command(main, command("evaluate"))
