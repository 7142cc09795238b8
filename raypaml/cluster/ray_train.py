"""Training a checked run in workers of Ray Train, which are watched, and started again when some are lost."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module

from ray.train import FailureConfig, ScalingConfig, UserCallback
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from raypaml.cluster import holders, ray_variables, session
from raypaml.cluster.channel import Channel, Failure, Lost, Started
from raypaml.cluster.end_of_ray import RayThread
from raypaml.cluster.lost_ray import check_ray
from raypaml.cluster.lost_workers import LostWorkers, lost, lost_at_start, told_of_limit
from raypaml.cluster.on_worker import Reporter, RunReporter, WorkerTask, train_on_worker
from raypaml.cluster.private_ray import is_known
from raypaml.cluster.sent_callbacks import modules_of, packed
from raypaml.cluster.shared_cluster import coordinator_on_head, place_of_ray
from raypaml.cluster.signals import Signals
from raypaml.cluster.trainers import torch_config, trainer_class
from raypaml.cluster.waiting import FirstEvent
from raypaml.cluster.worker_errors import as_user_error, brief_cause
from raypaml.counting import number_of
from raypaml.data.storage import Location
from raypaml.errors import StoppedAtOnce
from raypaml.reports.progress import Display
from raypaml.runs.events import StepReport
from raypaml.runs.run_folder import claim
from raypaml.settings import RunConfig
from raypaml.training.callbacks import Callback
from raypaml.training.job import Job
from raypaml.training.watch import Watch

POLL_SECONDS = 0.3
RESIZE_SECONDS = 30.0
"""Time between two checks whether an elastic run can grow, which costs what was done since the last checkpoint."""
SHRINKS_SOON = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}
"""Makes Ray Train wait five seconds, rather than minutes, for the CPUs of a lost node, which still count for a while.

Then it looks again at what there is. The limit is on the reservation alone (Ray 2.60, `WorkerGroup._start_impl`), which
takes no time where there is room; workers' processes start later, without a limit.
"""


def patience_of(run: RunConfig) -> dict[str, str]:
    """Variables of Ray Train for a run: one that may shrink does not wait long for lost CPUs."""
    return SHRINKS_SOON if 0 < run.min_workers < run.workers else {}


@dataclass
class _Outcome:
    """How Ray Train's thread has ended."""

    finished: bool = False
    error: BaseException | None = None


def fit_on_ray(job: Job, prog: str, display: Display, callbacks: Sequence[Callback] = ()) -> int:
    """Train in workers of Ray; arguments, result and errors are those of `launch.fit`."""
    sent = packed(callbacks)
    run = job.config.run
    least = run.min_workers or run.workers
    count = f"{least} to " if least < run.workers else ""
    display.say(f"run {run.name}: {count}{number_of(run.workers, 'worker')}, in {job.folder}")
    again = f"continue with: {prog} {shlex.join(['--name', run.name, '--storage', run.storage])}"
    joined = session.join(run.address, least, title=f"run {run.name}", needs=modules_of(callbacks))
    with ray_variables(**patience_of(run)), joined as private:
        use_gpu = gpu_wanted(run, display.say)
        if not private:
            coordinator_on_head()
        claim(job.folder, job.config, job.data)
        display.track(job.config, job.folder)
        channel = Channel(partial(Watch, run.hang_seconds))
        outcome = _Outcome()
        asked = (job, channel, private, use_gpu, outcome, sent)
        thread = RayThread(partial(_fit_in_thread, *asked), known=is_known())
        with Signals() as signals, holders.asking("GPU" if use_gpu else "CPU", least) as lack:
            first = FirstEvent(display.say, "the first worker", limited=private, lack=lack)
            thread.start()
            try:
                while thread.is_alive():
                    thread.join(POLL_SECONDS)
                    check_ray(signals.received)
                    signals.forward(channel, display)
                    _show(channel, display, first)
            except StoppedAtOnce:
                display.say(f"stopped at once; what came after the last checkpoint is lost; {again}")
                raise
            finally:
                thread.leave()
    if outcome.error:
        raise outcome.error
    if outcome.finished:
        return 0
    display.say(f"stopped; {again}")
    return signals.received or signal.SIGINT


def _show(channel: Channel, display: Display, first: FirstEvent) -> None:
    """Show the events that came, and what is waited for; a Failure is raised at once, before Ray tries again."""
    events = channel.take()
    for event in events:
        if isinstance(event, Failure):
            raise event.error
        if isinstance(event, StepReport):
            _import_conclusion()
        if not isinstance(event, Started):
            display.update(event)
    if events and isinstance(events[-1], Lost):
        first.again()
    else:
        first.came(len(events))


@cache
def _import_conclusion() -> None:
    """Import, once and while workers train, what the end of a run needs, which takes a second."""
    for name in ("raypaml.run_report.conclude", "scipy.ndimage"):
        threading.Thread(target=import_module, args=(name,), daemon=True).start()


