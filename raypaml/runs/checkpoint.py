"""Checkpoints as folders of safetensors, JSON and Parquet: written whole or not at all, verified before use.

<run>/checkpoints/0003-000120/   epoch 3, step 120: the next batch to train on
    model.safetensors  optimizer.safetensors  state.json  [corrections.parquet]  [memory.safetensors]
    COMMITTED (digests of the other files; written last)

model.safetensors has the weights to evaluate. Where these are a moving average, trained.safetensors has the weights
that training continues with.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from raypaml.data.index import Index
from raypaml.files import check_readable, file_digest, sweep
from raypaml.model.layout import laid_out_as
from raypaml.runs.corrections import Corrections
from raypaml.runs.history import VALIDATION_MEAN_AP, EpochRecord
from raypaml.runs.mirror import MARKER
from raypaml.runs.run_files import MODEL, STATE
from raypaml.runs.skips import Reason
from raypaml.stored_json import read_stored, refused_as

TRAINED = "trained.safetensors"
OPTIMIZER = "optimizer.safetensors"
MEMORY = "memory.safetensors"
CORRECTIONS = "corrections.parquet"
CallbackState = dict[str, Any]
"""What a checkpoint keeps of a callback: JSON values by name."""
_NAME = re.compile(r"\d{4,}-\d{6,}")
_LATER = ("class_counts", "kept", "callbacks", "held_seconds", "lost_seconds")
"""Fields of the state that checkpoints of earlier versions lack."""


@dataclass(kw_only=True)
class State:
    """Everything besides tensors that a run needs to continue exactly where it was."""

    epoch: int = 0
    """Epoch of the next batch, from 0."""
    step: int = 0
    """Step of the next batch within its epoch, from 0."""
    tally: list[float] = field(default_factory=list)
    """Sums over this epoch's steps so far, all ranks together."""
    class_counts: list[list[int]] = field(default_factory=list)
    """Counts of rejections by class in this epoch so far (`training.class_counts`), all ranks together."""
    skipped: list[tuple[int, int, Reason]] = field(default_factory=list)
    """(epoch, sample, reason) of every broken sample skipped so far, all ranks together."""
    seconds: float = 0.0
    """Time spent training so far."""
    held_seconds: float = 0.0
    """Worker-seconds of the run so far (`runs.worker_time`), those lost to restarts included."""
    lost_seconds: float = 0.0
    """Those of them that were lost to restarts."""
    history: list[EpochRecord] = field(default_factory=list)
    """One record per finished epoch, the lines of metrics.jsonl."""
    vocabulary: str = ""
    """Digest of the vocabulary."""
    kept: list[str] = field(default_factory=list)
    """Names of checkpoints to keep for good, as a callback asked."""
    callbacks: dict[str, CallbackState] = field(default_factory=dict)
    """States of callbacks, by their names."""

    @property
    def name(self) -> str:
        """The name of the checkpoint with this state: epoch and step, from 0."""
        return f"{self.epoch:04d}-{self.step:06d}"

    @property
    def score(self) -> float:
        """Validation mAP, 0..1, of a checkpoint made at the end of an epoch; -1 for others."""
        return float(self.history[-1][VALIDATION_MEAN_AP]) if self.history and self.step == 0 else -1.0


def is_valid(checkpoint: Path) -> bool:
    """Whether all files of a checkpoint have the digests in its marker; PermissionError where one may not be read."""
    try:
        digests = read_stored(checkpoint / MARKER, dict[str, str])
        return bool(digests) and all(file_digest(checkpoint / name) == digest for name, digest in digests.items())
    except (OSError, ValueError):
        for path in (checkpoint, *checkpoint.glob("*")):
            check_readable(path)
        return False


