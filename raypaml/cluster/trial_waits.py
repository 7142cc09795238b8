"""Says who holds the CPUs or GPUs that the trials of a search wait for, on a cluster that others use too."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from raypaml.cluster import holders
from raypaml.cluster.waiting import WORDS_SECONDS


class TrialWaits(tune.Callback):  # type: ignore[misc]
    """Tune's callback that says what trials lack, when one has started and every WORDS_SECONDS, where that has changed.

    Args:
        say: prints a line.
        resource: CPU or GPU, of which every worker of a trial takes one.
        workers: the number of workers of a trial.
    """

    def __init__(self, say: Callable[[str], None], resource: str, workers: int) -> None:
        self._say, self._resource, self._workers = say, resource, workers
        self._asked, self._running, self._said = 0.0, 0, ""

    def on_step_end(self, iteration: int, trials: Sequence[TuneTrial], **_: object) -> None:  # noqa: ARG002
        """Ask what lacks; Tune calls this all the time."""
        running = sum(trial.status == TuneTrial.RUNNING for trial in trials)
        if not running or (running == self._running and time.monotonic() - self._asked < WORDS_SECONDS):
            return
        self._asked, self._running = time.monotonic(), running
        lacking = holders.lack(self._resource, self._workers, running * self._workers)
        if lacking and lacking != self._said:
            self._say(f"waiting for workers of a trial to start: {lacking}")
        self._said = lacking
