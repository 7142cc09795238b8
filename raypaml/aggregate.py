"""`raypaml aggregate`: computes mAP by class group and convention, and other measures, of one prediction set or two."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raypaml.cli import Parser, command, run_command, show
from raypaml.extensions import add_import_flag
from raypaml.outputs import output_files

if TYPE_CHECKING:
    from raypaml.evaluation.foreign import PredictionForm
    from raypaml.evaluation.measures import EvaluationOptions

_ABOUT = "Evaluate predictions: mAP by class group and under every published convention, and other measures."


def parse(argv: Sequence[str], prog: str = "") -> Namespace:
    """Read the flags, and check that one or two different sets of predictions are given."""
    flags = Parser(prog=prog or command("aggregate"), description=_ABOUT)
    add = flags.add_argument
    about = (
        "one set of predictions, or two to compare: a run, a folder of predictions, or a .csv, .parquet or .npy file"
    )
    add("predictions", nargs="+", help=about)
    add("--vocabulary", metavar="FILE", help="vocabulary.csv with the classes [the one beside the predictions]")
    add("--json", metavar="FILE", help="write all figures to this JSON file")
    add("--csv", metavar="FILE", help="write a row for each class to this CSV file")
    add("--figure", metavar="FILE.svg", help="draw AP of each class against its training annotations")
    about = "BoostLU's factor: a number, A:B for a curve over A, A + 1, ... B, or chosen (on validation) [training]"
    add("--alpha", metavar="A|A:B|training|chosen", default="", help=about)
    add("--bootstrap", type=int, default=0, metavar="N", help="bootstrap replicates, for 95 %% intervals; 0: none [0]")
    add("--seed", type=int, default=0, help="random seed of the bootstrap [0]")
    about = "give precision, recall and F1, where entries of at least probability P are predicted positive"
    add("--threshold", type=float, metavar="P", help=about)
    about = "give precision, recall and F1, at the threshold of each class's best F1 in these predictions of validation"
    add("--thresholds-from", metavar="PREDICTIONS", help=about)
    add("--recall", type=float, metavar="R", help="give the precision at recall R, 0 to 1")
    add("--scores", choices=("logits", "probabilities"), help="kind of the scores in a file of another program")
    add("--labels", metavar="FILE.npy", help="labels of the predictions in a .npy file, of the same shape")
    about = "numbers for positive, negative, unobserved in the labels of another program [1,0,-1]"
    add("--coding", default="1,0,-1", metavar="P,N,U", help=about)
    add_import_flag(flags)
    asked = flags.parse(argv)
    names = asked.predictions
    if (count := len(names)) > 2 or len(set(names)) < count:
        raise ValueError(f"predictions: {count} given, {len(set(names))} different; give one set, or two to compare")
    return asked


def evaluation_options(asked: Namespace, form: PredictionForm) -> EvaluationOptions:
    """The options that the flags ask for; reads the predictions of --thresholds-from."""
    from raypaml.evaluation.aggregation import thresholds_from
    from raypaml.evaluation.measures import EvaluationOptions, read_alphas

    of_use = asked.alpha == "chosen"
    alpha, alphas = read_alphas("" if asked.alpha in ("training", "chosen") else asked.alpha)
    thresholds = None
    if asked.thresholds_from:
        options = EvaluationOptions(alpha=alpha, alpha_of_use=of_use)
        thresholds = thresholds_from(asked.thresholds_from, asked.predictions[0], form, options)
    return EvaluationOptions(
        alpha=alpha,
        alpha_of_use=of_use,
        alphas=alphas,
        replicates=asked.bootstrap,
        seed=asked.seed,
        threads=os.cpu_count() or 1,
        threshold=asked.threshold,
        class_thresholds=thresholds,
        recall=asked.recall,
    )


def main(argv: Sequence[str] | None = None, prog: str = "") -> int:
    """Evaluate, print the tables and write the files; `prog` is the name of the command in messages."""
    asked = parse(sys.argv[1:] if argv is None else argv, prog)
    from raypaml.evaluation.aggregation import Aggregate  # with scipy
    from raypaml.evaluation.foreign import PredictionForm, check_form, open_predictions
    from raypaml.evaluation.measures import evaluate_set

    form = PredictionForm(
        vocabulary=asked.vocabulary or "", scores=asked.scores, labels=asked.labels or "", coding=asked.coding
    )
    with output_files(asked.json, asked.csv, asked.figure) as files:
        check_form(form, [*asked.predictions, asked.thresholds_from or ""])
        options = evaluation_options(asked, form)
        sets = {name: evaluate_set(*open_predictions(name, form), options) for name in asked.predictions}
        aggregate = Aggregate.of(sets)
        show(aggregate.text())
        aggregate.write(*files)
    return 0


if __name__ == "__main__":
    run_command(main, command("aggregate"))
