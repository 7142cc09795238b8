"""A trial of a search: a process of Ray Tune's, which starts a training run in workers of its own and waits for it.

What its workers report goes to the search itself, through a mailbox for each trial (`channel`). Lost workers are
started again by Ray Train, as in a run. Where this process is lost with them, Tune starts it again.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import ray
import ray.train
from ray import tune

from raypaml.cluster import ray_variables
from raypaml.cluster.channel import Channel
from raypaml.cluster.epochs_in_order import EpochsInOrder
from raypaml.cluster.on_worker import RunReporter
from raypaml.cluster.ray_train import patience_of, run_workers
from raypaml.errors import RemediableError
from raypaml.evaluation.measures import alpha_curve
from raypaml.evaluation.parts import open_set
from raypaml.extensions import import_modules
from raypaml.files import write_json
from raypaml.run_report.conclude import conclude_run
from raypaml.runs.events import EpochReport, Event, LoopSignal, Report, StepReport
from raypaml.runs.run_folder import claim
from raypaml.runs.sole_writer import RESTART_SECONDS, sole_writer
from raypaml.search.search_folder import SearchPlan, is_stopped, note, outcome
from raypaml.search.trials import Trial
from raypaml.search.warmup import keep, start_from
from raypaml.settings import SettingValues
from raypaml.training.job import Job, prepare_job

ALPHAS = (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 10)
"""Values of alpha at which every trial's validation mAP is computed."""
HOME_SECONDS = 5.0
"""Time between two looks whether the node of a trial's process is about to be taken away, as often as Ray Train looks
for its workers' nodes."""


def run_trial(settings: SettingValues, search: SearchPlan, use_gpu: bool, channel: Channel, private: bool) -> None:
    """Tune's trainable. An error is written into the trial's folder and not raised, for Tune would try again."""
    if search.base.run.imports:
        import_modules(search.base.run.imports)
    trial = Trial.of(settings)
    (search.run_folder(trial) / "error.json").unlink(missing_ok=True)
    mine = channel.of(trial.name)
    try:
        job = prepare_job(search.config(trial), lambda _: None)
        with sole_writer(job.folder, "raypaml tune", logging.warning, RESTART_SECONDS):
            _train_job(job, search, trial, mine, settings["marks"], use_gpu=use_gpu, private=private)
    except Exception as error:
        may_go_better = isinstance(error, RemediableError) or not isinstance(error, ValueError)
        note(search, trial, "error", {"error": str(error) or repr(error), "may_go_better": may_go_better})


def _train_job(
    job: Job, search: SearchPlan, trial: Trial, channel: Channel, marks: list[int], *, use_gpu: bool, private: bool
) -> None:
    claim(job.folder, job.config, job.data)
    warmups = search.warmups(trial)
    if marks and (shared := start_from(warmups, job.folder, job.config.loss.warmup_epochs)):
        write_json(job.folder / "shared.json", {"epochs": shared})
    before = outcome(search, trial)
    for record in before.history[search.longest_warmup :]:  # by which ASHA compares it
        tune.report(search.progress(record))
    if before.state == "finished":
        return
    home = "" if private else ray.get_runtime_context().get_node_id()
    reporter = TrialReporter(search, warmups, marks, RunReporter(channel, private), home)
    with ray_variables(**patience_of(job.config.run)):
        finished = run_workers(
            job,
            reporter,
            channel,
            use_gpu=use_gpu,
            splits=("validation", "test"),
            callbacks=[EpochsInOrder(job.folder, search.progress, len(before.history))],
        )
    if finished:
        predictions = open_set(job.folder / "predictions" / "validation")
        alphas = sorted({*ALPHAS, job.config.model.alpha})
        write_json(job.folder / "alpha_curve.json", alpha_curve(predictions, job.data.vocabulary, alphas))
        conclude_run(job)


class TrialReporter:
    """A run's reporter that also reports epochs to Tune, and keeps a warm-up for other trials.

    A note in the trial's folder stops it. A checkpoint is made where the node of the trial's own process, `home`, is
    about to be taken away, for the workers end with that process; empty on a private Ray, whose node stays.
    """

    def __init__(self, search: SearchPlan, warmups: Path, marks: list[int], run: RunReporter, home: str) -> None:
        self._search = search
        self._warmups = warmups
        self._marks = marks
        self._run = run
        self._home = home
        self.beats = run.beats
        self.commit_first = bool(marks)  # the checkpoints of these epochs are copied

    def on_worker(self, rank: int, folder: Path) -> Report | None:
        """A function that reports events to the search and epochs to Tune; rank 0 also writes where the trial runs."""
        tell = self._run.on_worker(rank, folder)
        if tell is None:
            return None
        first = rank == 0
        if first:
            where = {"host": socket.gethostname(), "node": ray.get_runtime_context().get_node_id()}
            write_json(folder / "where.json", where)
        home_goes = _told_once(self._home) if first and self._home else lambda: False

        def report(event: Event) -> LoopSignal:
            signal = LoopSignal(tell(event))
            if isinstance(event, EpochReport):
                epoch = event.record["epoch"] + 1
                if first and epoch in self._marks:
                    keep(folder, self._warmups, epoch)
                ray.train.report(self._search.progress(event.record))
            elif isinstance(event, StepReport) and home_goes():
                signal = signal or LoopSignal.SAVE
            return LoopSignal.STOP if first and is_stopped(folder) else signal

        return report

    def failed(self, rank: int, error: Exception) -> None:
        """Tell the search at once of an error that every other try would meet."""
        self._run.failed(rank, error)


def _told_once(node: str) -> Callable[[], bool]:
    """A function that says, once and not later than some seconds after, that a node is about to be taken away."""
    asked, told = 0.0, False

    def is_news() -> bool:
        nonlocal asked, told
        if told or time.monotonic() - asked < HOME_SECONDS:
            return False
        asked = time.monotonic()
        with suppress(Exception):  # whatever Ray raises where it cannot be asked now
            told = node in ray._private.state.state.get_draining_nodes()
        return told

    return is_news
