"""The flags of `raypaml shard openimages`, and the preparation that they ask for."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import get_args

from raypaml.cli import Parser
from raypaml.preparation.label_join import ConflictRule
from raypaml.preparation.openimages.release_labels import OFFICIAL_TOTALS, read_classes, read_split
from raypaml.preparation.preparation_settings import Preparation
from raypaml.preparation.requests import Classes, SplitLabels
from raypaml.preparation.sharding_flags import add_sharding_flags, made_with, preparation


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


def openimages_preparation(flags: Namespace) -> Preparation:
    """Returns the preparation that the flags ask for."""
    missing = [name for name in ("metadata", "images") if not getattr(flags, name)]
    if missing:
        raise ValueError(f"give {' and '.join('--' + name for name in missing)}; --help says what they are")
    if not flags.metadata.is_dir():
        raise ValueError(f"metadata={flags.metadata}: no such folder; put the 2017_11 files or archives into one")
    if flags.machine_labels is not None and not 0 <= flags.machine_labels <= 1:
        raise ValueError(f"machine_labels={flags.machine_labels}: give a confidence, 0..1")
    classes = read_classes(flags.metadata, flags.classes)
    return preparation(
        flags,
        source="openimages",
        settings={"conflicts": flags.conflicts, "machine_labels": flags.machine_labels},
        classes=classes,
        read_split=partial(_labels_of, flags, classes),
        images=flags.images,
        official=OFFICIAL_TOTALS,
        before=made_with(flags.out),
    )


def _labels_of(flags: Namespace, classes: Classes, split: str) -> SplitLabels:
    """Reads the labels of one split; machine labels are for train alone."""
    threshold = flags.machine_labels if split == "train" else None
    return read_split(flags.metadata, split, classes, conflicts=flags.conflicts, machine_threshold=threshold)
