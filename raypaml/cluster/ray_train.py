"""A checked run on Ray Train: workers started, watched, and started again when some are lost; one line per event."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import ray.train
import ray.train.torch
from ray.train import FailureConfig, ScalingConfig, UserCallback
from ray.train import RunConfig as RayRunConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from raypaml.cluster import ray_variables, session
from raypaml.cluster.channel import Channel, Failure
from raypaml.cluster.gauges import RunGauges
from raypaml.cluster.sent_callbacks import modules_of, packed, unpacked
from raypaml.cluster.signals import Signals
from raypaml.cluster.trainers import torch_config, trainer_class
from raypaml.cluster.worker_errors import CHANCE, as_said, as_user_error, brief_cause, is_disk_full
from raypaml.data.storage import Location
from raypaml.errors import StoppedAtOnce
from raypaml.extensions import import_modules
from raypaml.reports.progress import Display
from raypaml.runs.events import Event, LoopSignal, Message, Report, StepReport
from raypaml.runs.run_folder import claim, log_into
from raypaml.settings import RunConfig
from raypaml.training.callbacks import Callback
from raypaml.training.job import Job
from raypaml.training.loop import train
from raypaml.training.watch import Beats, Watch

POLL_SECONDS = 0.3
RESIZE_SECONDS = 30.0
"""Between two looks at whether an elastic run can grow; growing costs what was done since the last checkpoint."""
SHRINKS_SOON = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}
"""A lost node counts as there for a while: Ray Train asks in vain for its CPUs for ten seconds, not for minutes.

Then it looks again at what there is. It waits for the reservation alone (Ray 2.60, `WorkerGroup._start_impl`), which
takes no time where there is room; the start of the workers' processes comes later, and has no limit.
"""


def fit_on_ray(job: Job, prog: str, display: Display, callbacks: Sequence[Callback] = ()) -> int:
    """Train in workers of Ray; returns and raises what `launch.fit` says."""
    sent = packed(callbacks)
    run = job.config.run
    least = run.min_workers or run.workers
    count = f"{least} to {run.workers}" if least < run.workers else run.workers
    display.say(f"run {run.name}: {count} workers, in {job.folder}")
    again = f"continue with: {prog} --name {run.name} --storage {run.storage}"
    patience = SHRINKS_SOON if least < run.workers else {}
    with ray_variables(**patience), session.join(run.address, least, needs=modules_of(callbacks)) as private:
        use_gpu = gpu_wanted(run, display.say)
        claim(job.folder, job.config, job.data)
        display.track(job.config, job.folder)
        channel = Channel(Watch(run.hang_seconds))
        outcome: dict[str, Any] = {}
        asked = (job, channel, private, use_gpu, outcome, sent)
        thread = threading.Thread(target=_fit_in_thread, args=asked, daemon=True)
        thread.start()
        with Signals() as signals:
            try:
                while thread.is_alive():
                    thread.join(POLL_SECONDS)
                    signals.forward(channel, display)
                    _show(channel, display)
            except StoppedAtOnce:
                display.say(f"stopped at once; what came after the last checkpoint is lost; {again}")
                raise
    if "error" in outcome:
        raise outcome["error"]
    if outcome["finished"]:
        return 0
    display.say(f"stopped; {again}")
    return signals.received or signal.SIGINT


def _show(channel: Channel, display: Display) -> None:
    """Show the events that came; raise a Failure at once, without waiting for Ray's further tries."""
    for event in channel.take():
        if isinstance(event, Failure):
            raise event.error
        if isinstance(event, StepReport):
            _import_conclusion()
        display.update(event)


@cache
def _import_conclusion() -> None:
    """Once, beside workers that train: what the end of a run imports takes a second, and this process only waits."""
    for name in ("raypaml.run_report.conclude", "scipy.ndimage"):
        threading.Thread(target=import_module, args=(name,), daemon=True).start()


def gpu_wanted(run: RunConfig, say: Callable[[str], None]) -> bool:
    """Whether every worker gets a GPU; ValueError where the joined cluster cannot give what was asked for.

    Where nodes may be added, Ray Train asks for them and waits.
    """
    least = run.min_workers or run.workers
    cpus, found = session.cpus(), session.gpus()
    if session.may_grow() and run.device != "auto":
        missing = least - (found if run.device == "cuda" else cpus)
        if missing > 0:
            say(f"waiting for nodes with {missing} {'GPUs' if run.device == 'cuda' else 'CPUs'} more")
        return run.device == "cuda"
    if cpus < least:
        raise ValueError(f"workers={least}: the cluster has {cpus} CPUs; use fewer workers or add nodes")
    if run.device == "cuda" and found < least:
        raise ValueError(f"device=cuda: {least} workers need a GPU each, the cluster has {found}; use fewer workers")
    if run.device == "auto" and 0 < found < least:
        say(f"{found} GPUs for {least} workers: training on the CPU; --workers {found} would use them")
    return run.device != "cpu" and found >= least


def _fit_in_thread(
    job: Job, channel: Channel, private: bool, use_gpu: bool, outcome: dict[str, Any], sent: bytes
) -> None:
    """Ray's fit in a thread of its own, so that this process's main thread shows progress and takes signals."""
    try:
        outcome["finished"] = run_workers(
            job,
            RunReporter(channel, private),
            private=private,
            use_gpu=use_gpu,
            callbacks=[_LostWorkers(channel)],
            heard_by=sent,
            max_failures=job.config.run.max_failures,
        )
    except BaseException as error:
        outcome["error"] = error


