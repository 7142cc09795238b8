"""What schemes know before training begins: class priors from another run, and the mean number of positives."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from raypaml.data.data_folder import DataFolder
from raypaml.runs.checkpoint import read_memory
from raypaml.runs.models import find_checkpoint
from raypaml.runs.run_folder import check_trained_classes


def read_priors(run: str, data: DataFolder) -> Tensor:
    """Read the mean score [K] of every class from a run of scheme `ignore`, or from one of its checkpoints."""
    if not run:
        raise ValueError("scheme=csl needs class priors: train with --scheme ignore first, then give --priors RUN")
    if not Path(run).is_dir():
        raise ValueError(f"priors={run}: no such run")
    folder, checkpoint = find_checkpoint(Path(run))
    check_trained_classes(folder, data.vocabulary.digest, str(data.path))
    kept = read_memory(checkpoint)
    if "means" not in kept:
        raise ValueError(f"priors={run}: holds no mean scores; give a run of --scheme ignore")
    return kept["means"]


def mean_positives(data: DataFolder) -> float:
    """Mean number of observed positives per validation image."""
    index = data.splits["validation"]
    return len(index.positives.values) / len(index)
