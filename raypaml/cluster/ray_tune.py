"""A search on Ray Tune over Ray Train: every trial is a training run in a folder of its own."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import ray
import ray.train
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raypaml.cluster import session, waiting
from raypaml.cluster.ray_train import gpu_wanted, run_workers
from raypaml.cluster.signals import sigterm_as_ctrl_c
from raypaml.counting import number_of
from raypaml.evaluation.measures import alpha_curve
from raypaml.evaluation.parts import open_set
from raypaml.extensions import import_modules
from raypaml.files import write_json
from raypaml.run_report.conclude import conclude_run
from raypaml.runs.events import EpochReport, Event, Report
from raypaml.runs.history import VALIDATION_MEAN_AP
from raypaml.runs.run_folder import claim
from raypaml.runs.sole_writer import RESTART_SECONDS, sole_writer
from raypaml.search.proposals import Proposals
from raypaml.search.queue import Queue
from raypaml.search.search_folder import SearchPlan, is_stopped, note, outcome
from raypaml.search.search_progress import SearchDisplay
from raypaml.search.trial_rows import write_csv
from raypaml.search.trials import Trial, TrialProgress, own_trial
from raypaml.search.warmup import keep, start_from
from raypaml.settings import SettingValues
from raypaml.training.job import Job, prepare_job
from raypaml.training.watch import Beats

ALPHAS = (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 10)
"""Values of alpha at which every trial's validation mAP is computed."""
REDUCTION = 2
"""ASHA's reduction factor: of so many trials that reach a rung, about one goes on (Li et al., MLSys 2020)."""


# --- A trial, in a process of the cluster ---------------------------------------------------------------------------


def _run_trial(settings: SettingValues, search: SearchPlan, use_gpu: bool) -> None:
    """Tune's trainable: it starts a training run in workers of its own, and waits for it."""
    if search.base.run.imports:
        import_modules(search.base.run.imports)
    trial = Trial.of(settings)
    (search.run_folder(trial) / "error.json").unlink(missing_ok=True)
    try:
        job = prepare_job(search.config(trial), lambda _: None)
        with sole_writer(job.folder, "raypaml tune", logging.warning, RESTART_SECONDS):
            _train_job(job, search, trial, settings["marks"], use_gpu)
    except Exception as error:
        note(search, trial, "error", {"error": str(error)})
        raise


def _train_job(job: Job, search: SearchPlan, trial: Trial, marks: list[int], use_gpu: bool) -> None:
    claim(job.folder, job.config, job.data)
    warmups = search.warmups(trial)
    if marks and (shared := start_from(warmups, job.folder, job.config.loss.warmup_epochs)):
        write_json(job.folder / "shared.json", {"epochs": shared})
    before = outcome(search, trial)
    for record in before.history[search.longest_warmup :]:  # by which ASHA compares it
        tune.report(search.progress(record))
    if before.state == "finished":
        return
    reporter = TrialReporter(search, warmups, marks)
    splits = ("validation", "test")
    if run_workers(job, reporter, use_gpu=use_gpu, splits=splits, callbacks=[TuneReportCallback()]):
        predictions = open_set(job.folder / "predictions" / "validation")
        alphas = sorted({*ALPHAS, job.config.model.alpha})
        write_json(job.folder / "alpha_curve.json", alpha_curve(predictions, job.data.vocabulary, alphas))
        conclude_run(job)


class TrialReporter:
    """Reports a trial's epochs to Tune, and keeps its warm-up for other trials; a note in its folder stops it."""

    beats: Beats | None = None

    def __init__(self, search: SearchPlan, warmups: Path, marks: list[int]) -> None:
        self._search = search
        self._warmups = warmups
        self._marks = marks
        self.commit_first = bool(marks)  # the checkpoints of these epochs are copied

    def on_worker(self, rank: int, folder: Path) -> Report:
        """A function that reports epochs to Tune on every rank; rank 0 also writes where the trial runs."""
        first = rank == 0
        if first:
            where = {"host": socket.gethostname(), "node": ray.get_runtime_context().get_node_id()}
            write_json(folder / "where.json", where)

        def report(event: Event) -> bool:
            if isinstance(event, EpochReport):
                epoch = event.record["epoch"] + 1
                if first and epoch in self._marks:
                    keep(folder, self._warmups, epoch)
                ray.train.report(self._search.progress(event.record))
            return first and is_stopped(folder)

        return report

    def failed(self, rank: int, error: Exception) -> None:
        """Do nothing: Tune gets the error itself."""


