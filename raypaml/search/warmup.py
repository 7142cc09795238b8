"""The warm-up that trials share: until the first rejection, runs that differ only in how they reject are one run."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from raypaml.config import EXECUTION_FIELDS, TrainConfig
from raypaml.files import whole_folder
from raypaml.losses.schemes import scheme_of
from raypaml.runs.run_files import METRICS_FILE

if TYPE_CHECKING:
    from raypaml.search.spaces import Space

AFTER_WARMUP = ("delta_rel", "schedule", "rejection_scope", "rejection_rounding", "warmup_epochs")
"""Fields that change nothing before the first rejection; neither does a scheme that is plain until then. Any other
field may."""


def warmup_key(config: TrainConfig) -> str:
    """A key that two configurations share exactly if they train the same weights until the first of them rejects."""
    values: dict[str, object] = {k: v for k, v in config.flat().items() if k not in (*AFTER_WARMUP, *EXECUTION_FIELDS)}
    if scheme_of(config.loss.scheme).plain_until_rejection:
        values |= {"scheme": "an", "scheme_settings": ""}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def acts_after_warmup(space: Space, base: TrainConfig) -> bool:
    """Whether trials that differ only in this field can share their warm-up."""
    if space.field == "scheme":
        return all(scheme_of(str(name)).plain_until_rejection for name in (*space.values, base.loss.scheme))
    return space.field in AFTER_WARMUP


def keep(run_folder: Path, warmups: Path, epoch: int) -> None:
    """Copy the checkpoints and metrics of a run after its first `epoch` epochs, unless they are there already."""
    kept = warmups / f"after-{epoch}"
    if kept.is_dir():
        return
    with whole_folder(kept) as unfinished:
        shutil.copytree(run_folder / "checkpoints", unfinished / "checkpoints", ignore=shutil.ignore_patterns(".*"))
        shutil.copy2(run_folder / METRICS_FILE, unfinished)


def start_from(warmups: Path, run_folder: Path, warmup_epochs: int) -> int:
    """Let a new run go on from the longest kept warm-up that is not longer than its own.

    Args:
        warmups: folder of the warm-ups with the run's `warmup_key`.
        run_folder: folder of the run; one that holds checkpoints already is left as it is.
        warmup_epochs: length of the run's own warm-up.

    Returns:
        The number of epochs that the run need not train.
    """
    kept = [int(path.name.removeprefix("after-")) for path in warmups.glob("after-*")]
    epoch = max((epoch for epoch in kept if epoch <= warmup_epochs), default=0)
    if not epoch or (run_folder / "checkpoints").is_dir():
        return 0
    with whole_folder(run_folder / "checkpoints") as unfinished:
        shutil.copytree(warmups / f"after-{epoch}" / "checkpoints", unfinished, dirs_exist_ok=True)
        shutil.copy2(warmups / f"after-{epoch}" / METRICS_FILE, run_folder)
    return epoch
