"""Features of a frozen backbone, computed once and kept as float16 files: epochs of the head alone are then cheap.

<folder>/<digest>/<split>-00000.npy, ...: float16 [256, D, h, w] each, in the order of the index. The digest is that of
the backbone's weights, of how it computes, and of the split's images, so that features are never those of another
network or other images. Parts have fixed bounds, whoever computes them; each is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypaml.config import TrainConfig
from raypaml.data.batches import Reader, read
from raypaml.data.data_folder import DataFolder
from raypaml.data.index import Index
from raypaml.data.plan import Plan
from raypaml.files import sweep, whole
from raypaml.model.cam import CamClassifier
from raypaml.runs.models import autocast
from raypaml.runs.ranks import Ranks

_BATCH = 32
"""Images that the backbone takes at once; fixed, for its last bit may depend on it."""
_PART_BATCHES = 8
"""Of one file, and so what an interruption can cost a worker."""
PART = _BATCH * _PART_BATCHES
RUN_FOLDER = "features"
"""Where feature_cache=run keeps them, within the run's folder."""


@dataclass(frozen=True)
class Features:
    """Features of a split, on disk."""

    parts: list[NDArray[np.float16]]
    """Memory-mapped [PART, D, h, w], the last shorter."""

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """float32 [B, D, h, w] of these samples."""
        found = np.empty((len(rows), *self.parts[0].shape[1:]), np.float32)
        for position, row in enumerate(rows.tolist()):
            found[position] = self.parts[row // PART][row % PART]
        return torch.from_numpy(found)


def keeps_features(config: TrainConfig) -> bool:
    """Whether frozen epochs use kept features: a mirrored image would need its own, and a broken one has none."""
    return config.optim.feature_cache != "off" and not config.data.flip and not config.data.skip_budget


def features_folder(config: TrainConfig, run_folder: Path) -> Path:
    """Where they are kept."""
    kept = config.optim.feature_cache
    return run_folder / RUN_FOLDER if kept == "run" else Path(kept)


def open_features(
    model: CamClassifier,
    data: DataFolder,
    split: str,
    ranks: Ranks,
    config: TrainConfig,
    folder: Path,
    say: Callable[[str], None],
) -> Features:
    """The features of a split; those that are not there yet are computed, every rank some of the parts.

    Raises:
        ValueError: the disk has no room for them, or a feature is beyond float16.
    """
    index = data.splits[split]
    steps = Plan(num_samples=len(index), global_batch_size=_BATCH, lanes=1, shuffle=False).epoch(0, 0, 1)
    reader = Reader(data.shards, index, steps)
    kept = folder / _digest(model, index, ranks.device, config)
    paths = [kept / f"{split}-{number:05d}.npy" for number in range(-(-len(index) // PART))]
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
    kept.mkdir(parents=True, exist_ok=True)
    sweep(kept, shared=True)
    if missing:
        one_part = PART * _compute(model, reader[0].images[:1], ranks, config).nbytes
        said = f"features of {split}: {len(paths) - len(missing)} of {len(paths)} parts are there, "
        say(f"{said}{_room(kept, split, len(missing) * one_part)} to come, in {kept}")
    ranks.barrier()  # all have looked before anyone writes
    mine = missing[ranks.rank :: ranks.world_size]
    for done, number in enumerate(mine, start=1):
        chunk = steps[number * _PART_BATCHES : (number + 1) * _PART_BATCHES]
        batches = read(Reader(data.shards, index, chunk), loader_workers=config.data.loader_workers)
        computed = [_compute(model, batch.images, ranks, config) for batch in batches]
        _write(paths[number], torch.cat(computed).cpu().numpy())
        say(f"features of {split}: {done} of {len(mine)} parts")
    ranks.barrier()
    return Features([np.load(path, mmap_mode="r", allow_pickle=False) for path in paths])


@torch.no_grad()
def _compute(model: CamClassifier, images: Tensor, ranks: Ranks, config: TrainConfig) -> Tensor:
    """float16 [B, D, h, w] of uint8 images."""
    with autocast(config.optim.precision, ranks.device):
        features = model.features(images.to(ranks.device)).half()
    if not features.isfinite().all():
        raise ValueError("feature_cache: a feature is beyond float16's 65,504; use --feature-cache off")
    return features


def _room(folder: Path, split: str, need: int) -> str:
    """The size that is needed, in words; ValueError if the disk has not that much."""
    free = shutil.disk_usage(folder).free
    if need > 0.95 * free:
        raise ValueError(
            f"feature_cache: features of {split} need {need / 1e9:.2f} GB, {free / 1e9:.2f} GB are free at {folder}; "
            "give --feature-cache a folder on a larger disk, or off, with another --name; or prepare smaller images "
            "(--resize)"
        )
    return f"{need / 1e9:.2f} GB"


def _digest(model: CamClassifier, index: Index, device: torch.device, config: TrainConfig) -> str:
    how = (torch.__version__, device.type, config.optim.precision, config.model.backbone, len(index))
    digest = hashlib.sha256(repr(how).encode())
    for name, value in (*model.backbone.state_dict().items(), ("mean", model.mean), ("std", model.std)):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    digest.update(index.crc32.tobytes())
    return digest.hexdigest()[:16]


def _write(path: Path, features: NDArray[np.float16]) -> None:
    # Two runs may keep the features of the same data in the same folder at once.
    with whole(path, shared=True) as unfinished, unfinished.open("wb") as file:
        np.save(file, features, allow_pickle=False)
