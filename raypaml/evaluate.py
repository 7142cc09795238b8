"""`python -m raypaml.evaluate`: predict a split with a checkpoint, in parts, by one process or many Ray workers.

The parts do not depend on the number of workers. Each is written whole as it is done, so that the same command goes on
where an interrupted one stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypaml.flags import Parser, run_command
from raypaml.tasks import Mapper, device_mapper

if TYPE_CHECKING:
    from raypaml.training.evaluation import Evaluation

PROG = "python -m raypaml.evaluate"


def parse(argv: Sequence[str]) -> Any:
    """The flags."""
    parser = Parser(prog=PROG, description="Predict a split with a trained model, for tools/aggregate_map.py.")
    parser.add_argument(
        "checkpoint", metavar="RUN_OR_CHECKPOINT", help="folder of a run (its best checkpoint) or of one"
    )
    parser.add_argument("--data", default="", help="folder of shards, index and vocabulary [the run's]")
    parser.add_argument("--split", default="test", help="[test]")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="1: this process alone, without Ray [1]")
    parser.add_argument("--address", default="", help="Ray cluster to join (also RAY_ADDRESS) [a private one]")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="[auto]")
    parser.add_argument("--out", default="", metavar="DIR", help="folder of the predictions [in the run's folder]")
    parser.add_argument(
        "--unobserved", action="store_true", help="write the unobserved entries too: images x classes rows"
    )
    parser.add_argument(
        "--skip-budget", type=float, metavar="SHARE", help="share of the split's samples that may be broken [the run's]"
    )
    return parser.parse(argv)


def plan(asked: Any) -> Evaluation:
    """Check everything that can be checked before anything is predicted."""
    from raypaml.data.folder import open_folder, resolve_data
    from raypaml.training.evaluation import clear_folder, plan_evaluation
    from raypaml.training.models import find_checkpoint
    from raypaml.training.run_folder import check_vocabulary, stored_config

    if asked.workers < 1:
        raise ValueError(f"workers={asked.workers}: must be at least 1")
    run, checkpoint = find_checkpoint(Path(asked.checkpoint))
    config = stored_config(run)
    if config is None:
        raise ValueError(f"{asked.checkpoint}: neither the folder of a run nor one of its checkpoints")
    config = config if asked.skip_budget is None else config.override({"skip_budget": asked.skip_budget})
    config.check()
    data = open_folder(resolve_data(asked.data or config.data.data, _say), **config.data.opening)
    if asked.split not in data.splits:
        raise ValueError(f"split={asked.split!r}: the data set has {', '.join(data.splits)}")
    check_vocabulary(run, data.vocabulary.digest, data.address)
    out = Path(asked.out) if asked.out else run / "predictions" / _name(asked, checkpoint)
    evaluation = plan_evaluation(checkpoint, config, data, asked.split, out, unobserved=asked.unobserved)
    clear_folder(evaluation, data, replace=False)
    return evaluation


def _name(asked: Any, checkpoint: Path) -> str:
    own = Path(asked.checkpoint) == checkpoint
    return str(asked.split) + (f"-{checkpoint.name}" if own else "") + ("-unobserved" if asked.unobserved else "")


def predict(evaluation: Evaluation, asked: Any) -> None:
    """Predict the parts that are missing."""
    from raypaml.training.evaluation import predict_part_alone

    left, total = evaluation.unfinished(), len(evaluation.parts)
    done = total - len(left)
    if done:
        _say(f"{done} of {total} parts are there already")
    if not left:
        return
    with runner(asked) as (run, device):
        for _ in run(predict_part_alone, [(evaluation, part, device) for part in left]):
            done += 1
            _say(f"{done}/{total} parts")


@contextmanager
def runner(asked: Any) -> Iterator[tuple[Mapper, str]]:
    """A map over parts, and the device each of them uses."""
    from raypaml.training.distributed import own_gpu

    with device_mapper(asked.workers, asked.address, asked.device) as (run, gpu):
        alone = asked.workers == 1 and not asked.address
        yield run, "cuda" if gpu or (alone and own_gpu(asked.device)) else "cpu"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, and say where."""
    from raypaml.training.evaluation import check_skipped

    asked = parse(sys.argv[1:] if argv is None else argv)
    evaluation = plan(asked)
    try:
        predict(evaluation, asked)
    except KeyboardInterrupt:
        _say("stopped; the same command goes on with the parts that are missing")
        raise
    skipped = check_skipped(evaluation)
    print(evaluation.folder)
    if skipped:
        _say(f"{skipped:,} broken images skipped; their names are in the parts")
    _say(f"next: python tools/aggregate_map.py {evaluation.folder}")
    return 0


if __name__ == "__main__":
    run_command(main, PROG)
