"""Checkpoints as folders of safetensors, JSON and Parquet: written whole or not at all, verified before use.

<run>/checkpoints/0003-000120/   epoch 3, step 120: the cursor of the next batch
    model.safetensors  optimizer.safetensors  state.json  [corrections.parquet]  [memory.safetensors]
    COMMITTED (digests; written last)

model.safetensors are the weights to evaluate. Where they are an average, trained.safetensors go on being trained.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raypaml.data.index import Index
from raypaml.files import sweep, sync
from raypaml.model.layout import laid_out_as
from raypaml.runs.corrections import Corrections
from raypaml.runs.mirror import MARKER
from raypaml.runs.skips import Reason

TRAINED = "trained.safetensors"
MEMORY = "memory.safetensors"
_NAME = re.compile(r"\d{4,}-\d{6,}")


@dataclass(kw_only=True)
class State:
    """Everything besides tensors that a run needs to go on exactly where it was."""

    epoch: int = 0
    step: int = 0
    """Of the next batch within the epoch."""
    tally: list[float] = field(default_factory=list)
    """Sums over this epoch's steps so far, all ranks together."""
    skipped: list[tuple[int, int, Reason]] = field(default_factory=list)
    """(epoch, sample, reason) of every broken sample skipped so far, all ranks together."""
    seconds: float = 0.0
    """Spent training so far."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One record per finished epoch, the lines of metrics.jsonl."""
    vocabulary: str = ""
    """Digest of the classes."""

    @property
    def score(self) -> float:
        """Validation mAP of a checkpoint made at an epoch's end, else -1."""
        return float(self.history[-1]["validation_mean_ap"]) if self.history and self.step == 0 else -1.0


def save_checkpoint(
    folder: Path,
    state: State,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    corrections: Corrections,
    index: Index,
    average: nn.Module | None = None,
    memory: dict[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint under its final name, atomically, and return its folder; `memory` is the scheme's.

    Raises:
        ValueError: there is no room for it.
    """
    final = folder / f"{state.epoch:04d}-{state.step:06d}"
    unfinished = folder / f".unfinished-{final.name}"
    try:
        _write(unfinished, state, model, optimizer, corrections, index, average, memory or {})
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)  # what is there may fill the disk
        free = shutil.disk_usage(folder).free if folder.is_dir() else 0
        raise ValueError(
            f"{final}: cannot be written ({error}); {free / 1e6:,.0f} MB are free there. The last checkpoint is whole: "
            "make room and give the command again, with this --name"
        ) from None
    shutil.rmtree(final, ignore_errors=True)
    unfinished.replace(final)
    sync(folder)
    return final


def _write(
    unfinished: Path,
    state: State,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    corrections: Corrections,
    index: Index,
    average: nn.Module | None,
    memory: dict[str, Tensor],
) -> None:
    """All files of a checkpoint, on the disk; the marker last."""
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    _save_weights(model if average is None else average, unfinished / "model.safetensors")
    if average is not None:
        _save_weights(model, unfinished / TRAINED)
    save_file(_optimizer_tensors(optimizer), unfinished / "optimizer.safetensors")
    if len(corrections.entries):
        corrections.write(unfinished / "corrections.parquet", index)
    if memory:
        save_file({name: value.contiguous() for name, value in memory.items()}, unfinished / MEMORY)
    (unfinished / "state.json").write_text(json.dumps(asdict(state), indent=1))
    digests = {path.name: _digest(path) for path in sorted(unfinished.iterdir())}
    (unfinished / MARKER).write_text(json.dumps(digests, indent=1))
    for path in unfinished.iterdir():
        sync(path)


def _save_weights(model: nn.Module, path: Path) -> None:
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)


def is_valid(checkpoint: Path) -> bool:
    """Whether every file is there as it was written."""
    try:
        digests = json.loads((checkpoint / MARKER).read_text())
        return bool(digests) and all(_digest(checkpoint / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def valid_checkpoints(folder: Path) -> tuple[list[Path], list[Path]]:
    """The checkpoints of a run, oldest first: the valid ones, and those that are damaged and passed over."""
    found = sorted((path for path in folder.glob("*") if _NAME.fullmatch(path.name)), key=_cursor)
    valid = [path for path in found if is_valid(path)]
    return valid, [path for path in found if path not in valid]


def _cursor(checkpoint: Path) -> tuple[int, ...]:
    return tuple(map(int, checkpoint.name.split("-")))


def read_state(checkpoint: Path) -> State:
    """The state of a checkpoint, without its tensors."""
    return State(**json.loads((checkpoint / "state.json").read_text()))


def best_checkpoint(checkpoints: list[Path]) -> Path:
    """The one of highest validation mAP; of equals the earliest, of none with a score the last."""
    best = max(checkpoints, key=lambda path: read_state(path).score)
    return best if read_state(best).score >= 0 else checkpoints[-1]


def load_model(checkpoint: Path, model: nn.Module) -> None:
    """Load the weights of a checkpoint."""
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))


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
        model.load_state_dict(load_file(checkpoint / TRAINED))
    _load_optimizer(optimizer, load_file(checkpoint / "optimizer.safetensors"))
    overlay = checkpoint / "corrections.parquet"
    return state, Corrections.read(overlay, index) if overlay.is_file() else Corrections(index.num_classes)


def read_memory(checkpoint: Path) -> dict[str, Tensor]:
    """What the scheme remembered, by name; nothing for most schemes."""
    path = checkpoint / MEMORY
    return load_file(path) if path.is_file() else {}


def retain(folder: Path) -> None:
    """Delete all but the newest and the best valid checkpoint, and what was left unfinished."""
    valid, damaged = valid_checkpoints(folder)
    keep = {valid[-1], best_checkpoint(valid)} if valid else set()
    for path in [*valid, *damaged]:
        if path not in keep:
            shutil.rmtree(path, ignore_errors=True)
    sweep_unfinished(folder)


def sweep_unfinished(folder: Path) -> None:
    """Delete what was left unfinished, by `save_checkpoint` and by copying from a store."""
    sweep(folder)
    for path in folder.glob(".unfinished-*"):
        shutil.rmtree(path, ignore_errors=True)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value.contiguous() for number, slots in state.items() for name, value in slots.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".")
        weight = weights[int(number)]
        is_moment = value.shape == weight.shape  # else the count of steps; files have no strides
        state.setdefault(int(number), {})[name] = laid_out_as(weight, value) if is_moment else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
