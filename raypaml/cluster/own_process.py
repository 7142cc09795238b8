"""Training a run of one worker in this process, without Ray: with its watchdog, signals, and further tries."""

from __future__ import annotations

import gc
import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from raypaml.cluster.own_signals import OwnSignals
from raypaml.cluster.sole_use import sole_use
from raypaml.cluster.worker_errors import CHANCE, as_said, brief_cause
from raypaml.errors import StoppedAtOnce, is_lasting
from raypaml.reports.progress import Display
from raypaml.runs.events import Event, LoopSignal, Message, Report
from raypaml.runs.ranks import own_gpu
from raypaml.runs.run_folder import claim, log_into
from raypaml.settings import RunConfig
from raypaml.training.callbacks import Callback
from raypaml.training.job import Job
from raypaml.training.loop import train
from raypaml.training.watch import Beat, Watch


def is_for_own_process(run: RunConfig) -> bool:
    """Whether a run trains in this process: it has one worker, no address, and the program has not started Ray.

    A task, an actor or a trial of Ray also trains in its own process, rather than wait for another one.
    """
    return run.workers == 1 and not (run.address or os.environ.get("RAY_ADDRESS") or _has_started_ray())


def _has_started_ray() -> bool:
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    from raypaml.cluster import session  # imports ray, which is imported already

    return not session.is_task() or session.is_train_worker()


def fit_in_own_process(job: Job, prog: str, display: Display, callbacks: Sequence[Callback] = ()) -> int:
    """Train in this process; arguments, result and errors are those of `launch.fit`.

    Signals are handled only in the main thread. After errors that another try may not meet, training starts again from
    the last checkpoint, up to `max_failures` times; a hang ends the process.
    """
    run = job.config.run
    display.say(f"run {run.name}: 1 worker, in this process, in {job.folder}")
    again = f"continue with: {prog} {shlex.join(['--name', run.name, '--storage', run.storage])}"
    device = torch.device("cuda", 0) if own_gpu(run.device) else torch.device("cpu")
    with sole_use(), OwnSignals(display.say) as signals, _logged(job), _torch_restored(device):
        claim(job.folder, job.config, job.data)
        display.track(job.config, job.folder)
        _use_threads_of_a_worker(job.config.optim.threads)
        report, watchdog = _reporter(display, signals), _Watchdog(run.hang_seconds, display, again)
        try:
            finished = _train(job, device, report, watchdog, callbacks)
        except StoppedAtOnce:
            display.say(f"stopped at once; what came after the last checkpoint is lost; {again}")
            raise
    if finished:
        return 0
    display.say(f"stopped; {again}")
    return signals.received or signal.SIGINT


def _reporter(display: Display, signals: OwnSignals) -> Report:
    def report(event: Event) -> LoopSignal:
        if isinstance(event, Message):
            logging.info(event.text)
        display.update(event)
        return LoopSignal.STOP if signals.received else LoopSignal.NOTHING

    return report


class _Watchdog:
    """Takes the worker's heartbeats, and asks for the end of its process where it hangs."""

    def __init__(self, limit: float, display: Display, again: str) -> None:
        self._watch, self._display, self._again = Watch(limit), display, again

    def hear(self, beat: Beat) -> bool:
        """Take a heartbeat; returns whether this process must end, and says why if so."""
        self._watch.hear(beat)
        for line in self._watch.hung():
            self._display.close()  # restores the terminal
            self._display.say(f"{line}; this process ends; {self._again}")
        return beat.process in self._watch.condemned


def _train(job: Job, device: torch.device, report: Report, watchdog: _Watchdog, callbacks: Sequence[Callback]) -> bool:
    """Train, and again from the last checkpoint after an error that may not occur again; whether training finished."""
    for left in reversed(range(job.config.run.max_failures + 1)):
        try:
            return train(
                job.config, job.data.address, job.folder, device, report, beats=watchdog.hear, callbacks=callbacks
            )
        except Exception as error:
            logging.exception("rank 0 failed")
            # after an error of CUDA this process cannot use its GPU
            may_go_better = isinstance(error, CHANCE) and not isinstance(error, torch.AcceleratorError)
            if not left or not may_go_better or is_lasting(error):
                raise as_said(0, error) from None
            report(Message(f"lost: rank 0 ({brief_cause(error)}); it starts again from the last checkpoint"))
        gc.collect()  # the memory of the failed try may be why it failed
        if device.type == "cuda":
            torch.cuda.empty_cache()
    raise AssertionError("the last try returns or raises")


@contextmanager
def _logged(job: Job) -> Iterator[None]:
    """Log this process, including Python's warnings, into the log of rank 0."""
    with log_into(job.folder / "logs" / "worker-0.log"):
        logging.captureWarnings(True)
        logging.info("rank 0 of 1 starts, in the process of the command")
        try:
            yield
        finally:
            logging.captureWarnings(False)


def _use_threads_of_a_worker(threads: int) -> None:
    """Compute with one thread, as in a worker of Ray, unless the configuration or the environment says otherwise."""
    if not threads and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


@contextmanager
def _torch_restored(device: torch.device) -> Iterator[None]:
    """Restore the caller's state of torch afterwards: random numbers, threads, and cuDNN's deterministic mode."""
    threads, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    try:
        with torch.random.fork_rng([device.index] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic = deterministic
