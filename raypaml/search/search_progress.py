"""Progress of a search: a live table of its trials on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from raypaml.reports.progress import progress_console, shows_live
from raypaml.reports.tables import percent
from raypaml.runs.history import VALIDATION_MEAN_AP
from raypaml.search.search_folder import Outcome, SearchPlan, TrialProgress
from raypaml.search.trials import Trial

_COLUMNS = ("trial", "state", "epoch", "validation mAP", "best", "rejected", "of them missed")
ENDED = ["finished", "stopped", "failed"]


class SearchDisplay:
    """Shows what happens to the trials of a search."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or progress_console()
        self._rows: dict[str, dict[str, Any]] = {}
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
        return SearchDisplay, ()  # Tune pickles its callbacks, and with them this; nobody reads that

    def say(self, text: str) -> None:
        """Print one line above the table."""
        self.console.print(text, soft_wrap=True, markup=False)

    def begin(self, search: SearchPlan, outcomes: Sequence[Outcome]) -> None:
        """The trials known so far."""
        self._epochs = search.base.optim.epochs
        ended = sum(found.state in ENDED[:2] for found in outcomes)
        self.say(f"search {search.folder.name}: {', '.join(space.text for space in search.spaces)}; in {search.folder}")
        self.say(f"{len(outcomes)} trials planned, {ended} of them ended already")
        for found in outcomes:
            self._show(found)

    def start(self, trial: Trial) -> None:
        """A trial starts or goes on."""
        self._row(trial.name)["state"] = "starting"
        self._refresh(f"{trial.name}: starts")

    def update(self, trial: Trial, result: TrialProgress) -> None:
        """An epoch of a trial has ended."""
        row, score, done = self._row(trial.name), result[VALIDATION_MEAN_AP], result["epoch"]
        row.update(result, state="running", best=max(score, row.get("best", 0)))
        self._refresh(
            f"{trial.name}: epoch {done}/{self._epochs}  validation mAP {percent(score)}  "
            f"rejected {result['rejected']:,}"
        )

    def end(self, found: Outcome) -> None:
        """A trial has ended."""
        self._show(found)
        early = found.result.get("stopped_early")
        why = {
            "finished": f"finished, best validation mAP {percent(found.score)}" + (f"; {early}" if early else ""),
            "stopped": f"stopped after epoch {len(found.history)}: behind the others",
            "failed": f"failed: {found.error}",
        }
        self._refresh(f"{found.trial.name}: {why.get(found.state, found.state)}")

    def _show(self, found: Outcome) -> None:
        row = self._row(found.trial.name)
        row["state"] = found.state
        if found.history:
            row.update(found.history[-1], epoch=len(found.history), best=found.score)

    def _row(self, name: str) -> dict[str, Any]:
        return self._rows.setdefault(name, {})

    def _refresh(self, line: str) -> None:
        if shows_live(self.console):
            self._live.refresh()
        else:
            self.say(line)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for number, name in enumerate(_COLUMNS):
            table.add_column(name, justify="left" if number < 2 else "right")
        for name, row in self._rows.items():
            table.add_row(name, *_cells(row, self._epochs), style="dim" if row.get("state") in ENDED[1:] else None)
        return table


def _cells(row: dict[str, Any], epochs: int) -> list[str]:
    if "epoch" not in row:
        return [row.get("state", "planned"), *[""] * 5]
    precision = row["rejection_precision"]
    scores = [percent(row[VALIDATION_MEAN_AP]), percent(row["best"])]
    missed = "" if precision is None else f"{precision:.0%}"
    return [row["state"], f"{row['epoch']}/{epochs}", *scores, f"{row['rejected']:,}", missed]
