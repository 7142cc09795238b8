"""Progress of a run on the driver: one live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from raypaml.cli import clock, visible
from raypaml.config import TrainConfig
from raypaml.counting import epoch_number
from raypaml.reports.tables import figure, percent
from raypaml.reports.tracking import Tracking, tracking
from raypaml.runs.events import Activity, EpochReport, Event, Message, StepReport
from raypaml.runs.history import VALIDATION_MEAN_AP, EpochRecord

PLAIN_SECONDS = 15.0
"""Least number of seconds between two plain progress lines within an epoch."""


def progress_console(*, shown: bool = True) -> Console:
    """A console on standard error, or in the cell of a notebook, that shows progress; a silent one if not `shown`."""
    return Console(file=sys.stderr, highlight=False, quiet=not shown)


def shows_live(console: Console) -> bool:
    """Whether a display on this console can change in place: in a terminal, or in a notebook with ipywidgets."""
    has_widgets = console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
    return not console.quiet and (console.is_terminal or has_widgets)


class Display:
    """Shows the events that training workers report."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or progress_console()
        self._live = shows_live(self.console)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
        )
        self._progress = Progress(*columns, console=self.console, disable=not self._live)
        self._task = self._progress.add_task("starting", total=None, state="")
        self._last_line = time.monotonic()
        self._rate = 0.0
        self._validation = ""
        self.tracking: Tracking | None = None
        """The tracker that gets every event too; None where the run has none."""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self.tracking is not None:
            self.tracking.close()

    def close(self) -> None:
        """End the live display; later messages are plain lines."""
        self._progress.stop()

    def track(self, config: TrainConfig, run_folder: Path) -> None:
        """Send all later events to the tracker that the configuration names, if it names one."""
        self.tracking = tracking(config.run.tracker, run_folder, config.flat(), self.say)

    def conclude(self, result: Mapping[str, Any], page: Path) -> None:
        """Send the result of the finished run and the path of its report to the tracker, if there is one."""
        if self.tracking is not None:
            self.tracking.conclude(result, page)

    def say(self, text: str) -> None:
        """Print one line above the display."""
        self._progress.console.print(visible(text), soft_wrap=True, markup=False)

    def update(self, event: Event) -> None:
        """Show one event."""
        if self.tracking is not None:
            self.tracking.update(event)
        match event:
            case Message():
                self.say(event.text)
            case EpochReport():
                self.say(_epoch_line(event.record, event.epochs))
                self._validation = f"  validation mAP {percent(event.record[VALIDATION_MEAN_AP])}"
                self._last_line = time.monotonic()
            case Activity():
                self._progress.update(self._task, description=event.text, total=None, state="")
                self._say_sometimes(event.text)
            case StepReport():
                self._step(event)

    def _step(self, event: StepReport) -> None:
        rate = event.images_per_second
        self._rate = 0.9 * self._rate + 0.1 * rate if self._rate else rate  # exponential moving average
        left = f"{clock(event.samples_left / self._rate)} left" if self._rate else "time left not known yet"
        state = f"loss {figure(event.loss, '.4f')}  rejected {event.rejected:,}  {self._rate:,.0f} images/s  {left}"
        state += self._validation
        title = f"epoch {epoch_number(event.epoch)}/{event.epochs}"
        self._progress.update(self._task, description=title, total=event.steps, completed=event.step, state=state)
        self._say_sometimes(f"{title}  step {event.step}/{event.steps}  {state}")

    def _say_sometimes(self, text: str) -> None:
        """Print a line where there is no live display, at most one in PLAIN_SECONDS."""
        if not self._live and time.monotonic() - self._last_line > PLAIN_SECONDS:
            self.say(text)
            self._last_line = time.monotonic()


def _epoch_line(record: EpochRecord, epochs: int) -> str:
    line = f"epoch {epoch_number(record['epoch'])}/{epochs}  loss {figure(record['loss'], '.4f')}"
    line += f"  rejected {record['rejected']:,}"
    if record["rejection_precision"] is not None:
        share = f"{record['rejection_precision']:.0%} of them missed positives"
        recall = record["rejection_recall"]
        line += f" ({share}, {'no positive was missed' if recall is None else f'{recall:.0%} of all missed'})"
    took = f"{clock(record['epoch_seconds'])} ({clock(record['seconds'])} in all)"
    line += f"  validation mAP {percent(record[VALIDATION_MEAN_AP])}  {took}  {_usage_text(record)}"
    if "drift" in record:
        line += f"  comparing maps with the reference took {record['drift']['share_of_epoch']:.1%} of the epoch"
    return line


def _usage_text(record: EpochRecord) -> str:
    """The resources that an epoch used, as far as they are known."""
    shares = (
        (record["data_wait_share"], "waiting for data"),
        (record["collective_share"], "in collectives"),
        (record["model_flop_utilisation"], "of the device's peak"),
    )
    parts = [f"{share:.0%} {said}" for share, said in shares if share is not None]
    rate = f"{record['images_per_second']:,.0f} images/s"
    memory = f"{(record['peak_memory_bytes'] or 0) / 1e9:.2f} GB at most"
    return ", ".join([rate, *parts, memory])
