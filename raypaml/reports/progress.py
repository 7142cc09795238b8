"""Progress of a run on the driver: one live display on a terminal, lines with the time elsewhere."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from raypaml.cli import visible
from raypaml.config import TrainConfig
from raypaml.counting import clock, epoch_number
from raypaml.log_lines import stamped
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


def print_line(console: Console, text: str) -> None:
    """Print a line above a live display; where there is none, a log gets the time with it."""
    line = visible(text) if console.is_terminal or console.is_jupyter else stamped(visible(text))
    console.print(line, soft_wrap=True, markup=False)


class _Bar(Progress):
    """A progress bar and lines of figures below it, each cut at the width of the terminal."""

    figures: tuple[str, ...] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and the lines."""
        yield self.make_tasks_table(self.tasks)
        yield from (Text(line, no_wrap=True, overflow="ellipsis", style="default") for line in self.figures)


class Display:
    """Shows the events that training workers report."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or progress_console()
        self._live = shows_live(self.console)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._progress = _Bar(*columns, console=self.console, disable=not self._live)
        self._task = self._progress.add_task("starting", total=None, left="")
        self._last_line = time.monotonic()
        self._rate = 0.0
        self._validation = ""
        self._epoch_ended: float | None = None
        """When the last step of an epoch was reported that is being validated."""
        self._between: float | None = None
        """Seconds of the last validation, with what else is done between two epochs; None before the first."""
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
        print_line(self.console, text)

    def update(self, event: Event) -> None:
        """Show one event."""
        if self.tracking is not None:
            self.tracking.update(event)
        match event:
            case Message():
                self.say(event.text)
            case EpochReport():
                if self._epoch_ended is not None:
                    self._between, self._epoch_ended = time.monotonic() - self._epoch_ended, None
                width = self.console.width if self._live else 0
                self.say(in_lines(_epoch_parts(event.record, event.epochs), width))
                self._validation = f"validation mAP {percent(event.record[VALIDATION_MEAN_AP])}"
                self._last_line = time.monotonic()
            case Activity():
                self._progress.figures = (f"  {event.text}",)
                self._progress.update(self._task, total=None, left="")
                self._say_sometimes(event.text)
            case StepReport():
                self._step(event)

    def _step(self, event: StepReport) -> None:
        rate = event.images_per_second
        self._rate = 0.9 * self._rate + 0.1 * rate if self._rate else rate  # exponential moving average
        if event.step == event.steps:
            self._epoch_ended = time.monotonic()
        title, left = f"epoch {epoch_number(event.epoch)}/{event.epochs}", self._left(event)
        learned = f"loss {figure(event.loss, '.4f')}", f"rejected {event.rejected:,}", self._validation
        used = (
            f"{self._rate:,.0f} images/s",
            f"{event.data_wait_share:.0%} waiting for data",
            _memory(event.memory_bytes),
        )
        self._progress.figures = "  " + "  ".join(filter(None, learned)), "  " + ", ".join(used)
        self._progress.update(self._task, description=title, total=event.steps, completed=event.step, left=left)
        state = "  ".join([*filter(None, learned), ", ".join(used), left])
        self._say_sometimes(f"{title}  step {event.step}/{event.steps}  {state}")

    def _left(self, event: StepReport) -> str:
        """The time left of the whole run, with the validations to come once the first has been timed."""
        if not self._rate:
            return "time left not known yet"
        training = event.samples_left / self._rate
        if self._between is None:
            return f"{clock(training)} of training left"
        return f"{clock(training + self._between * (event.epochs - event.epoch))} left"

    def _say_sometimes(self, text: str) -> None:
        """Print a line where there is no live display, at most one in PLAIN_SECONDS."""
        if not self._live and time.monotonic() - self._last_line > PLAIN_SECONDS:
            self.say(text)
            self._last_line = time.monotonic()


def in_lines(parts: Iterable[str], width: int) -> str:
    """Parts of a line as one line, or as lines of at most `width` signs, of which the later ones are indented."""
    lines = [""]
    for part in parts:
        longer = f"{lines[-1]}  {part}" if lines[-1].strip() else lines[-1] + part
        if width and len(longer) > width and lines[-1].strip():
            lines.append("    " + part)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _epoch_parts(record: EpochRecord, epochs: int) -> Iterable[str]:
    yield f"epoch {epoch_number(record['epoch'])}/{epochs}"
    yield f"loss {figure(record['loss'], '.4f')}"
    rejected = f"rejected {record['rejected']:,}"
    if record["rejection_precision"] is not None:
        share = f"{record['rejection_precision']:.0%} of them missed positives"
        recall = record["rejection_recall"]
        rejected += f" ({share}, {'no positive was missed' if recall is None else f'{recall:.0%} of all missed'})"
    yield rejected
    yield f"validation mAP {percent(record[VALIDATION_MEAN_AP])}"
    yield f"{clock(record['epoch_seconds'])} ({clock(record['seconds'])} in all)"
    yield _usage_text(record)
    if "drift" in record:
        yield f"comparing maps with the reference took {record['drift']['share_of_epoch']:.1%} of the epoch"


def _usage_text(record: EpochRecord) -> str:
    """The resources that an epoch used, as far as they are known."""
    shares = (
        (record["data_wait_share"], "waiting for data"),
        (record["collective_share"], "in collectives"),
        (record["model_flop_utilisation"], "of the device's peak"),
    )
    parts = [f"{share:.0%} {said}" for share, said in shares if share is not None]
    rate = f"{record['images_per_second']:,.0f} images/s"
    return ", ".join([rate, *parts, f"{_memory(record['peak_memory_bytes'] or 0)} at most"])


def _memory(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
