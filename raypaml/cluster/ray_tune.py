"""A search on Ray Tune: which trials (`trial.py`) run, how many at once, and which are stopped early."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raypaml.cluster import ray_variables, session, waiting
from raypaml.cluster.channel import Channel
from raypaml.cluster.ray_train import gpu_wanted
from raypaml.cluster.shared_cluster import coordinator_on_head, place_of_ray
from raypaml.cluster.signals import Signals
from raypaml.cluster.trial import run_trial
from raypaml.cluster.trial_news import TrialNews
from raypaml.cluster.trial_waits import TrialWaits
from raypaml.counting import number_of
from raypaml.data.storage import Location
from raypaml.errors import StoppedAtOnce
from raypaml.runs.history import VALIDATION_MEAN_AP
from raypaml.search.proposals import Proposals
from raypaml.search.queue import Queue
from raypaml.search.search_folder import SearchPlan, is_stopped, note, outcome
from raypaml.search.search_progress import SearchDisplay
from raypaml.search.trial_rows import write_csv
from raypaml.search.trials import Trial, TrialProgress, own_trial
from raypaml.settings import RunConfig, SettingValues
from raypaml.training.watch import Watch

REDUCTION = 2
"""ASHA's reduction factor: of so many trials that reach a rung, about one goes on (Li et al., MLSys 2020)."""
_OF_TUNE = {"TUNE_DISABLE_SIGINT_HANDLER": "1", "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1"}
"""Leaves Ctrl-C to this package, for Tune would end the trials without a checkpoint, and lets trials end without any
report, as one that fails in its first epoch does."""


def run_search(search: SearchPlan, queue: Queue, proposals: Proposals | None, display: SearchDisplay) -> int:
    """Run the queue's trials, as many at once as the cluster has room for, until all have ended or a signal comes.

    Args:
        search: the search.
        queue: the trials to run.
        proposals: refills the queue with trials that are chosen by earlier results, if the search does that.
        display: shows the progress.

    Returns:
        0 where all trials have ended; else the number of the signal that stopped the search: the first one lets the
        running trials save.

    Raises:
        StoppedAtOnce: a second signal came.
    """
    run = search.base.run
    joined = session.join(run.address, run.workers, title=f"search {search.folder.name}")
    # Tune prints
    with redirect_stdout(sys.stderr), ray_variables(**_OF_TUNE), joined as private, Signals() as signals:
        waiting.first_process()
        if not private:
            coordinator_on_head()
        news = TrialNews(search, Channel(partial(Watch, run.hang_seconds)), display, signals)
        try:
            _run_tuner(search, queue, proposals, news, private=private)
        except StoppedAtOnce:
            display.say("stopped at once; what came after the last checkpoints is lost; the same command goes on")
            raise
    if queue.is_finished and not signals.received:
        return 0
    display.say("stopped; the same command goes on, finished trials are kept")
    return signals.received or signal.SIGINT


def _run_tuner(
    search: SearchPlan, queue: Queue, proposals: Proposals | None, news: TrialNews, *, private: bool
) -> None:
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failed trials are reported in one line, not by Tune
    run = search.base.run
    use_gpu = gpu_wanted(run, news.display.say)
    scheduler = _scheduler(search, queue)
    trainable = tune.with_parameters(run_trial, search=search, use_gpu=use_gpu, channel=news.channel, private=private)
    tuner = tune.Tuner(
        # the trial's workers take the CPUs; the trial itself only waits, but Tune requires some resource: one byte
        tune.with_resources(trainable, {"CPU": 0, "memory": 1}),
        tune_config=tune.TuneConfig(
            search_alg=_Conductor(queue, proposals, Room(run, use_gpu, news.display.say), news),
            scheduler=scheduler,
            num_samples=-1,
            reuse_actors=False,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            **place_of_ray(Location(str(search.folder))),
            callbacks=[
                _Watcher(search, queue, proposals, news),
                TrialWaits(news.display.say, "GPU" if use_gpu else "CPU", run.workers),
            ],
            stop=_Stopper(news),
            failure_config=tune.FailureConfig(max_failures=run.max_failures),  # of a trial's own process
            verbose=0,
        ),
    )
    tuner.fit()


class Room:
    """How many trials the cluster has room for, now; a line says so whenever that changes.

    Where nodes may be added, as many trials more may wait for them, which is how the cluster learns that it is to grow.
    One trial may always wait, for the last node may be lost.
    """

    def __init__(self, run: RunConfig, use_gpu: bool, say: Callable[[str], None]) -> None:
        self._workers, self._use_gpu, self._say = run.workers, use_gpu, say
        self._said = -1

    def trials(self) -> int:
        """How many trials may run or wait at once."""
        at_once = (session.gpus() if self._use_gpu else session.cpus()) // self._workers
        if at_once != self._said:
            self._say(f"{at_once} at once, each with {number_of(self._workers, 'GPU' if self._use_gpu else 'CPU')}")
            self._said = at_once
        return max(1, at_once * (2 if session.may_grow() else 1))


class _Stopper(tune.Stopper):  # type: ignore[misc]
    """Ends the search once a signal has come and all trials that were at work have saved."""

    def __init__(self, news: TrialNews) -> None:
        self._news = news

    def __call__(self, trial_id: str, result: TrialProgress) -> bool:  # noqa: ARG002
        return False

    def stop_all(self) -> bool:
        return self._news.is_over


