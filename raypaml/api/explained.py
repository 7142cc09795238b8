"""The class activation maps of a model as figures, a table and a page."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.csv

from raypaml.cli import command
from raypaml.cluster.tasks import device_mapper
from raypaml.explanations.explain_runs import ExplainedRuns, ShownPairs
from raypaml.explanations.explanation_figures import MapFigures
from raypaml.files import Place, as_texts
from raypaml.stored_json import read_stored, refused_as


@dataclass(frozen=True)
class Explained:
    """The page with the maps of a model, which may be compared with those of another one."""

    page: Path
    """`explanations.html`, one file."""

    @classmethod
    def of(
        cls,
        run: Path,
        *,
        against: Place = "",
        beside: Place | Sequence[Place] = (),
        data: Place = "",
        split: str = "test",
        boxes: Place = "",
        limit: int = 0,
        show: str = "spread",
        rows: int = 12,
        classes: str | Sequence[str] = (),
        group: str = "",
        raw: bool = False,
        out: Place = "",
        alpha: float | str = "",
        workers: int = 1,
        address: str = "",
        device: str = "auto",
        say: Callable[[str], None] = lambda _: None,
    ) -> Self:
        """Compare the maps of a split, and write figures and page.

        Args:
            run: folder of a run or of one of its checkpoints.
            against: the run whose maps they are compared with, usually trained on full labels.
            beside: a run or runs whose maps are shown too.
            data: a data set of the same classes, in the place of the run's own.
            split: the split whose images are looked at.
            boxes: CSV with known boxes of the split, in the format of Open Images; default: the data set's own.
            limit: number of images, from the first of the split; 0: all.
            show: which pairs of image and class are shown: spread, high, low or errors.
            rows: number of pairs that are shown.
            classes: only this or these, by name or id.
            group: only classes of this group, G1 to G5.
            raw: show maps before BoostLU.
            out: folder for the page; default: one in the run's folder.
            alpha: as `raypaml.load` takes it.
            workers, address, device: as the flags of `raypaml explain` of these names.
            say: prints a line of progress.

        Raises:
            ValueError: runs, data or choices do not fit each other.
        """
        choice = ShownPairs(show=show, rows=rows, classes=tuple(as_texts(classes)), group=group)
        runs = ExplainedRuns.open(str(run), os.fspath(against), as_texts(beside), str(data), split, say, str(alpha))
        read = runs.boxes(Path(boxes), say) if str(boxes) else None
        with device_mapper(workers, address, device) as (mapper, used):
            pairs = runs.compare(read, limit, mapper, used, say)
        folder = Path(out) if str(out) else None
        return cls(runs.write(folder, pairs, choice, boosted=not raw, boxes=read))

    @property
    def figures(self) -> MapFigures:
        """The figures of the maps, as `explanations.json` has them."""
        path = self.page.parent / "explanations.json"
        with refused_as(path, "the figures of maps", f"{command('explain')} writes it again"):
            return read_stored(path, MapFigures)

    @property
    def pairs(self) -> pa.Table:
        """A row for each pair of image and class."""
        return pyarrow.csv.read_csv(self.page.parent / "pairs.csv")
