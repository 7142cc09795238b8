"""`python -m raypaml.evaluate`: predict a split in parts, which neither workers nor interruptions change."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypaml.cli import Parser, add_worker_flags, command, run_command, say
from raypaml.extensions import add_import_flag

if TYPE_CHECKING:
    from raypaml.evaluation.prediction_plan import PredictionPlan


def parse(argv: Sequence[str]) -> Any:
    """The flags."""
    parser = Parser(
        prog=command("evaluate"), description=f"Predict a split with a trained model, for {command('aggregate')}."
    )
    add = parser.add_argument
    add("checkpoint", metavar="RUN_OR_CHECKPOINT", help="folder of a run (its best checkpoint) or of one")
    add("--data", default="", help="folder of shards, index and vocabulary [the run's]")
    add("--split", default="", help="[test, and validation with --choose-alpha]")
    about = "choose on validation, never on test, the alpha and the thresholds that the model is used with"
    add("--choose-alpha", action="store_true", help=about)
    add_worker_flags(parser)
    add("--out", default="", metavar="DIR", help="folder of the predictions [in the run's folder]")
    add("--unobserved", action="store_true", help="write the unobserved entries too: images x classes rows")
    add("--skip-budget", type=float, metavar="SHARE", help="share of the samples that may be broken [the run's]")
    add_import_flag(parser)
    asked = parser.parse(argv)
    if asked.choose_alpha and asked.split not in ("", "validation"):
        raise ValueError(f"split={asked.split}: alpha is chosen on validation alone; leave --split out")
    asked.split = asked.split or ("validation" if asked.choose_alpha else "test")
    return asked


def predict(plan: PredictionPlan, asked: Any) -> None:
    """Predict the parts that are missing."""
    from raypaml.cluster.tasks import device_mapper
    from raypaml.counting import Count
    from raypaml.evaluation.prediction_plan import predict_part_alone

    left, total = plan.unfinished(), len(plan.parts)
    done = total - len(left)
    if done:
        say(f"{done} of {total} parts are there already")
    if not left:
        return
    sizes = {part.part: part.part_samples for part in plan.parts}
    images = sum(sizes.values())
    before = images - sum(part.part_samples for part in left)
    count = Count(f"predicting {left[0].split}", images, say, done=before)
    with device_mapper(asked.workers, asked.address, asked.device) as (run, device):
        for _ in count.each(run(predict_part_alone, [(plan, part, device) for part in left]), lambda part: sizes[part]):
            pass


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, and say where."""
    asked = parse(sys.argv[1:] if argv is None else argv)
    from raypaml.evaluation.prediction_plan import check_skipped, plan_asked  # with torch

    if asked.workers < 1:
        raise ValueError(f"workers={asked.workers}: must be at least 1")
    given = Path(asked.checkpoint)
    plan = plan_asked(
        given,
        asked.data,
        asked.split,
        Path(asked.out) if asked.out else None,
        unobserved=asked.unobserved,
        skip_budget=asked.skip_budget,
        replace=asked.choose_alpha and not asked.out,
        say=say,
    )
    try:
        predict(plan, asked)
    except KeyboardInterrupt:
        say("stopped; the same command goes on with the parts that are missing")
        raise
    skipped = check_skipped(plan)
    print(plan.folder)
    if skipped:
        say(f"{skipped:,} broken images skipped; their names are in the parts")
    if not asked.choose_alpha:
        say(f"next: {command('aggregate')} {plan.folder}")
        return 0
    from raypaml.evaluation.choosing import choose_for_use
    from raypaml.report import main as write_report

    print(choose_for_use(plan))
    return write_report([str(given), "--data", plan.data]) if (given / "result.json").is_file() else 0


if __name__ == "__main__":
    run_command(main, command("evaluate"))
