"""Turns a source into the labels of a data set: splits are cut, labels hidden, keys made, and everything is counted."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
import pyarrow as pa

from raypaml.data.shards import SPLITS
from raypaml.labels import IntArray
from raypaml.preparation.findings import Findings
from raypaml.preparation.formats.common import Source, SourceSplit
from raypaml.preparation.hiding import Hiding, hide, validation_split
from raypaml.preparation.requests import REQUEST, SplitLabels, as_requests
from raypaml.preparation.stratify import stratified_split

_NOT_IN_KEYS = re.compile(r"[^0-9A-Za-z_-]+")

Method = Literal["random", "stratified"]
Unlabelled = Literal["kept", "left out"]


@dataclass(frozen=True)
class Cut:
    """How the splits that a source lacks are cut from its training images."""

    validation: float = 0.2
    """Share of the training split that becomes validation; 0.2 is published."""
    test: float = 0.2
    """Share of all images that becomes the test split where the source has none."""
    seed: int = 1200
    """Seed of both cuts; 1200 is published."""
    method: Method = "random"
    """random: as published. stratified: both parts get the same share of each class, and no group is divided."""


def assemble(
    source: Source, hiding: Hiding, cut: Cut, taken: Collection[str] = (), *, unlabelled: Unlabelled = "kept"
) -> dict[str, SplitLabels]:
    """Returns the three splits; labels of train are hidden, those of validation and test are kept.

    As published, the labels of the whole of train are hidden first, and validation is cut from it afterwards, with
    its full labels. (E. Cole et al., CVPR 2021.)

    Args:
        source: the labelled images.
        hiding: which labels of train are hidden.
        cut: how the splits are cut that the source lacks.
        taken: keys that other images have already.
        unlabelled: what becomes of training images that have no observed label once labels are hidden, such as images
            without a positive where one positive is shown. kept: as published, with all entries unobserved. left out:
            as in data sets begun before there was a choice. An image without any label whose labels are not complete
            is always left out.

    Raises:
        ValueError: labels are to be hidden in a source whose labels are not complete, or a split would be empty.
    """
    splits = dict(source.splits)
    if "train" not in splits:
        raise ValueError(f"no training images; the source has {', '.join(splits) or 'nothing'}")
    num_classes = len(source.classes.class_ids)
    _check_groups(splits)
    if "test" not in splits:
        train, test = _cut(splits["train"], cut.test, cut, num_classes)
        splits |= {"train": splits["train"].rows(train), "test": splits["train"].rows(test)}
    if hiding.kind == "none":
        observed = _observed(splits["train"], num_classes)
    elif splits["train"].negatives is None:
        observed = hide(splits["train"].positives, num_classes, hiding)
    else:
        raise ValueError(f"hide={hiding.kind}: the labels of this source are not complete, so none can be hidden")
    if "validation" not in splits:
        train, validation = _cut(splits["train"], cut.validation, cut, num_classes)
        splits["validation"] = splits["train"].rows(validation)
        splits["train"] = splits["train"].rows(train)
        observed = tuple([side[row] for row in train] for side in observed)  # type: ignore[assignment]
    keys = _keys([file for split in SPLITS for file in splits[split].files], taken)
    shown = {split: observed if split == "train" else _observed(splits[split], num_classes) for split in SPLITS}
    labels = {split: _labels(splits[split], shown[split], keys, num_classes, unlabelled) for split in SPLITS}
    for split, file, reason in source.skipped:
        labels[split].skipped.setdefault(reason, []).append(file)
    return labels


def _check_groups(splits: dict[str, SourceSplit]) -> None:
    """Raises ValueError where the splits that a source has divide a group."""
    place: dict[str, str] = {}
    for split, content in splits.items():
        for group in filter(None, content.groups or ()):
            if place.setdefault(group, split) != split:
                raise ValueError(
                    f"group {group!r} is in {place[group]} and in {split}, so that near-duplicates of training images "
                    "would be tested; give it one split, or give --group-column none"
                )


def _cut(split: SourceSplit, fraction: float, cut: Cut, num_classes: int) -> tuple[IntArray, IntArray]:
    """Returns the rows to keep, and the rows to cut off."""
    if cut.method == "random":
        if split.groups is not None:
            raise ValueError(
                "--split-method random divides groups; give --split-method stratified, or --group-column none"
            )
        return validation_split(len(split.files), fraction, cut.seed)
    strata = split.positives
    if split.negatives is not None:
        pairs = zip(split.positives, split.negatives, strict=True)
        strata = [np.concatenate((yes, no + num_classes)) for yes, no in pairs]
    return stratified_split(strata, 2 * num_classes, fraction, cut.seed, split.groups)


def _observed(split: SourceSplit, num_classes: int) -> tuple[list[IntArray], list[IntArray]]:
    """Returns the positives and the negatives of each image where nothing is hidden."""
    if split.negatives is not None:
        return split.positives, split.negatives
    every = np.arange(num_classes)
    return split.positives, [np.setdiff1d(every, positive, assume_unique=True) for positive in split.positives]


def _keys(files: Sequence[str], taken: Collection[str]) -> dict[str, str]:
    """Returns a key for each file: its stem, or its whole path where two stems are the same.

    Where two paths differ only by characters that a key cannot have, such as letters of other alphabets, a digest is
    added.
    """
    keys = [_NOT_IN_KEYS.sub("_", PurePosixPath(file).stem) for file in files]
    if len(set(keys)) < len(keys) or not set(taken).isdisjoint(keys):
        keys = [_NOT_IN_KEYS.sub("_", str(PurePosixPath(file).with_suffix(""))) for file in files]
    twice = [file for file, count in Counter(files).items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice):,} images are listed twice, such as {twice[0]}; keep each in one split, once")
    counts = Counter([*keys, *taken])
    return {
        file: key if counts[key] == 1 else f"{key}-{hashlib.sha256(file.encode()).hexdigest()[:8]}"
        for file, key in zip(files, keys, strict=True)
    }


def _labels(
    split: SourceSplit,
    observed: tuple[list[IntArray], list[IntArray]],
    keys: dict[str, str],
    num_classes: int,
    unlabelled: Unlabelled,
) -> SplitLabels:
    columns = {
        "key": pa.array([keys[file] for file in split.files], pa.string()),
        "file": pa.array(split.files, pa.string()),
        "positives": _lists(observed[0]),
        "negatives": _lists(observed[1]),
    }
    if split.negatives is None:
        columns["truth"] = _lists(split.positives)
    if split.boxes is not None:
        columns["boxes"] = pa.array(split.boxes, REQUEST.field("boxes").type)
    classes = (np.concatenate([np.zeros(0, np.int64), *side]) for side in observed)
    counts = (np.bincount(columns, minlength=num_classes).astype(np.int64) for columns in classes)
    verified = dict(zip(("positives", "negatives"), counts, strict=True))
    table = as_requests(pa.table(columns))
    asked = np.array([len(a) + len(b) > 0 for a, b in zip(*observed, strict=True)], bool)
    findings = Findings(split.findings.counts.copy(), dict(split.findings.examples))
    if split.negatives is None and unlabelled == "kept":
        blank = [split.files[row] for row in np.flatnonzero(~asked)]
        findings.add("images of which no label is shown, kept", len(blank), blank)
        asked[:] = True
    others = {"no_label": table["key"].filter(pa.array(~asked)).combine_chunks()}
    return SplitLabels(table.filter(pa.array(asked)), verified, findings, others)


def _lists(lists: Sequence[IntArray]) -> pa.Array:
    return pa.array([columns.tolist() for columns in lists], pa.list_(pa.int32()))
