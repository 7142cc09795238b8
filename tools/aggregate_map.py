"""Evaluate predictions: the table G1..G5 and All, every published convention, and other measures, from one pass.

python tools/aggregate_map.py runs/NAME                      # a run, or a folder of python -m raypaml.evaluate
python tools/aggregate_map.py runs/A runs/B --bootstrap 1000  # both, and the paired difference with its interval
python tools/aggregate_map.py scores.npy --labels labels.npy --scores logits --vocabulary vocabulary.csv
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from raypaml.flags import Parser, run_command
from raypaml.labels import Vocabulary
from raypaml.predictions.others import Coding, open_others
from raypaml.predictions.parts import PredictionSet, check_vocabulary, open_set, read_vocabulary
from raypaml.reports.aggregate import comparison, difference, figures, for_json, report, write_class_csv
from raypaml.reports.evaluation import Evaluation, Questions, evaluate

PROG = "python tools/aggregate_map.py"


def parser() -> Parser:
    flags = Parser(prog=PROG, description=__doc__.split("\n")[0])
    flags.add_argument("predictions", nargs="+", help="one or two: a run, a prediction set, or .csv, .parquet, .npy")
    flags.add_argument("--vocabulary", metavar="FILE", help="vocabulary.csv [the one beside the predictions]")
    flags.add_argument("--json", metavar="FILE", help="write every figure here")
    flags.add_argument("--csv", metavar="FILE", help="write a row a class here")
    flags.add_argument("--figure", metavar="FILE.svg", help="draw AP against the number of annotations")
    flags.add_argument("--alpha", metavar="A|A:B", default="", help="another alpha, or the curve over A, A + 1, ... B")
    flags.add_argument("--bootstrap", type=int, default=0, metavar="N", help="replicates for 95 %% intervals [0]")
    flags.add_argument("--seed", type=int, default=0, help="of the bootstrap [0]")
    flags.add_argument("--threshold", type=float, metavar="P", help="count precision, recall, F1 at this probability")
    flags.add_argument("--thresholds-from", metavar="PREDICTIONS", help="... at each class's best F1 on validation")
    flags.add_argument("--recall", type=float, metavar="R", help="give the precision at this recall")
    flags.add_argument("--scores", choices=("logits", "probabilities"), help="what others' scores are")
    flags.add_argument("--labels", metavar="FILE.npy", help="labels of a matrix of scores")
    flags.add_argument("--coding", default="1,0,-1", metavar="P,N,U", help="others' positive, negative, unobserved")
    return flags


def opened(where: str, asked: Any) -> tuple[PredictionSet, Vocabulary]:
    """One prediction set and its vocabulary."""
    path, given = Path(where), Path(asked.vocabulary) if asked.vocabulary else None
    folder = path / "predictions" / "test" if (path / "predictions").is_dir() else path
    if path.is_dir() or not path.suffix:
        predictions = open_set(folder)
        return predictions, read_vocabulary(folder, predictions, given)
    if given is None:
        raise ValueError(f"{path}: say which classes these are, with --vocabulary FILE")
    vocabulary = Vocabulary.read(given)
    labels, coding = Path(asked.labels) if asked.labels else None, Coding.parse(asked.coding)
    return open_others(path, vocabulary, scores=asked.scores, labels=labels, coding=coding), vocabulary


def questions(asked: Any) -> Questions:
    """What the flags ask for."""
    try:
        ends = [float(value) for value in asked.alpha.split(":")] if asked.alpha else []
        alphas = tuple(ends[0] + step for step in range(int(ends[1] - ends[0]) + 1)) if ends[1:] else ()
    except ValueError:
        raise ValueError(f"alpha={asked.alpha!r}: expected A or A:B, such as 5 or 1:10") from None
    if len(ends) > 2 or (ends[1:] and not alphas):
        raise ValueError(f"alpha={asked.alpha!r}: expected A or A:B with B >= A, such as 5 or 1:10")
    if asked.bootstrap < 0 or asked.bootstrap == 1:
        raise ValueError(f"bootstrap={asked.bootstrap}: needs at least 2 replicates, 1000 for an interval; 0 for none")
    thresholds = None
    if asked.thresholds_from:
        predictions, vocabulary = opened(asked.thresholds_from, asked)
        check_vocabulary(predictions, opened(asked.predictions[0], asked)[1], asked.predictions[0])
        thresholds = evaluate(predictions, vocabulary, Questions(alpha=ends[0] if len(ends) == 1 else None)).best
    return Questions(
        alpha=ends[0] if len(ends) == 1 else None,
        alphas=alphas,
        replicates=asked.bootstrap,
        seed=asked.seed,
        threads=os.cpu_count() or 1,
        threshold=asked.threshold,
        class_thresholds=thresholds,
        recall=asked.recall,
    )


def write(asked: Any, runs: dict[str, Evaluation], found: dict[str, Any]) -> None:
    """The files asked for."""
    evaluations = list(runs.values())
    if asked.json:
        Path(asked.json).write_text(json.dumps(for_json(found), indent=2) + "\n")
    if asked.csv:
        write_class_csv(Path(asked.csv), evaluations)
    if asked.figure:
        from raypaml.reports.figures import ap_by_annotations  # matplotlib is slow to import, and large

        vocabulary = evaluations[0].vocabulary
        annotations = vocabulary.train_positives + vocabulary.train_negatives
        by_name = {name: evaluation.ap for name, evaluation in runs.items()}
        Path(asked.figure).write_text(ap_by_annotations(annotations, vocabulary.class_group, by_name))


def main() -> None:
    """Evaluate, print, write."""
    asked = parser().parse()
    names = asked.predictions
    if len(names) > 2 or len(set(names)) < len(names):
        raise ValueError(
            f"predictions: {len(names)} given, {len(set(names))} different; give one set, or two to compare"
        )
    wanted = questions(asked)
    runs = {name: evaluate(*opened(name, asked), wanted) for name in names}
    found: dict[str, Any] = {"runs": [figures(run) for run in runs.values()]}
    pair = comparison(*runs.values()) if len(runs) == 2 else None
    for name, run in zip(names, found["runs"], strict=True):
        print(report(run) if pair is None else f"## {name}\n\n{report(run)}\n")
    if pair is not None:
        found["difference"] = pair
        print(f"## Difference\n\n{difference(pair)}")
    write(asked, runs, found)


if __name__ == "__main__":
    run_command(main, PROG)
