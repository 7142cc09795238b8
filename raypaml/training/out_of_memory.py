"""Recovery from running out of memory: once a run, all ranks start again from the last checkpoint with half as many
images at once.

The global batch stays the same, and so does what is rejected. It is taken through the network in more micro batches,
which costs one more forward pass, and BatchNorm's statistics are then those of a micro batch. The run's `memory.json`
records the change, which also holds when the run is continued later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from raypaml.config import TrainConfig
from raypaml.errors import HalvedError
from raypaml.files import write_json
from raypaml.runs.mirror import Mirror
from raypaml.stored_json import read_if_there
from raypaml.training.worker import Worker

HALVING_FILE = "memory.json"
_MESSAGES = ("DefaultCPUAllocator", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
"""Texts of memory errors that have no exception class: those of the CPU, the driver, cuBLAS and cuDNN."""


@dataclass(frozen=True, kw_only=True)
class Halving:
    """The change made after memory ran out: the content of `memory.json`."""

    micro_batch_size: int
    """Images that a worker takes through the network at once from there on."""
    before: int
    """Images that it took at once before."""
    where: str
    """The rank whose memory ran out, and where training was."""
    error: str
    """The error's first line."""

    def __str__(self) -> str:
        return (
            f"{self.where}: memory ran out; this run goes on with {self.micro_batch_size} images at once on a worker "
            f"instead of {self.before}, in the same global batches ({self.error})"
        )


def read_halving(run_folder: Path) -> Halving | None:
    """Read a run's `memory.json`; None where memory never ran out."""
    remedy = "remove it to train as many images at once as before it"
    return read_if_there(run_folder / HALVING_FILE, Halving, "the record of a memory error", remedy)


def as_halved(config: TrainConfig, run_folder: Path) -> TrainConfig:
    """The configuration with the micro-batch size of `memory.json`, where the run has one."""
    if store := Mirror.of(config.run.storage, run_folder):
        store.pull(HALVING_FILE)
    halving = read_halving(run_folder)
    return config.override({"micro_batch_size": halving.micro_batch_size}) if halving else config


@contextmanager
def halving_once(current: Callable[[], Worker]) -> Iterator[None]:
    """Where memory runs out in the block, record that half as many images are to be taken at once.

    Raises:
        HalvedError: memory ran out for the first time in this run, so that all ranks should be started again.
        ValueError: it ran out, and half as many images would not help, or would change the results.
    """
    try:
        yield
    except Exception as error:
        if not _ran_out(error):
            raise
        worker = current()
        halving = _halved(worker, error)
        write_json(worker.run_folder / HALVING_FILE, asdict(halving))
        if worker.store:
            worker.store.push(HALVING_FILE)
        raise HalvedError(str(halving)) from error


def _ran_out(error: Exception) -> bool:
    by_message = isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES)
    return by_message or isinstance(error, torch.OutOfMemoryError | MemoryError)


def _halved(worker: Worker, error: Exception) -> Halving:
    config, plan, ranks = worker.config, worker.plan, worker.ranks
    lane = plan.global_batch_size // plan.lanes
    part = min(-(-plan.lanes // ranks.world_size) * lane, plan.num_samples)
    at_once = min(config.optim.micro_batch_size or part, part)
    halving = Halving(
        micro_batch_size=(at_once + 1) // 2,
        before=at_once,
        where=f"rank {ranks.rank}, {worker.whereabouts(stuck=False)}",
        error=(str(error).strip() or repr(error)).splitlines()[0],
    )
    earlier = read_halving(worker.run_folder)
    # where the sizes differ, another rank has just halved
    again = earlier is not None and earlier.micro_batch_size == config.optim.micro_batch_size
    if why := _refusal(config, halving, again=again, lane=lane):
        raise ValueError(f"{halving.where}: memory ran out, {at_once} of the batch at once, {why} ({halving.error})")
    return halving


def _refusal(config: TrainConfig, halving: Halving, *, again: bool, lane: int) -> str:
    """Why half as many images are not tried, and the remedy; empty where they are."""
    if config.optim.reproducible:
        singly = f"--micro-batch-size {lane}, which takes them singly"
        remedy = "more --lanes, and --micro-batch-size at one of them" if config.optim.micro_batch_size else singly
        return (
            f"and reproducible computes whole lanes of {lane}, which stay as they are: start another run with {remedy}"
        )
    if again:
        return "half as many as at first: start another run with a smaller --micro-batch-size"
    if halving.before == 1:
        return "and cannot take fewer: use smaller images, another backbone, or a device with more memory"
    try:
        config.override({"micro_batch_size": halving.micro_batch_size}).check()
    except ValueError as error:
        return f"and cannot take half of them: {error}"
    return ""
