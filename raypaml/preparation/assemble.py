"""From a source to the labels of a data set: splits cut, labels hidden, keys made, everything counted."""

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
from numpy.typing import NDArray

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
    """How a source without all three splits is cut."""

    validation: float = 0.2
    """Share of train; published."""
    test: float = 0.2
    """Share of everything, where there is no test split."""
    seed: int = 1200
    """Published."""
    method: Method = "random"
    """random: as published; stratified: each class has the same share in both parts, and no group is divided."""


def assemble(
    source: Source, hiding: Hiding, cut: Cut, taken: Collection[str] = (), *, unlabelled: Unlabelled = "kept"
) -> dict[str, SplitLabels]:
    """The three splits, labels of train hidden, those of validation and test as they are.

    As published, the labels of the whole of train are hidden first, and validation is cut from it afterwards, with
    its full labels. (E. Cole et al., CVPR 2021; method: facts of the papers' code.)

    Args:
        source: what was found.
        hiding: which labels of train are hidden.
        cut: how splits are cut that the source has not.
        taken: keys that no image gets, for others have them.
        unlabelled: what becomes of training images of which hiding shows no label, such as those without a positive
            where one positive is shown. kept: as published, every entry of theirs is unobserved. left out: as before
            there was a choice. An image whose labels are not complete and that has none is left out in any case.

    Raises:
        ValueError: hidden labels are asked of a source whose labels are not complete; a split would be empty.
    """
    splits = dict(source.splits)
    if "train" not in splits:
        raise ValueError(f"no training images; the source has {', '.join(splits) or 'nothing'}")
    num_classes = len(source.classes.class_ids)
    _check_groups(splits)
    if "test" not in splits:
        train, test = _cut(splits["train"], cut.test, cut, num_classes)
        splits |= {"train": splits["train"].rows(train), "test": splits["train"].rows(test)}
    observed = _hidden(splits["train"], num_classes, hiding)
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
    """ValueError where the splits that a source has divide a group."""
    place: dict[str, str] = {}
    for split, content in splits.items():
        for group in filter(None, content.groups or ()):
            if place.setdefault(group, split) != split:
                raise ValueError(
                    f"group {group!r} is in {place[group]} and in {split}, so that near-duplicates of training images "
                    "would be tested; give it one split, or say --group-column none"
                )


def _cut(split: SourceSplit, fraction: float, cut: Cut, num_classes: int) -> tuple[IntArray, IntArray]:
    """The rows to keep, and those to cut off."""
    if cut.method == "random":
        if split.groups is not None:
            raise ValueError(
                "--split-method random divides groups; say --split-method stratified, or --group-column none"
            )
        return validation_split(len(split.files), fraction, cut.seed)
    strata = split.positives
    if split.negatives is not None:
        pairs = zip(split.positives, split.negatives, strict=True)
        strata = [np.concatenate((yes, no + num_classes)) for yes, no in pairs]
    return stratified_split(strata, 2 * num_classes, fraction, cut.seed, split.groups)


def _hidden(split: SourceSplit, num_classes: int, hiding: Hiding) -> tuple[list[IntArray], list[IntArray]]:
    if hiding.kind == "none":
        return _observed(split, num_classes)
    if split.negatives is not None:
        raise ValueError(f"hide={hiding.kind}: the labels of this source are not complete, so none can be hidden")
    return hide(split.positives, num_classes, hiding)


def _observed(split: SourceSplit, num_classes: int) -> tuple[list[IntArray], list[IntArray]]:
    if split.negatives is not None:
        return split.positives, split.negatives
    every = np.arange(num_classes)
    return split.positives, [np.setdiff1d(every, positive, assume_unique=True) for positive in split.positives]


def _keys(files: Sequence[str], taken: Collection[str]) -> dict[str, str]:
    """A key for each file: its stem, or its whole path where two stems are the same.

    Where two paths differ only by signs that no key has, such as letters of other alphabets, a digest is added.
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
    verified = {
        name: _count(side, num_classes) for name, side in zip(("positives", "negatives"), observed, strict=True)
    }
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


def _count(lists: Sequence[IntArray], num_classes: int) -> NDArray[np.int64]:
    return np.bincount(np.concatenate([np.zeros(0, np.int64), *lists]), minlength=num_classes).astype(np.int64)
