"""What runs in a worker of Ray Train: the training loop, and the reporter that connects it with the driver."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import ray
import ray.train
import ray.train.torch

from raypaml.cluster.channel import Channel, Failure, Started
from raypaml.cluster.gauges import RunGauges
from raypaml.cluster.sent_callbacks import unpacked
from raypaml.cluster.worker_errors import CHANCE, as_said
from raypaml.config import TrainConfig
from raypaml.errors import is_lasting
from raypaml.extensions import import_modules
from raypaml.runs.events import Event, LoopSignal, Message, Report, StepReport
from raypaml.runs.run_folder import log_into
from raypaml.training.loop import train
from raypaml.training.watch import Beats, process_name


class Reporter(Protocol):
    """Takes a worker's progress, and tells it what the driver asks for; made by the driver, used on every worker."""

    @property
    def commit_first(self) -> bool:
        """Whether an epoch is to be reported only after its checkpoint is written."""

    @property
    def beats(self) -> Beats | None:
        """Takes heartbeats for the watchdog; None where there is no watchdog."""

    def on_worker(self, rank: int, folder: Path) -> Report | None:
        """A function for the loop of this rank to report to; None, on all ranks, where no further try is wanted."""

    def failed(self, rank: int, error: Exception) -> None:
        """Note the error that ends this worker."""


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """What every worker of a run or of a trial is given."""

    config: TrainConfig
    data: str
    """Address of the data."""
    folder: Path
    splits: tuple[str, ...]
    """Splits to predict at the end."""
    reporter: Reporter
    callbacks: bytes
    """The program's callbacks, as `sent_callbacks.packed` gives them; empty for none."""


class RunReporter:
    """Sends a run's progress to the driver, which may ask to stop; an announced preemption asks for a checkpoint."""

    commit_first = False

    def __init__(self, channel: Channel, private: bool) -> None:
        self._channel = channel
        self._watched = not private  # a private Ray announces no preemptions
        self.beats: Beats | None = channel.beat

    def on_worker(self, rank: int, folder: Path) -> Report | None:
        """A function that sends events to the driver on rank 0, and asks Ray about preemptions on every rank."""
        if self._channel.failure():  # every try would meet it; Ray itself would try again
            return None
        self._channel.put(Started(process_name(), ray.get_runtime_context().current_actor))
        noticed: set[str] = set()
        gauges = RunGauges(folder.name) if rank == 0 else None

        def report(event: Event) -> LoopSignal:
            if isinstance(event, Message):
                logging.info(event.text)
            if gauges:
                gauges.update(event)
            stop = rank == 0 and self._channel.put(event)
            # a barrier, so that all ranks call it
            notice = ray.train.get_preemption_info() if self._watched and isinstance(event, StepReport) else None
            if stop or not notice:
                return LoopSignal.STOP if stop else LoopSignal.NOTHING
            fresh = set(notice.preempted_node_ids) - noticed
            noticed.update(fresh)
            return LoopSignal.SAVE if fresh else LoopSignal.NOTHING

        return report

    def failed(self, rank: int, error: Exception) -> None:
        """Tell the driver at once of an error that every other try would meet."""
        # Ray raises errors of its own where the workers' helpers end, as when a node is taken away
        if not isinstance(error, (*CHANCE, ray.exceptions.RayError)) or is_lasting(error):
            self._channel.put(Failure(as_said(rank, error)))


def train_on_worker(config: dict[str, WorkerTask]) -> bool:
    """Train on one worker of Ray Train; whether training finished. Ray gives the task in a dictionary."""
    task, rank = config["task"], ray.train.get_context().get_world_rank()
    reporter, folder = task.reporter, task.folder
    with log_into(folder / "logs" / f"worker-{rank}.log"):
        logging.info("rank %d of %d starts", rank, ray.train.get_context().get_world_size())
        try:
            if task.config.run.imports:
                import_modules(task.config.run.imports)
            report = reporter.on_worker(rank, folder)
            return report is not None and train(
                task.config,
                task.data,
                folder,
                ray.train.torch.get_device(),
                report,
                splits=task.splits,
                beats=reporter.beats,
                commit_first=reporter.commit_first,
                callbacks=unpacked(task.callbacks) if task.callbacks else (),
            )
        except Exception as error:
            logging.exception("rank %d failed", rank)
            reporter.failed(rank, error)
            raise