def gpu_wanted(run: RunConfig, say: Callable[[str], None]) -> bool:
    """Whether every worker gets a GPU; ValueError where the cluster does not have what is asked for.

    Where nodes may be added, Ray Train asks for them and waits.
    """
    least = run.min_workers or run.workers
    cpus, gpus = session.cpus(), session.gpus()
    if session.may_grow() and run.device != "auto":
        missing = least - (gpus if run.device == "cuda" else cpus)
        if missing > 0:
            say(f"waiting for nodes with {number_of(missing, 'GPU' if run.device == 'cuda' else 'CPU')} more")
        return run.device == "cuda"
    if cpus < least:
        raise ValueError(f"workers={least}: the cluster has {number_of(cpus, 'CPU')}; use fewer workers or add nodes")
    if run.device == "cuda" and gpus < least:
        raise ValueError(f"device=cuda: {least} workers need a GPU each, the cluster has {gpus}; use fewer workers")
    if run.device == "auto" and 0 < gpus < least:
        say(f"{number_of(gpus, 'GPU')} for {least} workers: training on the CPU; --workers {gpus} would use them")
    return run.device != "cpu" and gpus >= least


def _fit_in_thread(job: Job, channel: Channel, private: bool, use_gpu: bool, outcome: _Outcome, sent: bytes) -> None:
    """Run Ray's fit in this thread, so that the main thread can show progress and handle signals."""
    try:
        outcome.finished = run_workers(
            job,
            RunReporter(channel, private),
            channel,
            private=private,
            use_gpu=use_gpu,
            heard_by=sent,
        )
    except BaseException as error:
        outcome.error = error


def run_workers(
    job: Job,
    reporter: Reporter,
    channel: Channel,
    *,
    use_gpu: bool,
    private: bool = False,
    splits: Sequence[str] = ("test",),
    callbacks: Sequence[UserCallback] = (),
    heard_by: bytes = b"",
) -> bool:
    """Train a job in workers, and predict splits; whether training finished, rather than being stopped.

    Args:
        job: the run.
        reporter: takes the workers' progress.
        channel: takes what is said of lost workers, which are started again up to `max_failures` times in all.
        use_gpu: whether every worker gets a GPU.
        private: whether Ray is a private one, which ends with this process. A trial, which a search may stop, needs all
            that Ray Train starts.
        splits: the splits to predict.
        callbacks: callbacks of Ray Train, called by its controller.
        heard_by: the program's callbacks, called on rank 0, as `sent_callbacks.packed` gives them.

    Raises:
        ValueError: the error of the first rank that failed; a RuntimeError where it was not the user's fault.
    """
    run = job.config.run
    left = run.max_failures - channel.losses()
    if left < 0:
        raise told_of_limit(RuntimeError("its process was lost"), run.max_failures)
    task = WorkerTask(
        config=job.config,
        data=job.data.address,
        folder=job.folder,
        splits=tuple(splits),
        reporter=reporter,
        callbacks=heard_by,
    )
    told = [LostWorkers(channel, left, run.max_failures), *callbacks]
    trainer = _trainer(task, told, left, private=private, use_gpu=use_gpu)
    try:
        finished = bool(trainer.fit().return_value)
        if not finished and (failure := channel.failure()):
            raise failure
        return finished
    except WorkerGroupError as error:
        raise told_of_limit(as_user_error(error.worker_failures), run.max_failures) from None
    except (ControllerError, TrainingFailedError) as error:
        cause = lost_at_start(error)
        if not cause or channel.failure():
            raise channel.failure() or RuntimeError(f"Ray Train failed: {error}") from None
        channel.put(lost(brief_cause(cause), preempted=False, goes_on=left > 0, limit=run.max_failures))
    finally:
        channel.forget()
    return run_workers(
        job,
        reporter,
        channel,
        use_gpu=use_gpu,
        private=private,
        splits=splits,
        callbacks=callbacks,
        heard_by=heard_by,
    )


def _trainer(
    task: WorkerTask, told: list[UserCallback], max_failures: int, *, private: bool, use_gpu: bool
) -> TorchTrainer:
    """The trainer of Ray Train for a task."""
    run = task.config.run
    elastic = 0 < run.min_workers < run.workers
    where = Location(run.storage)  # all nodes see it
    place = place_of_ray(Location(str(task.folder)) if where.is_local else where / run.name)
    return trainer_class(private)(
        train_on_worker,
        train_loop_config={"task": task},
        scaling_config=ScalingConfig(
            num_workers=(run.min_workers, run.workers) if elastic else run.workers,
            use_gpu=use_gpu,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        torch_config=torch_config(),
        # Ray keeps no checkpoints: the training loop writes and finds its own
        run_config=RayRunConfig(
            **place,
            callbacks=told,
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )
