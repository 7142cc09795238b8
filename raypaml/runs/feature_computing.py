"""Computing the kept features of a split: by one run at a time, with progress, and stoppable after every part."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypaml.config import TrainConfig
from raypaml.counting import progress_line
from raypaml.data.batches import Reader, read
from raypaml.data.data_folder import DataFolder
from raypaml.data.index import Index
from raypaml.data.plan import Part, Plan
from raypaml.files import sweep, whole
from raypaml.model.cam import CamClassifier
from raypaml.runs.models import autocast
from raypaml.runs.ranks import Ranks
from raypaml.runs.shared_lock import SharedLock, is_missing

_BATCH = 32
"""Images that the backbone takes at once; fixed, because the last bits of features may depend on it."""
_PART_BATCHES = 8
"""Batches in one file: the most that a worker loses by an interruption."""
PART = _BATCH * _PART_BATCHES
WAIT_SECONDS = 2.0
"""Time between two checks whether another run has computed what this one needs."""


class ProgressListener(Protocol):
    """Is told of the progress of computing, and says whether to stop."""

    def say(self, text: str) -> None:
        """Take a line that the user should read."""

    def moved(self, text: str) -> None:
        """Take a line about the progress, which comes often."""

    def stops(self) -> bool:
        """Whether to stop; a collective, with the same answer on all ranks."""


@dataclass(frozen=True, kw_only=True)
class FeatureJob:
    """The features of a split that a run needs, and how it computes them."""

    model: CamClassifier
    data: DataFolder
    split: str
    ranks: Ranks
    config: TrainConfig
    folder: Path
    listener: ProgressListener

    @property
    def index(self) -> Index:
        """The index of the split."""
        return self.data.splits[self.split]

    @property
    def paths(self) -> list[Path]:
        """The files of all parts."""
        return [self.folder / f"{self.split}-{number:05d}.npy" for number in range(-(-len(self.index) // PART))]

    def missing(self) -> list[int]:
        """The numbers of the parts that rank 0 does not find; a collective."""
        seen = torch.tensor([not path.is_file() for path in self.paths], dtype=torch.float64)
        return self.ranks.sum(seen * (self.ranks.rank == 0)).nonzero().flatten().tolist()


def check_common_folder(job: FeatureJob) -> None:
    """Raise ValueError, on every rank, where a rank lacks features and does not see the files of rank 0."""
    ranks = job.ranks
    if not ranks.sum(torch.tensor([int(not all(path.is_file() for path in job.paths))])).item():
        return
    first = ranks.rank == 0
    # a new name, which no file system has cached as missing
    name = int(ranks.sum(torch.tensor([uuid.uuid4().int >> 76 if first else 0])).item())
    seen = job.folder / f".seen-{name}"
    if first:
        seen.touch()
    ranks.barrier()
    blind = int(ranks.sum(torch.tensor([int(not seen.exists())])).item())  # also a barrier: all have looked
    if first:
        seen.unlink()
    if blind:
        raise ValueError(
            f"feature_cache={job.config.optim.feature_cache}: {blind} of {ranks.world_size} workers do not see what "
            f"rank 0 writes to {job.folder}; give --feature-cache a folder that all nodes share, or off, with another "
            "--name"
        )


@contextmanager
def turn_to_compute(job: FeatureJob, name: str) -> Iterator[bool]:
    """Wait until no other run computes the split, and keep others out during the block.

    Yields:
        False where this run was asked to stop while it waited.
    """
    lock, ranks = SharedLock(job.folder / f"{job.split}.lock"), job.ranks
    said = ""
    try:
        while not ranks.sum(torch.tensor([float(ranks.rank == 0 and _taken(job, lock, name))])).item():
            waiting = f"features of {job.split}: waiting for {lock.holder()}, which computes them"
            (job.listener.moved if waiting == said else job.listener.say)(waiting)
            said = waiting
            if job.listener.stops():
                yield False
                return
            time.sleep(WAIT_SECONDS)
        yield True
    finally:
        lock.release()


def _taken(job: FeatureJob, lock: SharedLock, name: str) -> bool:
    """Take the lock if it is free; on a file system without locks two runs may compute the same features."""
    try:
        return lock.take(name)
    except OSError as error:
        if not is_missing(error):
            raise
        job.listener.say(f"features of {job.split}: {job.folder} has no locks; another run may compute them too")
        return True


def compute_missing(job: FeatureJob) -> bool:
    """Compute the missing parts, shared among the ranks; False where the listener stopped it before the end."""
    missing, ranks, paths = job.missing(), job.ranks, job.paths
    if not missing:
        return True
    sweep(job.folder, shared=True)
    steps = Plan(num_samples=len(job.index), global_batch_size=_BATCH, lanes=1, shuffle=False).epoch(0, 0, 1)
    one_part = PART * _compute(job, Reader(job.data.shards, job.index, steps)[0].images[:1]).nbytes
    size = _checked_size(job.folder, job.split, len(missing) * one_part)
    there = f"{len(paths) - len(missing)} of {len(paths)} parts are there"
    job.listener.say(f"features of {job.split}: {there}, {size} to come as float16, in {job.folder}")
    ranks.barrier()  # all have checked the free space before any writes
    progress = _Progress(job, missing)
    for turn in range(0, len(missing), ranks.world_size):
        for number in missing[turn + ranks.rank : turn + ranks.rank + 1]:
            chunk = steps[number * _PART_BATCHES : (number + 1) * _PART_BATCHES]
            features = _compute_part(job, chunk, progress)
            # shared: two runs may compute the same features at the same time
            with whole(paths[number], shared=True) as unfinished, unfinished.open("wb") as file:
                np.save(file, features, allow_pickle=False)
        left = len(missing) - turn - ranks.world_size
        if job.listener.stops() and left > 0:
            job.listener.say(f"features of {job.split}: stopped, {len(paths) - left} of {len(paths)} parts are kept")
            return False
    ranks.barrier()
    return True


class _Progress:
    """The progress of all ranks, estimated from that of this one."""

    def __init__(self, job: FeatureJob, missing: list[int]):
        self._job, self._began, self._done = job, time.monotonic(), 0
        self._to_do = sum(min(PART, len(job.index) - PART * number) for number in missing)

    def count(self, images: int) -> None:
        """Note that this rank has done so many more images."""
        self._done += images
        total, done = len(self._job.index), min(self._to_do, self._done * self._job.ranks.world_size)
        rate = done / (time.monotonic() - self._began)
        left = self._to_do - done
        self._job.listener.moved(progress_line(f"features of {self._job.split}", total - left, total, "images", rate))


def _compute_part(job: FeatureJob, steps: Sequence[Part], progress: _Progress) -> NDArray[np.float16]:
    """Compute the features of the images of some steps, float16 [up to PART, D, h, w]."""
    reader = Reader(job.data.shards, job.index, steps)
    pin = job.ranks.device.type == "cuda"
    computed = list[Tensor]()
    for batch in read(reader, loader_workers=job.config.data.loader_workers, pin_memory=pin):
        computed.append(_compute(job, batch.images))
        progress.count(len(batch.rows))
    return torch.cat(computed).cpu().numpy()


@torch.no_grad()
def _compute(job: FeatureJob, images: Tensor) -> Tensor:
    """Compute the features of uint8 images, float16 [B, D, h, w]."""
    device = job.ranks.device
    with autocast(job.config.optim.precision, device):
        features = job.model.features(images.to(device, non_blocking=True)).half()
    if not features.isfinite().all():
        raise ValueError("feature_cache: a feature is beyond float16's 65,504; use --feature-cache off")
    return features


def _checked_size(folder: Path, split: str, need: int) -> str:
    """The needed size as text; ValueError where the disk has less free."""
    free = shutil.disk_usage(folder).free
    if need > 0.95 * free:
        raise ValueError(
            f"feature_cache: features of {split} need {need / 1e9:.2f} GB, {free / 1e9:.2f} GB are free at {folder}; "
            "give --feature-cache a folder on a larger disk, or off, with another --name; or prepare smaller images "
            "(--resize)"
        )
    return f"{need / 1e9:.2f} GB"
