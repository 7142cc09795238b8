"""A hyper-parameter search as an object: `raypaml.Search.run("digits")`, `raypaml.Search.open("runs/NAME")`."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from raypaml.api.run import Run
from raypaml.cli import command, say
from raypaml.config import TrainConfig
from raypaml.counting import number_of
from raypaml.data.storage import Location
from raypaml.errors import told_as_user_errors
from raypaml.files import Place, as_texts
from raypaml.reports.tables import percent
from raypaml.runs.run_files import REPORT
from raypaml.runs.run_flags import AskedConfig
from raypaml.runs.run_folder import read_config
from raypaml.runs.run_settings import configured
from raypaml.runs.sole_writer import sole_writer
from raypaml.search.search_flags import NOT_OF_TRIALS, USUAL, SearchSettings
from raypaml.search.search_folder import Outcome, SearchPlan, outcome, ranked
from raypaml.search.search_records import BEST_FILE, Searcher, read_best
from raypaml.search.stored_search import read_search, read_trials

if TYPE_CHECKING:  # what brings scipy and matplotlib is imported where it is used, as in `Run`
    import pyarrow as pa

    from raypaml.data.data_folder import DataFolder
    from raypaml.search.suggestion import Suggestion

CHECKED = ("pseudo_labels", "pseudo_labels_sha256", "from_run", "from_sha256")
"""Settings that a search takes from the checked configuration, in which paths are full and digests are filled in."""


class Search:
    """A search in its folder: its trials, each of which is a run, and the best of them.

    Figures are read from the folder at each access, so that they are up to date also while another process searches.
    """

    def __init__(self, path: Place, *, progress: bool = True, stopped: int = 0):
        self.folder = Path(path).absolute()
        """The folder of the search."""
        self.stopped = signal.Signals(stopped) if stopped else None
        """The signal, such as SIGINT, that stopped the call that gave this object; None where none did."""
        self._progress = progress

    @classmethod
    @told_as_user_errors()
    def run(
        cls,
        config_or_recipe: TrainConfig | Place = "digits",
        *,
        search: str | Sequence[str] = "alpha,delta_rel=suggested",
        space: Place | Sequence[Place] = (),
        searcher: Searcher = "random",
        trials: int = 6,
        add: int = 0,
        points: int = 4,
        share: int = 3,
        seeds: int = 1,
        early_stop: bool = True,
        progress: bool = True,
        **settings: Any,
    ) -> Self:
        """Search settings of a run, or go on with the search where it was begun; its verdict and report follow.

        Args:
            config_or_recipe: what the search starts from, as `Run.train` takes it; it is the first trial.
            search: what is varied: names of spaces, or FIELD=LOW:HIGH, FIELD=log:LOW:HIGH, FIELD=A|B|C, with commas
                between or as a list; `delta_rel=suggested` takes its range from the labels.
            space: YAML files of further spaces.
            searcher: how trials are chosen; tpe learns from results, and needs Optuna.
            trials: number of trials of the searchers random and tpe.
            add: number of trials by which a finished search is extended.
            points: number of values of each range in a grid.
            share: number of random trials that share a warm-up; 1: none is shared.
            seeds: number of seeds with which the best trial and the starting point are trained.
            early_stop: stop trials that fall behind (ASHA).
            progress: show progress, as a live table in a terminal or notebook, as lines elsewhere.
            settings: settings that `raypaml tune --help` lists, such as `epochs=3`, in the place of those that the
                search starts from. `workers` is the number for each trial, one unless given here.

        Returns:
            The search. Where Ctrl-C or SIGTERM stopped it, which is no error, `stopped` has the signal; the same call
            goes on, and finished trials are kept. A trial that fails is no error either: its `state` says so.

        Raises:
            UserError: what was asked cannot be done; RuntimeError: the cluster failed for another reason.
        """
        asked = SearchSettings(
            search=",".join(as_texts(search)),
            space=as_texts(space),
            searcher=searcher,
            trials=trials,
            add=add,
            points=points,
            share=share,
            seeds=seeds,
            early_stop=early_stop,
        )
        if useless := [name for name in NOT_OF_TRIALS if name in settings]:
            raise ValueError(f"{useless[0]}={settings[useless[0]]!r}: has no effect on trials; leave it out")
        return cls.run_asked(configured(config_or_recipe, settings, USUAL), asked, progress=progress)

    @classmethod
    @told_as_user_errors()
    def run_asked(cls, base: AskedConfig, asked: SearchSettings, *, progress: bool = True) -> Self:
        """Do what `run` does, from the flags of `raypaml tune`, which have been read."""
        from raypaml.reports.progress import progress_console
        from raypaml.search.search_flags import open_queue, passed_over_by_trials, plan_search
        from raypaml.search.search_progress import SearchDisplay

        with SearchDisplay(progress_console(shown=progress)) as display:
            base, data = _checked(base, display.say)
            search = plan_search(asked, base, data)
            for said in passed_over_by_trials(search):
                display.say(said)
            with sole_writer(search.folder, command("tune"), display.say):
                queue, proposals = open_queue(search, asked, display.say)
                display.begin(search, [outcome(search, trial) for trial in queue.trials])
                if (proposals and proposals.has_more) or queue.has_more():
                    from raypaml.cluster.ray_tune import run_search

                    if stopped := run_search(search, queue, proposals, display):
                        return cls(search.folder, progress=progress, stopped=stopped)
                _conclude(search, [outcome(search, trial) for trial in queue.trials])
        return cls(search.folder, progress=progress)

    @classmethod
    @told_as_user_errors()
    def open(cls, path: Place, *, progress: bool = True) -> Self:
        """The search in a folder, finished or not; UserError where there is none."""
        search = cls(path, progress=progress)
        read_search(search.folder)
        return search

    @classmethod
    @told_as_user_errors()
    def suggest(
        cls, config_or_recipe: TrainConfig | Place = "digits", *, progress: bool = True, **settings: Any
    ) -> Suggestion:
        """Suggests a range of delta_rel from the labels, without training: `.low`, `.high`, and `.text` in words.

        Raises:
            UserError: the labels do not suffice for that; the message says why.
        """
        from raypaml.search.suggestion import suggest
        from raypaml.training.job import checked_data

        config = configured(config_or_recipe, settings, USUAL).config
        data = checked_data(config, say if progress else lambda _: None)
        return suggest(data.splits["train"], data.splits["validation"], config)

    # --- What is in its folder ----------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name of the search, which is that of its folder."""
        return self.folder.name

    @property
    @told_as_user_errors()
    def plan(self) -> SearchPlan:
        """The configuration that the search starts from, what is varied, and how trials are chosen."""
        return read_search(self.folder)

    @property
    @told_as_user_errors()
    def outcomes(self) -> list[Outcome]:
        """The state of each trial and its figures so far, in the order of the plan."""
        search = self.plan
        return [outcome(search, trial) for trial in read_trials(search)]

    @property
    def trials(self) -> pa.Table:
        """A row for each trial, in the order of the plan: `trial`, its values, `state`, `validation_mean_ap`, ...

        The columns are those of trials.csv. `state` is planned, running, finished, stopped (it fell behind) or failed.
        """
        import pyarrow as pa

        from raypaml.search.trial_rows import columns, full_row

        rows = [full_row(one) for one in self.outcomes]
        return pa.table({name: [row[name] for row in rows] for name in columns(self.plan)})

    @property
    @told_as_user_errors()
    def best(self) -> Run:
        """The run of the trial of best validation mAP among those that finished; UserError where none has."""
        return Run.open(self.plan.run_folder(self._best.trial), progress=self._progress)

    @property
    @told_as_user_errors()
    def best_settings(self) -> dict[str, Any]:
        """The searched settings of the best trial: `Run.train(recipe, **search.best_settings)` trains it anew."""
        return dict(self._best.trial.values)

    @property
    def _best(self) -> Outcome:
        order = ranked(self.outcomes)
        if not order:
            raise ValueError(f"{self.folder}: no trial has finished; Search.run goes on with it")
        return order[0]

    @property
    @told_as_user_errors()
    def best_config(self) -> TrainConfig:
        """All settings of the best trial, from best.json, for `Run.train`; UserError before there is a verdict."""
        return read_config(self.folder / BEST_FILE)

    @property
    @told_as_user_errors()
    def result(self) -> dict[str, Any] | None:
        """The best trial, as `trial`, `validation_mean_ap` (0..1) and `verdict`; None before there is a verdict."""
        best = read_best(self.folder)
        return dict(best["found"]) if best else None

    @property
    @told_as_user_errors()
    def verdict(self) -> str:
        """Whether the best trial is better than the starting point on the test split, in words.

        It is the verdict of the last report; without a report it is made from the trials that have finished.
        """
        from raypaml.search.search_result import judge

        return str(self.result["verdict"]) if self.result else judge(self.plan, self.outcomes).text

    @property
    def is_finished(self) -> bool:
        """Whether every trial has ended, and the report is written."""
        ended = ("finished", "stopped", "failed")
        return (self.folder / REPORT).is_file() and all(one.state in ended for one in self.outcomes)

    @told_as_user_errors()
    def report(self) -> dict[str, Any] | None:
        """Write best.json, trials.csv and report.html from the trials that have ended so far; returns the result."""
        _conclude(self.plan, self.outcomes)
        return self.result

    def __repr__(self) -> str:
        search, outcomes = self.plan, self.outcomes
        states = [one.state for one in outcomes]
        done = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        spaces = ", ".join(space.text for space in search.spaces)
        figures = [f"{search.base.recipe}, {spaces}: {number_of(len(outcomes), 'trial')}"]
        figures.append(done)
        if order := ranked(outcomes):
            figures.append(f"best {order[0].trial.name}, validation mAP {percent(order[0].score)}")
        if self.stopped:
            figures.append(f"stopped by {self.stopped.name}")
        return f"<Search {self.folder}: {'; '.join(figures)}>"


def _checked(base: AskedConfig, say: Callable[[str], None]) -> tuple[AskedConfig, DataFolder]:
    """The configuration checked as that of a run, and its data; paths are full, as trials may run in other folders."""
    from raypaml.training.job import prepare_job

    config = base.config
    if not Location(config.run.storage).is_local:
        raise ValueError(
            f"storage={config.run.storage}: a search is kept in a folder that all nodes share; give a path"
        )
    job = prepare_job(config, say)
    checked = {name: job.config.flat()[name] for name in CHECKED}
    places = {"storage": str(Path(config.run.storage).absolute())}
    if job.data.path == Path(config.data.data):  # a folder, not a name
        places["data"] = str(job.data.path.absolute())
    config, plain = config.override(checked | places), base.plain.override(places)
    return dataclasses.replace(base, config=config, plain=plain), job.data


def _conclude(search: SearchPlan, outcomes: Sequence[Outcome]) -> None:
    from raypaml.search.search_page import write_search_page
    from raypaml.search.search_result import conclude_search

    write_search_page(search, outcomes, conclude_search(search, outcomes))
