"""Progress of a search: a live table of its trials on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from raypaml.counting import number_of
from raypaml.reports.progress import print_line, progress_console, shows_live
from raypaml.reports.tables import percent
from raypaml.runs.history import VALIDATION_MEAN_AP
from raypaml.search.search_folder import Outcome, SearchPlan
from raypaml.search.trials import Trial, TrialProgress

_COLUMNS = ("trial", "state", "epoch", "validation\nmAP", "best", "rejected", "of them\nmissed")
ENDED = ["finished", "stopped", "failed"]


@dataclass
class _Row:
    """A trial in the table."""

    state: str = "planned"
    epochs_done: int = 0
    """Epochs trained; 0 before the first report."""
    validation_mean_ap: float = math.nan
    best: float = 0.0
    rejected: int = 0
    rejection_precision: float | None = None


class SearchDisplay:
    """Shows the progress of the trials of a search."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or progress_console()
        self._rows: dict[str, _Row] = {}
        self._epochs = 0
        self._live = Live(console=self.console, get_renderable=self._table, auto_refresh=False)

    def __enter__(self) -> Self:
        if shows_live(self.console):
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __reduce__(self) -> tuple[type[SearchDisplay], tuple[()]]:
        return SearchDisplay, ()  # Tune pickles its callbacks, and with them the display, but never uses the copy

    def say(self, text: str) -> None:
        """Print one line above the table."""
        print_line(self.console, text)

    def begin(self, search: SearchPlan, outcomes: Sequence[Outcome]) -> None:
        """Show the trials that are known so far."""
        self._epochs = search.base.optim.epochs
        ended = sum(one.state in ENDED[:2] for one in outcomes)
        self.say(f"search {search.folder.name}: {', '.join(space.text for space in search.spaces)}; in {search.folder}")
        self.say(f"{number_of(len(outcomes), 'trial')} planned, {ended} of them ended already")
        for one in outcomes:
            self._show(one)

    def start(self, trial: Trial) -> None:
        """Show that a trial starts or goes on."""
        self._row(trial.name).state = "starting"
        self._refresh(f"{trial.name}: starts")

    def update(self, trial: Trial, report: TrialProgress) -> None:
        """Show the report of a trial on an epoch."""
        row, score = self._row(trial.name), report[VALIDATION_MEAN_AP]
        if report["epoch"] <= row.epochs_done:  # again, after a loss
            row.state = "running"
            return
        row.state, row.epochs_done, row.best = "running", report["epoch"], max(score, row.best)
        row.validation_mean_ap, row.rejected = score, report["rejected"]
        row.rejection_precision = report["rejection_precision"]
        self._refresh(
            f"{trial.name}: epoch {row.epochs_done}/{self._epochs}  validation mAP {percent(score)}  "
            f"rejected {row.rejected:,}"
        )

    def end(self, one: Outcome) -> None:
        """Show that a trial has ended."""
        self._show(one)
        early = f"; {one.stopped_early}" if one.stopped_early else ""
        why = {
            "finished": f"finished, best validation mAP {percent(one.score)}{early}",
            "stopped": f"stopped after epoch {len(one.history)}: behind the others",
            "failed": f"failed: {one.error}",
            "running": f"stopped after {number_of(len(one.history), 'epoch')}; the same command goes on with it",
        }
        self._refresh(f"{one.trial.name}: {why.get(one.state, one.state)}")

    def _show(self, one: Outcome) -> None:
        row = self._row(one.trial.name)
        row.state = one.state
        if one.history:
            last = one.history[-1]
            row.epochs_done, row.best, row.validation_mean_ap = len(one.history), one.score, last[VALIDATION_MEAN_AP]
            row.rejected, row.rejection_precision = last["rejected"], last["rejection_precision"]

    def _row(self, name: str) -> _Row:
        return self._rows.setdefault(name, _Row())

    def _refresh(self, line: str) -> None:
        if shows_live(self.console):
            self._live.refresh()
        else:
            self.say(line)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for number, name in enumerate(_COLUMNS):
            width = 1 if number == 0 else len("finished") if number == 1 else 6  # the name of a trial gives way
            justify: Literal["left", "right"] = "left" if number < 2 else "right"
            table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis", min_width=width)
        for name, row in self._rows.items():
            cells = [""] * 5
            if row.epochs_done:
                missed = "" if row.rejection_precision is None else f"{row.rejection_precision:.0%}"
                scores = [percent(row.validation_mean_ap), percent(row.best)]
                cells = [f"{row.epochs_done}/{self._epochs}", *scores, f"{row.rejected:,}", missed]
            table.add_row(name, row.state, *cells, style="dim" if row.state in ENDED[1:] else None)
        return table
