"""Compares the maps of a run with those of other runs, in one process or many, and writes them as a page."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from raypaml.bounds import check_bounds
from raypaml.config import TrainConfig
from raypaml.counting import Count
from raypaml.data.batches import Reader
from raypaml.data.data_folder import DataFolder, open_folder, resolve_data
from raypaml.data.plan import Plan
from raypaml.explanations.boxes import Boxes, read_boxes
from raypaml.explanations.comparing import explain_steps
from raypaml.explanations.explain_page import write_explain_page, write_pairs
from raypaml.explanations.pairs import Pairs
from raypaml.files import Place, as_texts, write_json
from raypaml.labels import GROUP_NAMES, IntArray
from raypaml.mapper import Mapper
from raypaml.model.cam import CamClassifier
from raypaml.names import output_name
from raypaml.runs.alpha_of_use import UsedAlpha, alpha_text, used_alpha
from raypaml.runs.history import read_history
from raypaml.runs.models import checkpoint_model, find_checkpoint
from raypaml.runs.run_folder import changed_data, check_trained_classes, stored_config

MOST_ROWS = 1000
"""The most pairs that a page shows; it holds the pictures of all of them."""
PART_SAMPLES = 512
"""Samples of the split in one task."""
WAYS_TO_SHOW = ("spread", "high", "low", "errors")
"""Ways to choose the pairs of image and class that are shown, see `ShownPairs.show`."""


@dataclass(frozen=True)
class Subject:
    """A model whose maps are looked at; picklable, so that processes load the model themselves."""

    run: Path
    """Folder of the run."""
    checkpoint: Path
    config: TrainConfig
    used: UsedAlpha
    """The alpha that the model is used with."""

    @classmethod
    def find(cls, given: Place, alpha: str = "") -> Subject:
        """Find the best checkpoint of a run, or the named checkpoint; `alpha` is what `used_alpha` takes."""
        run, checkpoint = find_checkpoint(Path(given))
        config = stored_config(run)
        if config is None:
            raise ValueError(f"{given}: neither the folder of a run nor one of its checkpoints")
        return cls(run, checkpoint, config, used_alpha(run, checkpoint, config.model.alpha, alpha))

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    def model(self, num_classes: int) -> CamClassifier:
        """The model, on the CPU."""
        return checkpoint_model(self.checkpoint, self.config.model, num_classes, self.used.alpha)


@dataclass(frozen=True, kw_only=True)
class ShownPairs:
    """Chooses the pairs of image and class that are shown.

    Raises:
        ValueError: no such way or group, or a negative number.
    """

    show: str = "spread"
    """spread: positives over the whole range of scores; high or low: positives with the highest or lowest scores;
    errors: negatives with the highest scores."""
    rows: int = 12
    """Number of pairs that are shown."""
    classes: tuple[str, ...] = ()
    """The classes that are shown, as `Vocabulary.columns_of` takes them; empty for all."""
    group: str = ""
    """The class group that is shown, G1 to G5; "" for all."""

    def __post_init__(self) -> None:
        if self.show not in WAYS_TO_SHOW:
            raise ValueError(f"show={self.show!r}: must be one of {', '.join(WAYS_TO_SHOW)}")
        check_bounds("rows", self.rows, 0, MOST_ROWS)
        if self.group not in ("", *GROUP_NAMES):
            raise ValueError(f"group={self.group!r}: must be G1, G2, G3, G4 or G5")

    def of(self, pairs: Pairs, data: DataFolder) -> list[tuple[int, int]]:
        """(sample number, class column) of the pairs to show."""
        wanted = ~pairs.positive if self.show == "errors" else pairs.positive
        if self.classes:
            wanted = wanted & np.isin(pairs.class_index, data.vocabulary.columns_of(self.classes))
        if self.group:
            wanted = wanted & (data.vocabulary.class_group[pairs.class_index] == int(self.group[1]))
        places = np.flatnonzero(wanted)
        places = self._some(places[np.argsort(pairs.score[places], kind="stable")])
        return [(int(pairs.row[n]), int(pairs.class_index[n])) for n in places]

    def _some(self, places: IntArray) -> IntArray:
        """Choose among places that are in the order of their scores."""
        if self.show == "low":
            return places[: self.rows]
        if self.show in ("high", "errors"):
            return places[::-1][: self.rows]
        return places[np.unique(np.linspace(0, len(places) - 1, min(self.rows, len(places))).astype(np.int64))]


@dataclass(frozen=True, kw_only=True)
class MapsRequest:
    """What `raypaml explain` is asked for; the fields are its flags."""

    against: Place = ""
    """The run whose maps the model's are compared with, usually trained on full labels; "" for none."""
    beside: Place | Sequence[Place] = ()
    """A run or runs whose maps are shown too."""
    data: Place = ""
    """A data set of the same classes, in the place of the run's own; "" for the run's own."""
    split: str = "test"
    """The split whose images are looked at."""
    boxes: Place = ""
    """CSV with known boxes of the split, in the format of Open Images; "" for the data set's own."""
    limit: int = 0
    """Number of images, from the first of the split; 0 for all."""
    show: str = "spread"
    """Which pairs of image and class are shown: spread, high, low or errors, see `ShownPairs.show`."""
    rows: int = 12
    """Number of pairs that are shown."""
    classes: str | Sequence[str] = ()
    """The class or classes that are shown, by name or id, or G1 to G5 for those of a class group; empty for all."""
    group: str = ""
    """The class group that is shown, G1 to G5; "" for all."""
    raw: bool = False
    """Whether maps are shown as they are before BoostLU."""
    out: Place = ""
    """Folder for the page; "" for one in the run's folder."""
    alpha: float | str = ""
    """The alpha that the model is used with, as `raypaml.load` takes it."""

    @property
    def shown(self) -> ShownPairs:
        """The choice of the pairs that are shown; ValueError where there is no such choice."""
        return ShownPairs(show=self.show, rows=self.rows, classes=tuple(as_texts(self.classes)), group=self.group)