class _Conductor(Searcher):  # type: ignore[misc]
    """Tune's searcher, which takes trials from the queue while there is room, and refills an empty one by proposals."""

    def __init__(self, queue: Queue, proposals: Proposals | None, room: Room, news: TrialNews) -> None:
        super().__init__(metric=VALIDATION_MEAN_AP, mode="max")
        self._queue = queue
        self._proposals = proposals
        self._room = room
        self._news = news

    def suggest(self, trial_id: str) -> SettingValues | str | None:  # noqa: ARG002
        finished: str = Searcher.FINISHED
        if self._news.is_stopping:
            return finished
        if len(self._queue.running) >= self._room.trials():
            return None
        if self._proposals and not self._queue.waiting:
            self._proposals.propose()
        trial = self._queue.next()
        if trial is None:
            return finished if self._queue.is_finished else None
        return trial.settings | {"marks": sorted(self._queue.marks(trial))}

    def on_trial_complete(self, *_: object, **__: object) -> None: ...  # the watcher does that

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()  # Tune requires a file; a restart reads run folders instead


class _Asha(AsyncHyperBandScheduler):  # type: ignore[misc]
    """ASHA that stops a trial by a note in the trial's folder, which the trial reads, and ends by itself.

    If Tune killed the trial, the resources of its workers would not be released.
    """

    def __init__(self, search: SearchPlan, longest: int) -> None:
        middle = round(longest / 2) or 1
        super().__init__("beyond", VALIDATION_MEAN_AP, "max", longest, middle, REDUCTION, stop_last_trials=False)
        self._search = search
        self._spared = own_trial(search.base, search.spaces)  # never stopped: all others are compared with it

    def on_trial_result(self, tune_controller: object, trial: TuneTrial, result: TrialProgress) -> str:
        ours = Trial.of(trial.config)
        if not is_stopped(self._search.run_folder(ours)):
            action = super().on_trial_result(tune_controller, trial, result)
            if action == self.STOP and ours != self._spared and not ours.repeats:
                note(self._search, ours, "stopped", {"epochs": result["epoch"]})
        going_on: str = self.CONTINUE
        return going_on

    def learn(self, trial: Trial) -> None:
        """Tell ASHA what an earlier session measured of a trial."""
        seen = SimpleNamespace(trial_id=trial.name, config=trial.settings)
        self.on_trial_add(None, seen)
        for record in outcome(self._search, trial).history:
            super().on_trial_result(None, seen, self._search.progress(record))


def _scheduler(search: SearchPlan, queue: Queue) -> TrialScheduler:
    """The scheduler: ASHA, told what earlier sessions have measured, where the search stops trials early.

    It compares trials from the middle of the shortest schedule on, because their curves cross before.
    """
    longest = search.base.optim.epochs - search.longest_warmup - 1  # no trial is stopped at its last epoch
    if not search.early or longest < 1:
        return FIFOScheduler()
    asha = _Asha(search, longest)
    for trial in queue.trials:
        if trial not in queue.waiting:
            asha.learn(trial)
    return asha


class _Watcher(tune.Callback):  # type: ignore[misc]
    """Tune's callback, which shows what happens, and records how trials end."""

    def __init__(self, search: SearchPlan, queue: Queue, proposals: Proposals | None, news: TrialNews) -> None:
        self._search = search
        self._queue = queue
        self._proposals = proposals
        self._news = news
        self._failures: dict[Trial, int] = {}

    def on_step_end(self, **_: object) -> None:
        self._news.poll()

    def on_trial_start(self, trial: TuneTrial, **_: object) -> None:
        self._news.start(Trial.of(trial.config))

    def on_trial_result(self, trial: TuneTrial, result: TrialProgress, **_: object) -> None:
        if VALIDATION_MEAN_AP in result:  # not in Tune's own result at the end
            self._news.display.update(Trial.of(trial.config), result)

    def on_trial_recover(self, trial: TuneTrial, **_: object) -> None:
        self._process_lost(trial, recovers=True)

    def on_trial_complete(self, trial: TuneTrial, **_: object) -> None:
        self._ended(Trial.of(trial.config))

    def on_trial_error(self, trial: TuneTrial, **_: object) -> None:  # run_trial raises nothing: its process has died
        ours = Trial.of(trial.config)
        note(self._search, ours, "error", {"error": self._process_lost(trial, recovers=False), "may_go_better": True})
        self._ended(ours)

    def _process_lost(self, trial: TuneTrial, *, recovers: bool) -> str:
        """Tell of the loss of a trial's process; returns what was said. Tune counts no preemptions as failures."""
        ours = Trial.of(trial.config)
        preempted = trial.num_failures == self._failures.get(ours, 0)
        self._failures[ours] = trial.num_failures
        said = Path(trial.error_file).read_text() if trial.error_file else ""
        latest = said.rpartition("Failure # ")[2].splitlines()[1:] or ["for an unknown reason"]
        return self._news.process_lost(ours, latest[0].strip(), preempted=preempted, recovers=recovers).text

    def _ended(self, ours: Trial) -> None:
        self._news.end(ours)
        self._queue.done(ours)
        if self._proposals:
            self._proposals.learn(ours)
        self._news.display.end(outcome(self._search, ours))
        write_csv(self._search, [outcome(self._search, trial) for trial in self._queue.trials])
