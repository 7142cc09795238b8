"""The flags of `raypaml shard openimages`, and the preparation that they ask for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from raypaml.cli import Parser
from raypaml.preparation.label_join import ConflictRule
from raypaml.preparation.openimages.release_labels import OFFICIAL_TOTALS, read_classes, read_split
from raypaml.preparation.preparation_settings import Preparation
from raypaml.preparation.requests import Classes, SplitLabels
from raypaml.preparation.sharding_flags import ShardingRequest, add_sharding_flags, made_with, preparation


def add_openimages_flags(parser: Parser) -> None:
    """Adds where the release and its images are, and how its labels are read."""
    add = parser.add_argument
    add(
        "--metadata",
        type=Path,
        metavar="DIR",
        help="folder of the files of the release (2017_11), extracted or as tar.gz archives",
    )
    add(
        "--images",
        metavar="DIR_OR_URL",
        help="folder or address of KEY.jpg, SPLIT/KEY.jpg or SPLIT*.tar.gz, such as s3://open-images-dataset",
    )
    add("--classes", type=Path, metavar="FILE", help="class ids, one a line [the 5,000 trainable classes]")
    add(
        "--conflicts",
        choices=get_args(ConflictRule),
        default="source",
        help="what becomes of a label that was verified as positive and as negative: source lets the better source "
        "decide (if that contradicts itself, the label is dropped), negative and positive fix its value, drop drops it "
        "[source]",
    )
    add(
        "--machine-labels",
        type=float,
        metavar="P",
        help="add machine labels of at least this confidence, 0 to 1, to train [none]",
    )
    add_sharding_flags(parser)


@dataclass(frozen=True, kw_only=True)
class OpenImagesRequest(ShardingRequest):
    """What `raypaml shard openimages` is asked for; the fields are its flags."""

    metadata: Path | None
    """Folder of the files of the release; needed to prepare."""
    classes: Path | None
    """File of class ids, one a line; None for the 5,000 trainable classes."""
    conflicts: ConflictRule
    """What becomes of a label that was verified as positive and as negative."""
    machine_labels: float | None
    """Confidence from which machine labels are added to train, 0..1; None adds none."""


def openimages_preparation(request: OpenImagesRequest) -> Preparation:
    """Returns the preparation that is asked for."""
    if request.metadata is None or not request.images:
        missing = [name for name in ("metadata", "images") if not getattr(request, name)]
        raise ValueError(f"give {' and '.join('--' + name for name in missing)}; --help says what they are")
    if not request.metadata.is_dir():
        raise ValueError(f"metadata={request.metadata}: no such folder; put the 2017_11 files or archives into one")
    if request.machine_labels is not None and not 0 <= request.machine_labels <= 1:
        raise ValueError(f"machine_labels={request.machine_labels}: give a confidence, 0..1")
    classes = read_classes(request.metadata, request.classes)
    return preparation(
        request,
        source="openimages",
        settings={"conflicts": request.conflicts, "machine_labels": request.machine_labels},
        classes=classes,
        read_split=partial(_labels_of, request, request.metadata, classes),
        images=request.images,
        official=OFFICIAL_TOTALS,
        before=made_with(request.out),
    )


def _labels_of(request: OpenImagesRequest, metadata: Path, classes: Classes, split: str) -> SplitLabels:
    """Reads the labels of one split; machine labels are for train alone."""
    threshold = request.machine_labels if split == "train" else None
    return read_split(metadata, split, classes, conflicts=request.conflicts, machine_threshold=threshold)