class Verified:
    """Checkpoints that this process has written or verified, and whose files have not been touched since.

    Bytes that change without the file system noticing are detected only when the checkpoint is used.
    """

    def __init__(self) -> None:
        self._seen: dict[Path, list[tuple[str, int, int]]] = {}

    def note(self, checkpoint: Path) -> None:
        """Note that this process has just written or verified a checkpoint."""
        self._seen[checkpoint] = _on_disk(checkpoint)

    def is_valid(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is valid; its files are hashed only if another process wrote or touched them."""
        if self._seen.get(checkpoint) != _on_disk(checkpoint):
            if not is_valid(checkpoint):
                return False
            self.note(checkpoint)
        return True


def _on_disk(checkpoint: Path) -> list[tuple[str, int, int]]:
    stats = ((path.name, path.stat()) for path in sorted(checkpoint.iterdir()))
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def valid_checkpoints(folder: Path, valid: Callable[[Path], bool] = is_valid) -> tuple[list[Path], list[Path]]:
    """The valid checkpoints of a run, oldest first, and its damaged ones; PermissionError where one may not be read."""
    check_readable(folder)  # a pattern has no matches there
    everything = sorted((path for path in folder.glob("*") if _NAME.fullmatch(path.name)), key=cursor)
    whole = [path for path in everything if valid(path)]
    return whole, [path for path in everything if path not in whole]


def cursor(checkpoint: Path) -> tuple[int, int]:
    """The epoch and the step, from 0, with which training continues from a checkpoint."""
    epoch, step = map(int, checkpoint.name.split("-"))
    return epoch, step


def read_state(checkpoint: Path) -> State:
    """The state of a checkpoint, without its tensors; ValueError where it is damaged."""
    path = checkpoint / STATE
    with refused_as(path, "the state of a checkpoint", "remove the checkpoint to continue from the one before"):
        state = read_stored(path, State, lacking=_LATER)
    state.skipped = [(epoch, row, reason) for epoch, row, reason in state.skipped]  # JSON has no tuples
    return state


def best_checkpoint(checkpoints: list[Path]) -> Path:
    """The checkpoint of highest validation mAP: the earliest of equals, the last where none has a score."""
    best = max(checkpoints, key=lambda path: read_state(path).score)
    return best if read_state(best).score >= 0 else checkpoints[-1]


def load_model(checkpoint: Path, model: nn.Module) -> None:
    """Load the weights to evaluate of a checkpoint into a model."""
    _load_weights(checkpoint / MODEL, model)


def _load_weights(path: Path, model: nn.Module) -> None:
    with _fitting(path):
        model.load_state_dict(load_file(path))


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """Turn what libraries raise in the block about a checkpoint's file into a ValueError that names it.

    Digests find damage; whoever wrote them for other files is found here.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        check_readable(path)
        raise ValueError(
            f"{path}: does not fit this run ({str(error) or type(error).__name__}); remove the checkpoint to continue "
            "from the one before"
        ) from None


def load_checkpoint(
    checkpoint: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    index: Index,
    average: nn.Module | None = None,
) -> tuple[State, Corrections]:
    """Restore model, optimizer and average in place; return state and corrections."""
    state = read_state(checkpoint)
    if state.vocabulary != index.vocabulary_digest:
        raise ValueError(f"{checkpoint}: trained with another vocabulary than {index.where}; give the run another name")
    load_model(checkpoint, model if average is None else average)
    if average is not None:
        _load_weights(checkpoint / TRAINED, model)
    with _fitting(checkpoint / OPTIMIZER):
        _load_optimizer(optimizer, load_file(checkpoint / OPTIMIZER))
    overlay = checkpoint / CORRECTIONS
    if not overlay.is_file():
        return state, Corrections(index.num_classes)
    with _fitting(overlay):
        return state, Corrections.read(overlay, index)


def read_memory(checkpoint: Path) -> dict[str, Tensor]:
    """Read the scheme's state and the random-number states, by name; most runs have none."""
    path = checkpoint / MEMORY
    if not path.is_file():
        return {}
    with _fitting(path):
        return load_file(path)


def retain(folder: Path, valid: Callable[[Path], bool] = is_valid) -> None:
    """Delete all checkpoints but the newest, the best and the kept valid ones, and delete unfinished ones."""
    whole, damaged = valid_checkpoints(folder, valid)
    keep = (
        {whole[-1], best_checkpoint(whole), *(folder / name for name in read_state(whole[-1]).kept)} if whole else set()
    )
    for path in [*whole, *damaged]:
        if path not in keep:
            shutil.rmtree(path, ignore_errors=True)
    sweep_unfinished(folder)


def sweep_unfinished(folder: Path) -> None:
    """Delete what `write_checkpoint`, or copying from a store, has left unfinished."""
    sweep(folder)
    for path in folder.glob(".unfinished-*"):
        shutil.rmtree(path, ignore_errors=True)


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".")
        weight = weights[int(number)]
        is_moment = value.shape == weight.shape  # else the step count; files do not keep strides
        if not is_moment and value.numel() != 1:
            raise ValueError(f"{key} has the shape {[*value.shape]}, its weight {[*weight.shape]}")
        state.setdefault(int(number), {})[name] = laid_out_as(weight, value) if is_moment else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
