"""The values of a label, the vocabulary of classes, and the five class groups."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raypaml.bounded import read_rows
from raypaml.cli import command, did_you_mean
from raypaml.files import whole
from raypaml.spreadsheets import as_cell, from_cell

POSITIVE = 1
NEGATIVE = 0
UNOBSERVED = -1

NUM_GROUPS = 5
GROUP_NAMES = tuple(f"G{group}" for group in range(1, NUM_GROUPS + 1))

VOCABULARY = "vocabulary.csv"
"""The file with the classes, in a data set and beside predictions."""
_COLUMNS = ["class_id", "name", "train_positives", "train_negatives", "class_group"]

_MOST = 2**53
"""The most labels that a class may have: more than there are, and exact in a float64."""

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
RealArray = NDArray[np.floating]


def each_once(numbers: IntArray) -> IntArray:
    """Returns the numbers in ascending order, each once.

    `numpy.unique` and `numpy.union1d` hash integers from NumPy 2.3 on: a second for a million, where sorting takes
    seven milliseconds, and longer still for each of more.
    """
    numbers = np.sort(numbers)
    once: IntArray = numbers[np.r_[True, numbers[1:] != numbers[:-1]][: len(numbers)]]
    return once


def class_groups(annotations: IntArray) -> IntArray:
    """Divide the classes into five groups of equal size by their number of training annotations.

    Args:
        annotations: [K] number of observed training labels of each class, positives plus negatives.

    Returns:
        [K] group of each class, 1 (rarest) to 5 (most frequent). Ties go by the order of the vocabulary. If K is not
        divisible by five, the sizes differ by at most one. (BoostLU, CVPR 2023, OpenImages V3 protocol.)
    """
    num_classes = len(annotations)
    order = np.argsort(annotations, kind="stable")
    groups = np.empty(num_classes, np.int64)
    groups[order] = np.arange(num_classes) * NUM_GROUPS // max(num_classes, 1) + 1
    return groups


def class_words(text: str) -> list[str]:
    """The words of `--classes`, which commas separate; a word with a comma stands in double quotes, as in CSV.

    Raises:
        ValueError: the quotes do not fit.
    """
    try:
        return next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        remedy = 'give a name that holds a comma as "NAME", or its id'
        raise ValueError(f"classes={text!r}: the list cannot be read: {error}; {remedy}") from None


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """The ordered classes of a data set; column k of every label matrix is `class_ids[k]`."""

    class_ids: tuple[str, ...]
    names: tuple[str, ...]
    train_positives: IntArray
    """[K] number of observed positive training labels."""
    train_negatives: IntArray
    """[K] number of observed negative training labels."""

    def __post_init__(self) -> None:
        if not self.class_ids:
            raise ValueError("vocabulary: no classes; give at least one class id")
        lengths = [len(column) for column in (self.class_ids, self.names, self.train_positives, self.train_negatives)]
        if len(set(lengths)) > 1:
            raise ValueError(f"vocabulary: columns of different lengths {lengths}; give every class all of them")
        if any("\n" in class_id for class_id in self.class_ids) or "\r" in "".join((*self.class_ids, *self.names)):
            raise ValueError("vocabulary: a class id or name holds a line break; replace it by a space")
        if len(set(self.class_ids)) != len(self.class_ids):
            twice = sorted({c for c in self.class_ids if self.class_ids.count(c) > 1})
            raise ValueError(f"vocabulary: class ids given twice: {twice[:5]}; keep one row each")

    def __len__(self) -> int:
        return len(self.class_ids)

    @cached_property
    def class_group(self) -> IntArray:
        """[K] class group, 1 (rarest) to 5 (most frequent), by training annotations."""
        return class_groups(self.train_positives + self.train_negatives)

    @cached_property
    def index_of(self) -> dict[str, int]:
        """The column of each class id."""
        return {class_id: k for k, class_id in enumerate(self.class_ids)}

    def columns_of(self, words: Iterable[str]) -> IntArray:
        """The columns, in ascending order and each once, of classes that are named by these words.

        Args:
            words: ids, names, which stand for all classes that have them, or G1 to G5 for the classes of a group; an id
                goes before a name, and both before a group.

        Raises:
            ValueError: there is no such class, or the group has none.
        """
        return each_once(np.concatenate([np.zeros(0, np.int64), *map(self._named, words)]))

    def _named(self, word: str) -> IntArray:
        """The columns of one word; ValueError where there is none."""
        if word in self.index_of:
            return np.array([self.index_of[word]])
        columns = np.array([k for k, name in enumerate(self.names) if name == word], np.int64)
        if not len(columns) and word in GROUP_NAMES:
            columns = np.flatnonzero(self.class_group == GROUP_NAMES.index(word) + 1)
        if not len(columns):
            hint = did_you_mean(word, [*self.names, *self.class_ids])
            remedy = hint or f"; give names or ids of {VOCABULARY}, or {GROUP_NAMES[0]} to {GROUP_NAMES[-1]}"
            raise ValueError(f"classes={word!r}: no such class{remedy}")
        return columns

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the ordered class ids; label matrices have the same columns only if their digests are equal."""
        return self.digest_of(self.class_ids)

    @cached_property
    def content_digest(self) -> str:
        """SHA-256 of class ids, names and counts: of everything that a person reads or that decides class groups.

        Two vocabularies with the same `digest` have the same columns, though their names and counts may differ.
        """
        counts = (column.tolist() for column in (self.train_positives, self.train_negatives))
        return hashlib.sha256(json.dumps([self.class_ids, self.names, *counts]).encode()).hexdigest()

    @staticmethod
    def digest_of(class_ids: Sequence[str]) -> str:
        """The digest of a vocabulary of these ordered class ids."""
        return hashlib.sha256("\n".join(class_ids).encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Write `vocabulary.csv`, whole or not at all."""
        texts = (map(as_cell, column) for column in (self.class_ids, self.names))
        rows = zip(*texts, self.train_positives, self.train_negatives, self.class_group, strict=True)
        with whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_COLUMNS)
            writer.writerows(rows)

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Read `vocabulary.csv`. Class groups are recomputed from the counts.

        Raises:
            ValueError: it is missing, not such a table, or a count is impossible; the message names file and line.
        """
        if not path.is_file():
            raise ValueError(f"{path}: no such vocabulary; write it with {command('shard index')} DIR")
        rows = [_row(path, line, row) for line, row in read_rows(path, _COLUMNS[:4])]
        ids, names, positives, negatives = zip(*rows, strict=True) if rows else ((), (), (), ())
        return cls(
            class_ids=ids,
            names=names,
            train_positives=np.array(positives, np.int64),
            train_negatives=np.array(negatives, np.int64),
        )


def _row(path: Path, line: int, row: dict[str, str]) -> tuple[str, str, int, int]:
    try:
        ids = from_cell(row["class_id"]), from_cell(row["name"])
        counts = int(row["train_positives"]), int(row["train_negatives"])
    except ValueError as error:
        raise ValueError(f"{path}:{line}: {error}; expected {','.join(_COLUMNS)}") from None
    if not all(0 <= count <= _MOST for count in counts):
        raise ValueError(f"{path}:{line}: counts {counts[0]} and {counts[1]} of training labels, expected 0..{_MOST}")
    return *ids, *counts