# --- Tune, in this process ------------------------------------------------------------------------------------------


def run_search(search: SearchPlan, queue: Queue, proposals: Proposals | None, display: SearchDisplay) -> int:
    """Run the queue's trials, as many at once as the cluster has room for, until all have ended or a signal comes.

    Args:
        search: the search.
        queue: the trials to run.
        proposals: refills the queue with trials that are chosen by earlier results, if the search does that.
        display: shows the progress.

    Returns:
        0 where all trials have ended; else the number of the signal that stopped the search.
    """
    address, workers = search.base.run.address, search.base.run.workers
    with redirect_stdout(sys.stderr), session.join(address, workers), sigterm_as_ctrl_c() as received:  # Tune takes it
        waiting.first_process()
        _run_tuner(search, queue, proposals, display)
    if queue.is_finished:
        return 0
    display.say("stopped; the same command goes on, finished trials are kept")
    return received[0] if received else signal.SIGINT


def _run_tuner(search: SearchPlan, queue: Queue, proposals: Proposals | None, display: SearchDisplay) -> None:
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failed trials are reported in one line, not by Tune
    run = search.base.run
    use_gpu = gpu_wanted(run, display.say)
    at_once = (session.gpus() if use_gpu else session.cpus()) // run.workers
    display.say(f"{at_once} at once, each with {number_of(run.workers, 'GPU' if use_gpu else 'CPU')}")
    scheduler = _scheduler(search, queue)
    trainable = tune.with_parameters(_run_trial, search=search, use_gpu=use_gpu)
    tuner = tune.Tuner(
        # the trial's workers take the CPUs; the trial itself only waits, but Tune requires some resource: one byte
        tune.with_resources(trainable, {"CPU": 0, "memory": 1}),
        tune_config=tune.TuneConfig(
            search_alg=_Conductor(queue, proposals),
            scheduler=scheduler,
            max_concurrent_trials=at_once,  # one more would wait for workers for ever
            num_samples=-1,
            reuse_actors=False,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(search.folder),
            callbacks=[_Watcher(search, queue, proposals, display)],
            verbose=0,
        ),
    )
    tuner.fit()


class _Conductor(Searcher):  # type: ignore[misc]
    """Tune's searcher, which takes trials from the queue, after refilling it by proposals where it is empty."""

    def __init__(self, queue: Queue, proposals: Proposals | None) -> None:
        super().__init__(metric=VALIDATION_MEAN_AP, mode="max")
        self._queue = queue
        self._proposals = proposals

    def suggest(self, trial_id: str) -> SettingValues | str | None:  # noqa: ARG002
        if self._proposals and not self._queue.waiting:
            self._proposals.propose()
        trial = self._queue.next()
        if trial is None:
            finished: str = Searcher.FINISHED
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

    def __init__(self, search: SearchPlan, queue: Queue, proposals: Proposals | None, display: SearchDisplay) -> None:
        self._search = search
        self._queue = queue
        self._proposals = proposals
        self._display = display

    def on_trial_start(self, trial: TuneTrial, **_: object) -> None:
        self._display.start(Trial.of(trial.config))

    def on_trial_result(self, trial: TuneTrial, result: TrialProgress, **_: object) -> None:
        if VALIDATION_MEAN_AP in result:  # not in Tune's own result at the end
            self._display.update(Trial.of(trial.config), result)

    def on_trial_complete(self, trial: TuneTrial, **_: object) -> None:
        self._ended(Trial.of(trial.config))

    def on_trial_error(self, trial: TuneTrial, **_: object) -> None:
        ours = Trial.of(trial.config)
        if not outcome(self._search, ours).error:  # no exception in the trial: its process has died
            said = str(trial.get_error()).strip().splitlines()[-1]
            note(self._search, ours, "error", {"error": f"its process died ({said})"})
        self._ended(ours)

    def _ended(self, ours: Trial) -> None:
        self._queue.done(ours)
        if self._proposals:
            self._proposals.learn(ours)
        self._display.end(outcome(self._search, ours))
        write_csv(self._search, [outcome(self._search, trial) for trial in self._queue.trials])
