"""`raypaml aggregate`: the table G1..G5 and All, every published convention, and other measures, from one pass.

raypaml aggregate runs/NAME                       # a run, or a folder of raypaml evaluate
raypaml aggregate runs/A runs/B --bootstrap 1000  # both, and the paired difference with its interval
raypaml aggregate scores.npy --labels labels.npy --scores logits --vocabulary vocabulary.csv
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raypaml.cli import Parser, command, run_command
from raypaml.extensions import add_import_flag

if TYPE_CHECKING:
    from raypaml.evaluation.measures import EvaluationOptions

_ABOUT = "Evaluate predictions: mAP by class group and under every published convention, and other measures."


def parse(argv: Sequence[str], prog: str = "") -> Any:
    """The flags."""
    flags = Parser(prog=prog or command("aggregate"), description=_ABOUT)
    flags.add_argument("predictions", nargs="+", help="one or two: a run, a prediction set, or .csv, .parquet, .npy")
    flags.add_argument("--vocabulary", metavar="FILE", help="vocabulary.csv [the one beside the predictions]")
    flags.add_argument("--json", metavar="FILE", help="write every figure here")
    flags.add_argument("--csv", metavar="FILE", help="write a row a class here")
    flags.add_argument("--figure", metavar="FILE.svg", help="draw AP against the number of annotations")
    about = "another alpha, the curve over A, A + 1, ... B, or the one chosen on validation [training]"
    flags.add_argument("--alpha", metavar="A|A:B|training|chosen", default="", help=about)
    flags.add_argument("--bootstrap", type=int, default=0, metavar="N", help="replicates for 95 %% intervals [0]")
    flags.add_argument("--seed", type=int, default=0, help="of the bootstrap [0]")
    flags.add_argument("--threshold", type=float, metavar="P", help="count precision, recall, F1 at this probability")
    flags.add_argument("--thresholds-from", metavar="PREDICTIONS", help="... at each class's best F1 on validation")
    flags.add_argument("--recall", type=float, metavar="R", help="give the precision at this recall")
    flags.add_argument("--scores", choices=("logits", "probabilities"), help="what others' scores are")
    flags.add_argument("--labels", metavar="FILE.npy", help="labels of a matrix of scores")
    flags.add_argument("--coding", default="1,0,-1", metavar="P,N,U", help="others' positive, negative, unobserved")
    add_import_flag(flags)
    asked = flags.parse(argv)
    names = asked.predictions
    if len(names) > 2 or len(set(names)) < len(names):
        given = f"{len(names)} given, {len(set(names))} different"
        raise ValueError(f"predictions: {given}; give one set, or two to compare")
    return asked


def questions(asked: Any) -> EvaluationOptions:
    """What the flags ask for."""
    from raypaml.evaluation.foreign import open_predictions
    from raypaml.evaluation.measures import EvaluationOptions, evaluate_set, read_alphas
    from raypaml.evaluation.parts import check_predicted_classes

    of_use, first = asked.alpha == "chosen", asked.predictions[0]
    alpha, alphas = read_alphas("" if asked.alpha in ("training", "chosen") else asked.alpha)
    if asked.bootstrap < 0 or asked.bootstrap == 1:
        raise ValueError(f"bootstrap={asked.bootstrap}: needs at least 2 replicates, 1000 for an interval; 0 for none")
    thresholds = None
    if asked.thresholds_from:
        predictions, vocabulary = open_predictions(asked.thresholds_from, **_form(asked))
        check_predicted_classes(predictions, open_predictions(first, **_form(asked))[1], first)
        thresholds = evaluate_set(
            predictions, vocabulary, EvaluationOptions(alpha=alpha, alpha_of_use=of_use)
        ).best_thresholds
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


def _form(asked: Any) -> dict[str, Any]:
    form = {name: getattr(asked, name) or "" for name in ("vocabulary", "labels")}
    return form | {"scores": asked.scores, "coding": asked.coding}


def main(argv: Sequence[str] | None = None, prog: str = "") -> int:
    """Evaluate, print, write; `prog` is the command as it was typed, where it is another."""
    asked = parse(sys.argv[1:] if argv is None else argv, prog)
    from raypaml.evaluation.aggregation import Aggregate  # with scipy
    from raypaml.evaluation.foreign import open_predictions
    from raypaml.evaluation.measures import evaluate_set

    wanted = questions(asked)
    runs = {name: evaluate_set(*open_predictions(name, **_form(asked)), wanted) for name in asked.predictions}
    aggregate = Aggregate.of(runs)
    print(aggregate.text())
    aggregate.write(json_file=asked.json, csv_file=asked.csv, figure_file=asked.figure)
    return 0


if __name__ == "__main__":
    run_command(main, command("aggregate"))