class Reporter(Protocol):
    """Where a worker's progress goes, and what it is told in return; made by the driver, used on every worker."""

    @property
    def commit_first(self) -> bool:
        """Whether it takes the record of an epoch only when the epoch's checkpoint is written."""

    @property
    def beats(self) -> Beats | None:
        """Takes the watchdog's beats; None where nobody watches."""

    def on_worker(self, rank: int, folder: Path) -> Report | None:
        """What the loop of this rank reports to; None, on all ranks, where no further try is wanted."""

    def failed(self, rank: int, error: Exception) -> None:
        """Take note of the error that ends this worker."""


def run_workers(
    job: Job,
    reporter: Reporter,
    *,
    use_gpu: bool,
    private: bool = False,
    splits: Sequence[str] = ("test",),
    callbacks: Sequence[Any] = (),
    heard_by: bytes = b"",
    max_failures: int = 0,
) -> bool:
    """Train the job on its workers and predict `splits`; whether training finished, rather than being stopped.

    `callbacks` are Ray's, called by its controller; `heard_by` are the program's, as `sent_callbacks.packed` gives
    them, called on rank 0. `private`: Ray is a private one, and ends with this process; a trial, which a search may
    stop, needs all that Ray Train starts.

    Raises:
        ValueError: what the first failing rank said; RuntimeError where it was not the user's fault.
    """
    run = job.config.run
    elastic = 0 < run.min_workers < run.workers
    settings = {"config": job.config, "data": job.data.address, "folder": job.folder}
    trainer = trainer_class(private)(
        train_on_worker,
        train_loop_config=settings | {"splits": tuple(splits), "reporter": reporter, "callbacks": heard_by},
        scaling_config=ScalingConfig(
            num_workers=(run.min_workers, run.workers) if elastic else run.workers,
            use_gpu=use_gpu,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        torch_config=torch_config(),
        # Ray keeps no checkpoint for us: the loop writes and finds its own, alone as in a cluster.
        run_config=RayRunConfig(
            name="ray",
            storage_path=_of_ray(job),
            callbacks=list(callbacks),
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )
    try:
        return bool(trainer.fit().return_value)
    except WorkerGroupError as error:
        raise as_user_error(error.worker_failures) from None
    except (ControllerError, TrainingFailedError) as error:
        raise RuntimeError(f"Ray Train failed: {error}") from None


def _of_ray(job: Job) -> str:
    """Where all nodes see Ray's own small files: the run folder, or the store."""
    where = Location(job.config.run.storage)
    return str(job.folder if where.is_local else where / job.config.run.name)


class _LostWorkers(UserCallback):  # type: ignore[misc]
    """Ray Train's callback, called where the workers are started: says which were lost, and why."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        lost = ", ".join(f"rank {rank} ({brief_cause(error)})" for rank, error in sorted(worker_exceptions.items()))
        self._channel.put(Message(f"lost: {lost}; all start again from the last checkpoint"))


class RunReporter:
    """Progress of a run: to the driver, which answers whether to stop; a preemption asks for a checkpoint."""

    commit_first = False

    def __init__(self, channel: Channel, private: bool) -> None:
        self._channel = channel
        self._watched = not private  # nobody foresees preemptions there
        self.beats: Beats | None = channel.beat

    def on_worker(self, rank: int, folder: Path) -> Report | None:
        """A function that sends the events of rank 0, and asks Ray about preemptions on every rank."""
        if self._channel.has_failed():  # the driver has raised it; a Ray of the program's own would go on trying
            return None
        noticed: set[str] = set()
        gauges = RunGauges(folder.name) if rank == 0 else None

        def report(event: Event) -> LoopSignal:
            if isinstance(event, Message):
                logging.info(event.text)
            if gauges:
                gauges.update(event)
            stop = rank == 0 and self._channel.put(event)
            # a barrier: asked on all ranks alike
            notice = ray.train.get_preemption_info() if self._watched and isinstance(event, StepReport) else None
            if stop or not notice:
                return LoopSignal.STOP if stop else LoopSignal.NOTHING
            fresh = set(notice.preempted_node_ids) - noticed
            noticed.update(fresh)
            return LoopSignal.SAVE if fresh else LoopSignal.NOTHING

        return report

    def failed(self, rank: int, error: Exception) -> None:
        """Tell the driver at once of an error that every other try would meet too."""
        if not isinstance(error, CHANCE) or is_disk_full(error):
            self._channel.put(Failure(as_said(rank, error)))


def train_on_worker(settings: dict[str, Any]) -> bool:
    """What Ray Train runs on every worker of a run or of a trial; whether training finished."""
    rank, reporter, folder = ray.train.get_context().get_world_rank(), settings["reporter"], settings["folder"]
    with log_into(folder / "logs" / f"worker-{rank}.log"):
        logging.info("rank %d of %d starts", rank, ray.train.get_context().get_world_size())
        try:
            if imports := settings["config"].run.imports:
                import_modules(imports)
            report = reporter.on_worker(rank, folder)
            return report is not None and train(
                settings["config"],
                settings["data"],
                folder,
                ray.train.torch.get_device(),
                report,
                splits=settings["splits"],
                beats=reporter.beats,
                commit_first=reporter.commit_first,
                callbacks=unpacked(settings["callbacks"]) if settings["callbacks"] else (),
            )
        except Exception as error:
            logging.exception("rank %d failed", rank)
            reporter.failed(rank, error)
            raise
