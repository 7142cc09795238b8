"""The class activation maps of a model as figures, a table and a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from raypaml.cli import command
from raypaml.cluster.tasks import device_mapper
from raypaml.explanations.explain_runs import ExplainedRuns, MapsRequest
from raypaml.explanations.explanation_figures import MapFigures
from raypaml.mapper import Processes
from raypaml.outputs import output_folder
from raypaml.spreadsheets import from_cells
from raypaml.stored_json import read_stored, refused_as


@dataclass(frozen=True)
class Explained:
    """The page with the maps of a model, which may be compared with those of another one."""

    page: Path
    """`explanations.html`, one file."""

    @property
    def figures(self) -> MapFigures:
        """The figures of the maps, as `explanations.json` has them."""
        path = self.page.parent / "explanations.json"
        with refused_as(path, "the figures of maps", f"{command('explain')} writes it again"):
            return read_stored(path, MapFigures)

    @property
    def pairs(self) -> pa.Table:
        """A row for each pair of image and class."""
        types = {"key": pa.string(), "class_id": pa.string()}
        path, options = self.page.parent / "pairs.csv", pyarrow.csv.ConvertOptions(column_types=types)
        table = pyarrow.csv.read_csv(path, convert_options=options)
        for name in types:
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, from_cells(table[name]))
        return table


def explain_run(run: Path, request: MapsRequest, processes: Processes, say: Callable[[str], None]) -> Explained:
    """Compare the maps of a split, and write figures and page.

    Args:
        run: folder of a run or of one of its checkpoints.
        request: what the maps are compared with, and what is shown.
        processes: the processes that share the images.
        say: prints a line of progress.

    Raises:
        ValueError: runs, data or choices do not fit each other.
    """
    shown = request.shown
    runs = ExplainedRuns.open(run, request, say)
    runs.data.vocabulary.columns_of(shown.classes)  # refused before the work, as is a folder that cannot be written
    with output_folder(Path(request.out) if str(request.out) else runs.own_folder) as folder:
        boxes = runs.boxes(Path(request.boxes), say) if str(request.boxes) else None
        with device_mapper(processes) as (mapper, device):
            pairs = runs.compare(boxes, request.limit, mapper, device, say)
        return Explained(runs.write(folder, pairs, shown, boosted=not request.raw, boxes=boxes))
