"""`python -m raypaml.explain`: what a model looked at, beside another's, and the papers' comparison of their maps."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raypaml.evaluate import runner
from raypaml.flags import Parser, run_command

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from raypaml.config import TrainConfig
    from raypaml.data.boxes import Boxes
    from raypaml.data.folder import DataFolder
    from raypaml.metrics.pairs import Pairs
    from raypaml.model.cam import CamClassifier

PROG = "python -m raypaml.explain"
PART_SAMPLES = 512
"""Of the split, for one task."""
SHOWS = ("spread", "high", "low", "errors")


def parse(argv: Sequence[str]) -> Any:
    """The flags."""
    parser = Parser(prog=PROG, description="Look at a model's maps, and compare them with those of other models.")
    add = parser.add_argument
    add("run", metavar="RUN_OR_CHECKPOINT", help="folder of a run (its best checkpoint) or of one")
    add("--against", default="", metavar="RUN", help="compare with this run's maps, usually trained on full labels")
    add("--beside", default="", metavar="RUN,RUN", help="show the maps of these runs too, side by side")
    add("--data", default="", help="folder of shards, index and vocabulary [the run's]")
    add("--split", default="test", help="[test]")
    add(
        "--boxes",
        default="",
        metavar="FILE",
        help="box CSV of Open Images for this split [the data's own]",
    )
    add("--limit", type=int, default=0, metavar="N", help="only the first N images of the split [0: all]")
    add("--classes", default="", metavar="NAME,NAME", help="show only these classes, by name or id")
    add("--group", default="", metavar="G1|..|G5", help="show only classes of this group")
    add(
        "--show",
        choices=SHOWS,
        default="spread",
        help="spread: positives of every score; high or low ones; errors: negatives that score highest [spread]",
    )
    add("--rows", type=int, default=12, metavar="N", help="images shown [12]")
    add("--raw", action="store_true", help="show maps before BoostLU")
    add("--out", default="", metavar="DIR", help="[RUN/explanations/SPLIT, or .../SPLIT-against-RUN]")
    add("--workers", type=int, default=1, metavar="N", help="1: this process alone, without Ray [1]")
    add("--address", default="", help="Ray cluster to join (also RAY_ADDRESS) [a private one]")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="[auto]")
    return parser.parse(argv)


@dataclass(frozen=True)
class Subject:
    """A model to look at; picklable."""

    run: Path
    """Folder of the run."""
    checkpoint: Path
    config: TrainConfig

    @classmethod
    def find(cls, given: str) -> Subject:
        """The best checkpoint of a run, or the checkpoint given."""
        from raypaml.training.models import find_checkpoint
        from raypaml.training.run_folder import stored_config

        run, checkpoint = find_checkpoint(Path(given))
        config = stored_config(run)
        if config is None:
            raise ValueError(f"{given}: neither the folder of a run nor one of its checkpoints")
        return cls(run, checkpoint, config)

    @property
    def name(self) -> str:
        """Of the run."""
        return self.run.name

    def model(self, num_classes: int) -> CamClassifier:
        """On the CPU."""
        from raypaml.training.models import checkpoint_model

        return checkpoint_model(self.checkpoint, self.config.model, num_classes)


def explain_part(
    this: Subject,
    other: Subject | None,
    data_address: str,
    split: str,
    boxes: Boxes | None,
    first: int,
    end: int,
    device: str,
) -> Pairs:
    """The figures of the pairs of some neighbouring images."""
    import torch

    from raypaml.data.folder import open_folder
    from raypaml.data.plan import Plan
    from raypaml.training.explaining import explain_steps

    data = open_folder(data_address, **this.config.data.opening)
    num_classes = len(data.vocabulary)
    model = this.model(num_classes).to(device)
    compared = other.model(num_classes).to(device) if other else None
    size = this.config.data.global_batch_size
    plan = Plan(num_samples=end, global_batch_size=size, lanes=1, shuffle=False)
    steps = plan.epoch(0, 0, 1)[first // size :]
    return explain_steps(model, compared, data, split, steps, torch.device(device), boxes=boxes)


def collect(this: Subject, other: Subject | None, data: DataFolder, boxes: Boxes | None, asked: Any) -> Pairs:
    """The figures of all pairs, by one process or many; the same in any case."""
    from raypaml.metrics.pairs import Pairs

    total = min(len(data.splits[asked.split]), asked.limit or len(data.splits[asked.split]))
    size = this.config.data.global_batch_size
    step = -(-PART_SAMPLES // size) * size
    with runner(asked) as (run, device):
        calls = []
        for first in range(0, total, step):
            end = min(first + step, total)
            own = boxes.between(first, end) if boxes else None
            calls.append((this, other, data.address, asked.split, own, first, end, device))
        parts = []
        for part in run(explain_part, calls):
            parts.append(part)
            _say(f"{len(parts)}/{len(calls)} parts")
    pairs = Pairs.concatenated([Pairs.empty(), *parts])
    return pairs.take(np.lexsort((pairs.class_index, pairs.row)))


def choose(pairs: Pairs, asked: Any, data: DataFolder) -> list[tuple[int, int]]:
    """The (image, class) pairs to show."""
    vocabulary = data.vocabulary
    wanted = pairs.positive if asked.show != "errors" else ~pairs.positive
    if asked.classes:
        wanted = wanted & np.isin(pairs.class_index, [_column(name, data) for name in asked.classes.split(",")])
    if asked.group:
        if asked.group not in ("G1", "G2", "G3", "G4", "G5"):
            raise ValueError(f"group={asked.group!r}: must be G1, G2, G3, G4 or G5")
        wanted = wanted & (vocabulary.class_group[pairs.class_index] == int(asked.group[1]))
    places = np.flatnonzero(wanted)
    places = places[np.argsort(pairs.score[places], kind="stable")]
    return [(int(pairs.row[n]), int(pairs.class_index[n])) for n in _some(places, asked.show, asked.rows)]


def _some(places: NDArray[np.int64], show: str, count: int) -> NDArray[np.int64]:
    if show == "low":
        return places[:count]
    if show in ("high", "errors"):
        return places[::-1][:count]
    return places[np.unique(np.linspace(0, len(places) - 1, min(count, len(places))).astype(np.int64))]


def _column(name: str, data: DataFolder) -> int:
    vocabulary = data.vocabulary
    if name in vocabulary.index_of:
        return vocabulary.index_of[name]
    if name in vocabulary.names:
        return vocabulary.names.index(name)
    import difflib

    near = difflib.get_close_matches(name, [*vocabulary.names, *vocabulary.class_ids], 1)
    raise ValueError(f"classes={name!r}: no such class{f'; did you mean {near[0]!r}?' if near else ''}")


def main(argv: Sequence[str] | None = None) -> int:
    """Collect, write figures and page, and say where."""
    from raypaml.data.folder import open_folder, resolve_data
    from raypaml.reports.explain_page import write_page, write_pairs
    from raypaml.training.run_folder import check_vocabulary, read_history

    asked = parse(sys.argv[1:] if argv is None else argv)
    this, other = Subject.find(asked.run), Subject.find(asked.against) if asked.against else None
    beside = [Subject.find(run) for run in asked.beside.split(",") if run]
    data = open_folder(resolve_data(asked.data or this.config.data.data, _say), **this.config.data.opening)
    if asked.split not in data.splits:
        raise ValueError(f"split={asked.split!r}: the data set has {', '.join(data.splits)}")
    everyone = [this, *([other] if other else []), *beside]
    if len({subject.name for subject in everyone}) < len({subject.run.resolve() for subject in everyone}):
        folders = ", ".join(str(subject.run) for subject in everyone)
        raise ValueError(f"{folders}: two runs of one name could not be told apart; give a folder another name")
    for subject in everyone:
        check_vocabulary(subject.run, data.vocabulary.digest, data.address)
    boxes = _boxes(asked, data)
    pairs = collect(this, other, data, boxes, asked)
    out = Path(asked.out) if asked.out else _default_out(this, other, asked.split)
    out.mkdir(parents=True, exist_ok=True)
    models = {subject.name: subject.model(len(data.vocabulary)) for subject in everyone}
    names, shown = (this.name, other.name if other else ""), choose(pairs, asked, data)
    histories = {subject.name: read_history(subject.run) for subject in everyone}
    found = write_page(
        out, pairs, data, asked.split, models, shown, names, histories, boosted=not asked.raw, boxes=boxes
    )
    (out / "explanations.json").write_text(json.dumps(found, indent=1) + "\n")
    write_pairs(out / "pairs.csv", pairs, data, asked.split)
    print(out / "explanations.html")
    return 0


def _boxes(asked: Any, data: DataFolder) -> Boxes | None:
    """Those of the file asked for, None where the data set's own are meant."""
    from raypaml.data.batches import Reader
    from raypaml.data.boxes import read_boxes

    if not asked.boxes:
        return None
    index = data.splits[asked.split]
    height, width, _ = Reader(data.shards, index, []).shape
    boxes, said = read_boxes(Path(asked.boxes), index, data.vocabulary, (height, width))
    _say(said)
    return boxes


def _default_out(this: Subject, other: Subject | None, split: str) -> Path:
    return this.run / "explanations" / (f"{split}-against-{other.name}" if other else split)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main, PROG)
