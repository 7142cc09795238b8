"""`python -m raypaml.predict`: the classes of pictures, by one process or many Ray workers, and maps over them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypaml.flags import Parser, run_command
from raypaml.tasks import device_mapper

if TYPE_CHECKING:
    from raypaml.serving.answers import Choice
    from raypaml.serving.classifier import Classifier
    from raypaml.serving.predicting import Answer

PROG = "python -m raypaml.predict"
CHUNK = 1024
"""Pictures of a task: what one worker does between two reports."""
SAY_SECONDS = 2.0


def parse(argv: Sequence[str]) -> Any:
    """The flags."""
    parser = Parser(prog=PROG, description="Say which classes pictures show.")
    parser.add_argument("model", metavar="RUN", help="folder of a run, a checkpoint or an export")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders, shards (.tar), s3:// or gs://")
    parser.add_argument("--out", default="", metavar="FILE", help=".csv, .parquet or .jsonl [CSV on standard output]")
    parser.add_argument("--top", type=int, default=0, metavar="N", help="the N best classes, whatever their score")
    parser.add_argument("--threshold", type=float, metavar="P", help="classes of at least this probability [0.5]")
    about = "predictions of a validation split: each class at the threshold of its best F1 there"
    parser.add_argument("--thresholds-from", metavar="PREDICTIONS", help=about)
    parser.add_argument(
        "--overlays", default="", metavar="DIR", help="write each picture with the map of its best class"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="1: this process alone, without Ray [1]")
    parser.add_argument("--address", default="", help="Ray cluster to join (also RAY_ADDRESS) [a private one]")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="[auto]")
    return parser.parse(argv)


def choice(asked: Any, model: Classifier) -> Choice:
    """Which classes are answered."""
    import numpy as np

    from raypaml.serving.answers import Choice

    if asked.threshold is not None and asked.thresholds_from:
        raise ValueError("threshold and thresholds-from: give one of them")
    if asked.top < 0:
        raise ValueError(f"top={asked.top}: must be at least 1")
    num_classes = len(model.card.class_ids)
    if asked.thresholds_from:
        return Choice(_best_thresholds(asked.thresholds_from, model), asked.top)
    if asked.threshold is None and asked.top:
        return Choice(np.full(num_classes, -np.inf), asked.top)
    threshold = 0.5 if asked.threshold is None else asked.threshold
    if not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold:g}: a probability, must be above 0 and below 1")
    return Choice(np.full(num_classes, np.log(threshold / (1 - threshold))), asked.top)


def _best_thresholds(predictions: str, model: Classifier) -> Any:
    from raypaml.labels import Vocabulary
    from raypaml.predictions.parts import check_vocabulary, open_set
    from raypaml.reports.evaluation import Questions, evaluate

    found = open_set(Path(predictions))
    vocabulary = Vocabulary.read(Path(predictions) / "vocabulary.csv")
    check_vocabulary(found, vocabulary, predictions)
    if vocabulary.digest != model.card.vocabulary:
        raise ValueError(f"thresholds-from={predictions}: of another vocabulary than the model's")
    return evaluate(found, vocabulary, Questions()).best


def predict(asked: Any) -> Iterator[Answer]:
    """The answers for all pictures, in the order given."""
    from raypaml.serving.pictures import find_pictures
    from raypaml.serving.predicting import answers, answers_of_chunk, batched, loaded
    from raypaml.training.distributed import own_gpu

    alone = asked.workers == 1 and not asked.address
    own = "cuda" if alone and own_gpu(asked.device) else "cpu"
    chosen = choice(asked, loaded(asked.model, own))
    pictures = find_pictures(asked.images)
    if alone:
        yield from answers(loaded(asked.model, own), pictures, chosen, asked.overlays)
        return
    with device_mapper(asked.workers, asked.address, asked.device) as (run, gpu):
        device, model = "cuda" if gpu else "cpu", str(Path(asked.model).absolute())
        chunks = enumerate(batched(pictures, CHUNK))
        overlays = asked.overlays and str(Path(asked.overlays).absolute())
        calls = ((number, model, device, chunk, chosen, overlays) for number, chunk in chunks)
        yield from _in_order(run(answers_of_chunk, calls))


def _in_order(parts: Iterable[tuple[int, list[Answer]]]) -> Iterator[Answer]:
    early: dict[int, list[Answer]] = {}
    following = 0
    for number, part in parts:
        early[number] = part
        while following in early:
            yield from early.pop(following)
            following += 1


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, write, and name what was broken."""
    from raypaml.serving.answers import check_out, writer
    from raypaml.serving.predicting import loaded

    asked = parse(sys.argv[1:] if argv is None else argv)
    check_out(asked.out)
    card = loaded(asked.model, "cpu").card
    broken: list[tuple[str, str]] = []
    progress = _Progress()
    with writer(asked.out) as out:
        for name, found in predict(asked):
            progress.count(bool(found))
            if isinstance(found, str):
                broken.append((name, found))
            else:
                out.write(name, [(card.class_ids[k], card.names[k], score) for k, score in found])
    progress.end(len(broken))
    for name, reason in broken:
        _say(f"broken: {name}: {reason}")
    return 1 if broken else 0


class _Progress:
    """Lines on standard error, every other second."""

    def __init__(self) -> None:
        self._began = self._said = time.monotonic()
        self._images = self._empty = 0

    def count(self, any_class: bool) -> None:
        self._images += 1
        self._empty += not any_class
        if time.monotonic() - self._said > SAY_SECONDS:
            self._said = time.monotonic()
            _say(f"{self._images:,} images, {self._images / (self._said - self._began):,.0f} a second")

    def end(self, broken: int) -> None:
        rate = self._images / max(time.monotonic() - self._began, 1e-9)
        _say(
            f"{self._images:,} images, {rate:,.0f} a second; {broken:,} broken, "
            f"{self._empty:,} without a class that reaches its threshold"
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main, PROG)
