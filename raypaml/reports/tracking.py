"""Sends the events of a run to a tracker from a thread of its own, so that a tracker never stops or delays training."""

from __future__ import annotations

import importlib
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from raypaml.cli import extra
from raypaml.counting import epoch_number
from raypaml.files import write_json
from raypaml.reports.trackers import MlFlow, Settings, TensorBoard, Tracker, Values, WeightsAndBiases
from raypaml.runs.events import EpochReport, Event, StepReport
from raypaml.runs.history import VALIDATION_MEAN_AP, column
from raypaml.stored_json import read_if_there

TrackerName = Literal["none", "tensorboard", "mlflow", "wandb"]

WAITING = 10_000
"""The most events that wait for a slow tracker; further ones are dropped and counted."""
STEP_CURVES = ("loss", "images_per_second", "learning_rate", "rejection_rate")
"""Fields of a `StepReport` that become curves."""
EPOCH_CURVES = (
    *("loss", "rejected", "corrected", VALIDATION_MEAN_AP, "rejection_precision", "rejection_recall"),
    *("rejection_rate", "learning_rate", "head_learning_rate"),
    *("epoch_seconds", "images_per_second", "data_wait_share", "collective_share", "peak_memory_bytes"),
    "model_flop_utilisation",
)
"""Fields of an epoch's record that become curves."""
_PATIENCE = 30.0
"""Seconds that the end of a run waits for a tracker."""
_SLOW = 15.0
"""Seconds after which a message says that a tracker has not started, such as when its server cannot be reached."""


class _Logged:
    """How far each axis of a run's curves has been logged, kept in a file for when the run is continued.

    A step or an epoch that is done again, because what came after the last checkpoint was lost, is not logged again.
    """

    def __init__(self, path: Path | None):
        self._path = path
        known = read_if_there(path, dict[str, int], "a note of what was logged", "remove it") if path else None
        self._last: dict[str, int] = known or {}

    def is_new(self, values: Values, place: int) -> bool:
        """Whether the values are the first at their place, which is noted."""
        axis = next(iter(values)).partition("/")[0]
        if place <= self._last.get(axis, 0):
            return False
        self._last[axis] = place
        if self._path:
            self._path.parent.mkdir(exist_ok=True)
            write_json(self._path, self._last)
        return True


class Tracking:
    """Hands the events of training workers, and the result, to a tracker in the background.

    Args:
        make: starts the tracker.
        say: prints a line.
        logged: the file that records how far the run has been logged; None: only this process remembers it.
    """

    def __init__(self, make: Callable[[], Tracker], say: Callable[[str], None], logged: Path | None = None):
        self._logged = _Logged(logged)
        self._waiting: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(WAITING)
        self._say, self._dropped, self._finished = say, 0, False
        self._thread = threading.Thread(target=self._run, args=(make,), daemon=True, name="tracker")
        self._thread.start()

    def update(self, event: Event) -> None:
        """Queue one event for the tracker, without waiting."""
        if point := tracked_values(event):
            self._log(*point)

    def conclude(self, result: Mapping[str, Any], page: Path) -> None:
        """Queue the result of the finished run and the path of its report for the tracker, without waiting."""
        self._finished = True
        self._log(tested_values(result), result["epochs_trained"])
        self._put(lambda tracker: tracker.keep(page))

    def close(self) -> None:
        """Wait at most _PATIENCE seconds for the queued events to be logged, and print how many were not."""
        until = time.monotonic() + _PATIENCE
        with suppress(queue.Full):  # the queue stays full if the tracker hangs
            self._waiting.put(None, timeout=_PATIENCE)
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._say(f"the tracker hangs: {self._waiting.qsize():,} events were not logged; metrics.jsonl has them")
        if self._dropped:
            self._say(f"the tracker was too slow: {self._dropped:,} events dropped; metrics.jsonl has them")

    def _log(self, values: Values, place: int) -> None:
        self._put(lambda tracker: tracker.log(values, place) if self._logged.is_new(values, place) else None)

    def _put(self, call: Callable[[Tracker], None]) -> None:
        try:
            self._waiting.put_nowait(call)
        except queue.Full:
            self._dropped += 1

    def _run(self, make: Callable[[], Tracker]) -> None:
        try:
            tracker = self._begun(make)
            while (call := self._waiting.get()) is not None:
                call(tracker)
            tracker.close(finished=self._finished)
        except Exception as error:  # whatever a tracker does, training goes on
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            self._say(f"the tracker failed, training goes on without it: {reason}")

    def _begun(self, make: Callable[[], Tracker]) -> Tracker:
        """Starts the tracker; prints a message meanwhile if that takes long."""
        text = f"the tracker has not started after {_SLOW:g} seconds; training goes on, and events wait to be logged"
        slow = threading.Timer(_SLOW, self._say, [text])
        slow.daemon = True
        slow.start()
        try:
            return make()
        finally:
            slow.cancel()


def tracked_values(event: Event) -> tuple[Values, int] | None:
    """The values that an event adds to curves, and their place: the steps done so far, or the epoch's number from 1."""
    match event:
        case EpochReport(record):
            curves = {name: column([record], name)[0] for name in EPOCH_CURVES}
            curves["training_seconds"] = record["seconds"]  # of all epochs
            curves |= {f"validation_{group}": value for group, value in record["validation_groups"].items()}
            return dict(_numbers("epoch", curves)), epoch_number(record["epoch"])
        case StepReport():
            return dict(_numbers("step", {name: getattr(event, name) for name in STEP_CURVES})), event.steps_done
    return None


def tested_values(result: Mapping[str, Any]) -> Values:
    """The figures of `result.json` for a tracker: mean AP, of all classes and by group, and registered metrics."""
    figures = {"mean_ap": result["mean_ap"]} | result["groups"]
    figures |= {name: means["All"] for name, means in result.get("metrics", {}).items()}
    if chosen := result.get("chosen_alpha"):
        figures["mean_ap_at_chosen_alpha"] = chosen["mean_ap"]
    return dict(_numbers("test", figures))


def _numbers(kind: str, values: Mapping[str, float | None]) -> Iterator[tuple[str, float]]:
    """The values that are known, by the names of their curves."""
    for name, value in values.items():
        if value is not None and not math.isnan(value):
            yield f"{kind}/{name}", float(value)


def tracking(name: TrackerName, run: Path, settings: Settings, say: Callable[[str], None]) -> Tracking | None:
    """The tracking that a configuration asks for, None for none; ValueError where its package is missing."""
    if name == "none":
        return None
    kinds: dict[str, Callable[[Path, Settings], Tracker]]
    kinds = {"tensorboard": TensorBoard, "mlflow": MlFlow, "wandb": WeightsAndBiases}
    make = kinds[name]
    try:
        importlib.import_module(name)
    except ImportError:
        raise ValueError(f"tracker={name}: not installed; {extra(name)}") from None
    return Tracking(lambda: make(run, settings), say, run / "logs" / f"{name}.json")
