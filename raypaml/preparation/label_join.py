"""Joins label rows, in any order and with duplicates and conflicts, to one sparse record per image, in bounded memory.

A row is one integer of eight bytes: image (32 bits), class (24), source (7) and value (1). Sorting these integers
is the join; runs of equal (image, class) are duplicates or conflicts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypaml.labels import IntArray
from raypaml.preparation.findings import EXAMPLES, Findings

ConflictRule = Literal["source", "negative", "positive", "drop"]
"""What becomes of an (image, class) that was verified as positive and as negative. source: the better source decides,
and where that contradicts itself the label is dropped. negative, positive: this value wins. drop: it is dropped."""

MAX_CLASSES = 1 << 24
_IMAGE, _CLASS, _SOURCE = 32, 8, 1

Packed = NDArray[np.uint64]


@dataclass(frozen=True)
class Labels:
    """One label per (image, class), sorted by both."""

    image: NDArray[np.int64]
    """Position of the image in the list of images that the rows were packed with."""
    class_index: NDArray[np.int32]
    positive: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.image)


def pack(image: IntArray, class_index: IntArray, source: IntArray, positive: NDArray[np.bool_]) -> Packed:
    """Packs rows into integers that sort by image, class, source (0 is the best) and value."""
    packed = image.astype(np.uint64) << np.uint64(_IMAGE)
    packed |= class_index.astype(np.uint64) << np.uint64(_CLASS)
    packed |= source.astype(np.uint64) << np.uint64(_SOURCE)
    packed |= positive.astype(np.uint64)
    return packed


def join_labels(
    packed: Packed, rule: ConflictRule, findings: Findings, name: Callable[[int, int], str] = "{}:{}".format
) -> Labels:
    """Returns one label per (image, class) from packed rows, which it sorts in place.

    Args:
        packed: rows from `pack`; they are sorted.
        rule: what becomes of an (image, class) with both values.
        findings: takes the counts of duplicates and conflicts.
        name: how examples name an (image, class).
    """
    if rule not in get_args(ConflictRule):
        raise ValueError(f"conflicts={rule!r}: must be one of {', '.join(get_args(ConflictRule))}")
    packed.sort()
    first = np.r_[True, (packed[1:] ^ packed[:-1]) >= np.uint64(1 << _CLASS)][: len(packed)]
    start, lengths = _repeated(first)
    positive = (packed.astype(np.uint8) & 1).astype(bool)
    positive[start], kept, both = _judge(packed, start, lengths, rule)
    findings.add("duplicate labels", lengths.sum() - len(start) - both.sum())
    cells = packed[start[both]] >> np.uint64(_CLASS)
    named = [name(int(c >> np.uint64(24)), int(c & np.uint64(MAX_CLASSES - 1))) for c in cells[:EXAMPLES]]
    findings.add("conflicting labels", both.sum(), named)
    findings.add("conflicting labels dropped", (~kept).sum())
    first[start[~kept]] = False
    cell = packed[first]  # 20.9 million labels take 167 MB, and so would each further copy
    cell >>= np.uint64(_CLASS)
    return Labels(
        image=(cell >> np.uint64(_IMAGE - _CLASS)).view(np.int64),
        class_index=(cell.astype(np.uint32) & np.uint32(MAX_CLASSES - 1)).view(np.int32),
        positive=positive[first],
    )


def _repeated(first: NDArray[np.bool_]) -> tuple[IntArray, IntArray]:
    """Returns where the runs of several rows start, and how many rows each has.

    Args:
        first: whether each row is the first of its run.
    """
    more = np.flatnonzero(~first)
    start = more[first[more - 1]] - 1
    return start, 1 + np.bincount(np.searchsorted(start, more) - 1, minlength=len(start))


def _judge(
    packed: Packed, first: IntArray, lengths: IntArray, rule: ConflictRule
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns the value of each (image, class) with several rows, whether it is kept, and whether both values occur."""
    if not len(first):
        none = np.zeros(0, bool)
        return none, none, none
    group = np.repeat(np.arange(len(first)), lengths)
    starts = np.cumsum(lengths) - lengths
    rows = packed[np.repeat(first - starts, lengths) + np.arange(len(group))]
    value = (rows & np.uint64(1)).astype(bool)
    source = (rows >> np.uint64(_SOURCE)) & np.uint64(127)
    best = source == source[starts][group]  # rows are sorted, so a group begins with its best source
    any_positive, any_negative = (np.logical_or.reduceat(side, starts) for side in (value, ~value))
    best_positive, best_negative = (np.logical_or.reduceat(side & best, starts) for side in (value, ~value))
    both = any_positive & any_negative
    if rule == "source":
        return best_positive, ~(best_positive & best_negative), both
    kept = ~both if rule == "drop" else np.ones(len(first), bool)
    return (any_positive & ~both if rule == "negative" else any_positive), kept, both


def without(added: Labels, known: Labels) -> Labels:
    """Returns the labels of `added` whose (image, class) has no label in `known`."""
    keys, taken = (label.image * MAX_CLASSES + label.class_index for label in (added, known))
    place = np.minimum(np.searchsorted(taken, keys), max(len(taken) - 1, 0))
    new = taken[place] != keys if len(taken) else np.ones(len(keys), bool)
    return Labels(added.image[new], added.class_index[new], added.positive[new])


def merged(one: Labels, other: Labels) -> Labels:
    """Merges two disjoint sets of labels, sorted."""
    image = np.concatenate([one.image, other.image])
    class_index = np.concatenate([one.class_index, other.class_index])
    order = np.argsort(image * MAX_CLASSES + class_index, kind="stable")
    return Labels(image[order], class_index[order], np.concatenate([one.positive, other.positive])[order])


def records(labels: Labels, keys: Callable[[IntArray], pa.Array]) -> pa.Table:
    """Returns a row for each labelled image, in the order of the images: key, positive columns and negative columns.

    Args:
        labels: the labels of one split.
        keys: returns the keys of images from their positions.
    """
    images, counts = np.unique(labels.image, return_counts=True)
    of = np.repeat(np.arange(len(images)), counts)
    lists = []
    for wanted in (labels.positive, ~labels.positive):
        offsets = np.r_[0, np.cumsum(np.bincount(of[wanted], minlength=len(images)))].astype(np.int32)
        lists.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(labels.class_index[wanted])))
    return pa.table({"key": keys(images), "positives": lists[0], "negatives": lists[1]})
