"""The epochs of a trial on their way to Ray Tune: each goes there once, in their order, whatever workers are lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune.integration.ray_train import TuneReportCallback

from raypaml.runs.history import EpochRecord, read_history
from raypaml.search.trials import TrialProgress


class EpochsInOrder(TuneReportCallback):  # type: ignore[misc]
    """A callback of Ray Train's controller that passes reports on to Tune.

    Those that were lost with a worker, whose checkpoint of the epoch was not, are made again from the run's records.

    Args:
        folder: of the run.
        progress: makes a report from an epoch's record.
        reported: number of epochs that Tune knows already.
    """

    def __init__(self, folder: Path, progress: Callable[[EpochRecord], TrialProgress], reported: int) -> None:
        super().__init__()
        self._folder, self._progress, self._reported = folder, progress, reported

    def after_report(self, run_context: object, metrics: list[dict[str, Any]], checkpoint: object) -> None:
        """Pass on the report of rank 0, unless Tune has it."""
        epoch = metrics[0]["epoch"]
        if epoch > self._reported + 1:
            for record in read_history(self._folder)[self._reported : epoch - 1]:
                super().after_report(run_context, [dict(self._progress(record))], None)
        if epoch > self._reported:
            super().after_report(run_context, metrics, checkpoint)
            self._reported = epoch
