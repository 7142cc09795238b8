"""Predicts a split with a model, and computes the figures of the predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from raypaml.bounds import check_bounds
from raypaml.cluster.tasks import MOST_WORKERS, device_mapper
from raypaml.counting import Count
from raypaml.evaluation.aggregation import measures_by_class
from raypaml.evaluation.choosing import choose_for_use
from raypaml.evaluation.measures import Evaluation, evaluate_set
from raypaml.evaluation.parts import open_set, read_vocabulary
from raypaml.evaluation.prediction_plan import (
    PredictionPlan,
    SplitRequest,
    check_skipped,
    plan_asked,
    predict_part_alone,
)
from raypaml.evaluation.result_records import Summary
from raypaml.evaluation.summary import summary, table
from raypaml.mapper import Processes
from raypaml.reports.tables import percent
from raypaml.runs.models import find_checkpoint
from raypaml.runs.ranks import one_thread
from raypaml.writable import try_folder


@dataclass(frozen=True)
class PredictedSplit:
    """The predictions of a split; figures count observed labels alone, under the convention `paper`."""

    folder: Path
    """Folder of the predictions, for `raypaml aggregate`."""
    split: str
    data: str
    """Path or address of the data set."""
    skipped: int
    """Number of broken images that were left out; the metadata of the prediction files name them."""
    choice: str = ""
    """The alpha and the thresholds that were chosen, in words; "" where they were not asked for."""

    @property
    def figures(self) -> Summary:
        """`mean_ap` (0..1), `groups`, and what they count, at the alpha of training."""
        return summary(self._evaluation)

    @property
    def classes(self) -> pa.Table:
        """A row for each class: annotations, `ap` (0..1, NaN without labels), `best_threshold`, registered metrics."""
        return pa.table(measures_by_class(self._evaluation))

    @cached_property
    def _evaluation(self) -> Evaluation:
        predictions = open_set(self.folder)
        return evaluate_set(predictions, read_vocabulary(self.folder, predictions))

    def __repr__(self) -> str:
        figures = self.figures
        about = f"{figures['images']:,} images, mAP {percent(figures['mean_ap'])}"
        return f"<PredictedSplit {self.split}: {about}, in {self.folder}>"

    def _repr_markdown_(self) -> str:
        return "\n\n".join(filter(None, [table(self.figures), self.choice]))


def predict_split_of(
    given: Path, request: SplitRequest, processes: Processes, say: Callable[[str], None]
) -> PredictedSplit:
    """Predict a split with a run or a checkpoint, and choose its alpha on validation if asked; see `plan_asked`.

    Raises:
        ValueError: no workers, or what `plan_asked` refuses.
    """
    check_bounds("workers", processes.workers, 1, MOST_WORKERS)
    if request.choose_alpha:
        try_folder(find_checkpoint(given)[0])  # the choice is kept in the run
    plan = plan_asked(given, request, say)
    try:
        _predict(plan, processes, say)
    except KeyboardInterrupt:
        say("stopped; the same command goes on with the parts that are missing")
        raise
    skipped = check_skipped(plan)
    choice = choose_for_use(plan) if request.choose_alpha else ""
    return PredictedSplit(plan.folder, plan.parts[0].split, plan.data, skipped, choice)


def _predict(plan: PredictionPlan, processes: Processes, say: Callable[[str], None]) -> None:
    """Predict the parts that are missing."""
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
    with one_thread(), device_mapper(processes) as (run, device):
        for _ in count.each(run(predict_part_alone, [(plan, part, device) for part in left]), lambda part: sizes[part]):
            pass