@dataclass(frozen=True)
class ExplainedRuns:
    """A run that is explained, the run that it is compared with, others that are shown beside them, and the images."""

    this: Subject
    other: Subject | None
    beside: tuple[Subject, ...]
    data: DataFolder
    split: str

    @classmethod
    def open(cls, run: Path, request: MapsRequest, say: Callable[[str], None]) -> ExplainedRuns:
        """Find the models and open the data.

        Args:
            run: folder of the explained run or of one of its checkpoints.
            request: the other runs, which are used with their own alpha, the data and the split.
            say: prints a line of progress.

        Raises:
            ValueError: one is no run or checkpoint, two have one name, or their classes are not those of the data.
        """
        this, against, split = Subject.find(run, str(request.alpha)), os.fspath(request.against), request.split
        other = Subject.find(against) if against else None
        folder = open_folder(resolve_data(str(request.data) or this.config.data.data, say), **this.config.data.opening)
        if split not in folder.splits:
            raise ValueError(f"split={split!r}: the data set has {', '.join(folder.splits)}")
        runs = cls(this, other, tuple(map(Subject.find, as_texts(request.beside))), folder, split)
        everyone = runs.everyone
        if len({subject.name for subject in everyone}) < len({subject.run.resolve() for subject in everyone}):
            folders = ", ".join(str(subject.run) for subject in everyone)
            raise ValueError(f"{folders}: two runs of one name could not be told apart; give a folder another name")
        for subject in everyone:
            check_trained_classes(subject.run, folder.vocabulary.digest, folder.address)
            if not request.data and (changed := changed_data(subject.run, folder, [split])):
                say(changed)
            say(f"{subject.name}: alpha {alpha_text(subject.used.alpha)}, {subject.used.alpha_origin}")
        return runs

    @property
    def everyone(self) -> list[Subject]:
        """All models, the run itself first."""
        return [self.this, *([self.other] if self.other else []), *self.beside]

    def boxes(self, path: Path, say: Callable[[str], None]) -> Boxes:
        """The boxes of the images of the split, from a file in the format of Open Images."""
        index = self.data.splits[self.split]
        height, width, _ = Reader(self.data.shards, index, []).shape
        boxes, counted = read_boxes(path, index, self.data.vocabulary, (height, width))
        say(counted)
        return boxes

    def compare(self, boxes: Boxes | None, limit: int, run: Mapper, device: str, say: Callable[[str], None]) -> Pairs:
        """The figures of all pairs of image and class; they do not depend on the number of processes.

        Args:
            boxes: boxes of the split; None for the data set's own.
            limit: number of images, from the first of the split; 0 for all.
            run: maps calls over processes.
            device: "cuda" or "cpu", where each of these processes computes.
            say: prints a line of progress.
        """
        if limit < 0:
            raise ValueError(f"limit={limit}: must be at least 0, which is for all")
        total = min(len(self.data.splits[self.split]), limit or len(self.data.splits[self.split]))
        size = self.this.config.data.global_batch_size
        step = -(-PART_SAMPLES // size) * size
        calls = []
        for first in range(0, total, step):
            end = min(first + step, total)
            own = boxes.between(first, end) if boxes else None
            calls.append((self.this, self.other, self.data.address, self.split, own, first, end, device))
        parts = list(Count("explaining", len(calls), say, unit="parts").each(run(explain_part, calls)))
        pairs = Pairs.concatenated([Pairs.empty(), *parts])
        return pairs.take(np.lexsort((pairs.class_index, pairs.row)))

    @property
    def own_folder(self) -> Path:
        """The folder in the run's folder for the page."""
        name = f"{self.split}-against-{self.other.name}" if self.other else self.split
        return self.this.run / "explanations" / output_name(name)

    def write(
        self, out: Path, pairs: Pairs, choice: ShownPairs, *, boosted: bool = True, boxes: Boxes | None = None
    ) -> Path:
        """Write `explanations.html`, `explanations.json` and `pairs.csv`; returns the page.

        Args:
            out: an existing folder.
            pairs: the figures that `compare` returned.
            choice: chooses the pairs that are shown.
            boosted: show maps after BoostLU.
            boxes: boxes to draw on the images; None for the data set's own.
        """
        models = {subject.name: subject.model(len(self.data.vocabulary)) for subject in self.everyone}
        names = self.this.name, self.other.name if self.other else ""
        shown = choice.of(pairs, self.data)
        histories = {subject.name: read_history(subject.run) for subject in self.everyone}
        alphas = {subject.name: subject.used for subject in self.everyone}
        figures = write_explain_page(
            out, pairs, self.data, self.split, models, shown, names, histories, alphas, boosted=boosted, boxes=boxes
        )
        write_json(out / "explanations.json", figures, indent=1)
        write_pairs(out / "pairs.csv", pairs, self.data, self.split)
        return out / "explanations.html"


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
    """The figures of the pairs in the samples from `first` to `end` - 1 of a split."""
    data = open_folder(data_address, **this.config.data.opening)
    num_classes = len(data.vocabulary)
    model = this.model(num_classes).to(device)
    compared = other.model(num_classes).to(device) if other else None
    size = this.config.data.global_batch_size
    plan = Plan(num_samples=end, global_batch_size=size, lanes=1, shuffle=False)
    steps = plan.epoch(0, 0, 1)[first // size :]
    skips = this.config.data.skip_budget > 0  # as the run's own evaluation and report
    return explain_steps(model, compared, data, split, steps, torch.device(device), boxes=boxes, skip_broken=skips)
