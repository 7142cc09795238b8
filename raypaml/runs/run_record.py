"""The record of a run, its `config.json`: settings, data, versions, and the lengths that it was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NotRequired, TypedDict

from raypaml.config import ConfigRecord


class TrainedData(TypedDict):
    """The data set that a run was trained on."""

    folder: str
    vocabulary: str
    """Digest of the vocabulary."""
    num_classes: int
    image_size: NotRequired[tuple[int, int]]
    """Height and width in pixels; lacking in records of early versions."""
    samples: dict[str, int]
    """Number of samples by split."""


class Length(TypedDict):
    """When a run ends, and from where on it was asked to end so."""

    epoch: int
    """Epoch, from 0, from which this length holds."""
    step: int
    """Step of that epoch, from 0."""
    epochs: int
    patience: int
    stop_below: float
    result: str
    """Name of the file with the result of a run of this length; empty where it did not finish."""


class RunRecord(TypedDict):
    """The content of `config.json`."""

    config: ConfigRecord
    data: TrainedData
    versions: dict[str, str]
    commit: str
    """Git commit of the code, with + where files differed from it; empty for an installed package."""
    lengths: NotRequired[list[Length]]
    """The lengths that the run has had, in order, where there were several."""


def read_run_record(run_folder: Path) -> RunRecord:
    """Read the record in a run's folder."""
    content: RunRecord = json.loads((run_folder / "config.json").read_text())
    return content
