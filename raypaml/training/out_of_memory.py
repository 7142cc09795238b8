"""When memory runs out, all ranks start again from the last checkpoint with half as many images at once; once a run.

The global batch stays, and with it what is rejected; it is taken through the network in more micro batches, which costs
one more forward pass, and BatchNorm's statistics are then those of a micro batch. The run's `memory.json` records it,
and holds from there on, also when the run is continued later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from raypaml.config import TrainConfig
from raypaml.files import write_json
from raypaml.runs.mirror import Mirror
from raypaml.training.worker import Worker

HALVING_FILE = "memory.json"
_TOLD = ("DefaultCPUAllocator", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
"""What memory errors say that have no class of their own: those of the CPU, the driver, cuBLAS and cuDNN."""


class HalvedError(RuntimeError):
    """Memory ran out, and the run's record now says to take half as many images at once; another try may go on."""


@dataclass(frozen=True, kw_only=True)
class Halving:
    """What was changed after memory ran out."""

    micro_batch_size: int
    """From there on."""
    before: int
    """Images that a worker took through the network at once."""
    where: str
    """The rank and its place in training."""
    error: str
    """What torch said."""

    def __str__(self) -> str:
        return (
            f"{self.where}: memory ran out; this run goes on with {self.micro_batch_size} images at once on a worker "
            f"instead of {self.before}, in the same global batches ({self.error})"
        )


def read_halving(run_folder: Path) -> Halving | None:
    """What the run's record says; None where memory never ran out."""
    path = run_folder / HALVING_FILE
    return Halving(**json.loads(path.read_text())) if path.is_file() else None


def as_halved(config: TrainConfig, run_folder: Path) -> TrainConfig:
    """The configuration that the run goes on with: the same, unless memory ran out before."""
    if store := Mirror.of(config.run.storage, run_folder):
        store.pull(HALVING_FILE)
    halving = read_halving(run_folder)
    return config.override({"micro_batch_size": halving.micro_batch_size}) if halving else config


@contextmanager
def halving_once(current: Callable[[], Worker]) -> Iterator[None]:
    """Where memory runs out in the block, for the first time in this run, record that half is to be taken.

    Raises:
        HalvedError: then, for all ranks to be started again.
        ValueError: half would not help, or would be another run.
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
    told = isinstance(error, RuntimeError) and any(text in str(error) for text in _TOLD)
    return told or isinstance(error, torch.OutOfMemoryError | MemoryError)


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
    again = earlier is not None and earlier.micro_batch_size == config.optim.micro_batch_size  # not by another rank now
    if why := _refusal(config, halving, again=again, lane=lane):
        raise ValueError(f"{halving.where}: memory ran out, {at_once} of the batch at once, {why} ({halving.error})")
    return halving


def _refusal(config: TrainConfig, halving: Halving, *, again: bool, lane: int) -> str:
    """Why half is not tried, and what to do; empty where it is."""
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
