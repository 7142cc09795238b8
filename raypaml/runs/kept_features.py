"""Features of a frozen backbone, computed once and kept as float16 files, which make epochs of the head alone cheap.

<folder>/<digest>/<split>-00000.npy, ...: float16 [256, D, h, w] each, in the order of the index. The digest covers the
backbone's weights, how it computes, and the split's images, so that features of another network or of other images are
never used. Parts are the same however many workers compute them, and each is written whole or not at all. A run that
computes a split holds <split>.lock; others wait, and then use the same files.

float16 keeps 11 significant bits. That loses nothing of bfloat16, which has 8; a float32 run learns from rounded
features, and from exact ones only with feature_cache=off. Features are sent to the device as float16 and become
float32 there, without another rounding.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypaml.bounded import open_npy
from raypaml.config import TrainConfig
from raypaml.data.batches import AHEAD, Batch
from raypaml.data.data_folder import DataFolder
from raypaml.data.index import Index
from raypaml.model.cam import CamClassifier
from raypaml.runs.feature_computing import (
    PART,
    FeatureJob,
    ProgressListener,
    check_common_folder,
    compute_missing,
    turn_to_compute,
)
from raypaml.runs.ranks import Ranks

RUN_FOLDER = "features"
"""Where feature_cache=run keeps them, within the run's folder."""


@dataclass(frozen=True)
class Features:
    """The kept features of a split."""

    parts: list[NDArray[np.float16]]
    """Memory-mapped arrays [PART, D, h, w], the last one shorter."""

    def take(self, rows: NDArray[np.int64], *, pin_memory: bool = False) -> Tensor:
        """Read the features of samples with these rows, float16 [B, D, h, w]."""
        taken = torch.empty((len(rows), *self.parts[0].shape[1:]), dtype=torch.float16, pin_memory=pin_memory)
        into = taken.numpy()
        for position, row in enumerate(rows.tolist()):  # numpy's own gathering copies a map twice, and takes longer
            into[position] = self.parts[row // PART][row % PART]
        return taken

    def instead(self, batches: Iterator[Batch], *, pin_memory: bool) -> Iterator[Batch]:
        """The same batches with features in place of images; a thread reads them ahead."""

        def fetch() -> Batch | None:
            batch = next(batches, None)
            if batch is None:
                return None
            return dataclasses.replace(batch, images=self.take(batch.rows, pin_memory=pin_memory))

        with ThreadPoolExecutor(1, "features") as thread:
            begun = deque(thread.submit(fetch) for _ in range(AHEAD))
            while (batch := begun.popleft().result()) is not None:
                begun.append(thread.submit(fetch))
                yield batch


def keeps_features(config: TrainConfig) -> bool:
    """Whether frozen epochs use kept features: not where images change in every epoch, or may be broken."""
    changed = config.data.flip or config.augmentation.changes_images
    return config.optim.feature_cache != "off" and not changed and not config.data.skip_budget


def keeps_test_features(config: TrainConfig, epoch: int) -> bool:
    """Whether the model is tested on kept features after `epoch` epochs of training.

    Only where runs share a folder of features: those of a single run would be computed to be used once.
    """
    optim = config.optim
    shared = optim.feature_cache not in ("run", "off")
    return shared and optim.test_features and epoch <= optim.freeze_backbone and not config.data.skip_budget


def open_features(
    model: CamClassifier,
    data: DataFolder,
    split: str,
    ranks: Ranks,
    config: TrainConfig,
    run_folder: Path,
    listener: ProgressListener,
) -> Features | None:
    """Open the features of a split, after the ranks together have computed the parts that are missing; a collective.

    Returns:
        The features; None where the listener asked to stop, after the current part or while another run computes.

    Raises:
        ValueError: the ranks have no folder in common, the disk has no room, a feature is beyond float16, or a file is
            damaged.
    """
    kept = run_folder / RUN_FOLDER if config.optim.feature_cache == "run" else Path(config.optim.feature_cache)
    folder = kept / _digest(model, data.splits[split], ranks.device, config)
    job = FeatureJob(model=model, data=data, split=split, ranks=ranks, config=config, folder=folder, listener=listener)
    folder.mkdir(parents=True, exist_ok=True)
    check_common_folder(job)
    if job.missing():
        with turn_to_compute(job, f"run {run_folder.name}") as ours:
            if not (ours and compute_missing(job)):
                return None
    last = len(job.index) - PART * (len(job.paths) - 1)
    return Features([_open(path, last if path == job.paths[-1] else PART) for path in job.paths])


def _open(path: Path, rows: int) -> NDArray[np.float16]:
    """Open a part of so many rows as a memory-mapped array."""
    try:
        part: NDArray[Any] = open_npy(path)
    except ValueError as error:
        raise ValueError(f"{error}; remove it, and it is computed again") from None
    if part.dtype != np.float16 or part.ndim != 4 or len(part) != rows:
        held = f"{part.dtype} {list(part.shape)}"
        raise ValueError(f"{path}: holds {held}, not float16 [{rows}, D, h, w]; remove it, and it is computed again")
    return part


def _digest(model: CamClassifier, index: Index, device: torch.device, config: TrainConfig) -> str:
    optim = config.optim
    how: tuple[object, ...] = (torch.__version__, device.type, optim.precision, config.model.backbone, len(index))
    if device.type == "cuda" and optim.matmul_precision != "torch":
        how = (*how, optim.matmul_precision)
    digest = hashlib.sha256(repr(how).encode())
    for name, value in (*model.backbone.state_dict().items(), ("mean", model.mean), ("std", model.std)):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    digest.update(index.crc32.tobytes())
    return digest.hexdigest()[:16]
