"""The record of a run, its `config.json`: settings, data, versions, and the lengths that it was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import NotRequired, TypedDict

from raypaml.config import ConfigRecord
from raypaml.runs.run_files import CONFIG
from raypaml.stored_json import read_stored, refused_as


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
    digests: NotRequired[dict[str, str]]
    """The digest of each split's index; empty where the index has none. Lacking in records of early versions."""


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


class ConfigFile(TypedDict):
    """A file with a configuration: the record of a run, the `best.json` of a search, or one that was written by hand.

    A run's record has the next four too, and a search's best trial the last one; nothing of them is read here.
    """

    config: ConfigRecord
    data: NotRequired[object]
    versions: NotRequired[object]
    commit: NotRequired[object]
    lengths: NotRequired[object]
    found: NotRequired[object]


def read_run_record(run_folder: Path) -> RunRecord:
    """Read the record in a run's folder; ValueError where it is damaged."""
    path = run_folder / CONFIG
    with refused_as(path, "the record of a run"):
        return read_stored(path, RunRecord)
