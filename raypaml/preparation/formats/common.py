"""What the reader of a format returns: the classes, and the files of each split with their labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raypaml.labels import VOCABULARY, IntArray, Vocabulary
from raypaml.preparation.findings import Findings
from raypaml.preparation.requests import Classes, Corners, SourceBox


@dataclass(frozen=True)
class SourceSplit:
    """The images of one split, in the order in which seeded draws treat them."""

    files: list[str]
    """Paths below the folder of images."""
    positives: list[IntArray]
    """Positive class columns of each image, ascending."""
    negatives: list[IntArray] | None = None
    """Negative class columns; None where labels are complete, so that every class that is not positive is negative."""
    boxes: list[list[SourceBox]] | None = None
    """Boxes of each image; None where the source has none."""
    groups: list[str] | None = None
    """The group of each image, such as near-duplicates, which no cut may divide; empty where an image has none."""
    findings: Findings = field(default_factory=Findings)

    def rows(self, rows: IntArray) -> SourceSplit:
        """Returns some of its images, in this order."""
        return replace(
            self,
            files=[self.files[row] for row in rows],
            positives=[self.positives[row] for row in rows],
            negatives=None if self.negatives is None else [self.negatives[row] for row in rows],
            boxes=None if self.boxes is None else [self.boxes[row] for row in rows],
            groups=None if self.groups is None else [self.groups[row] for row in rows],
        )


class Skipped(NamedTuple):
    """A file that is not read."""

    split: str
    """The split under which the ledger lists it."""
    file: str
    """Its path below the folder of images."""
    reason: str
    """Its fate in the ledger, such as `hidden`."""


@dataclass(frozen=True)
class Source:
    """A labelled set of images as its reader found it."""

    classes: Classes
    splits: dict[str, SourceSplit]
    """`train` and `test`, and `validation` where the source has one."""
    images: Path
    """The folder in which its images usually lie."""
    skipped: tuple[Skipped, ...] = ()
    """Files among the images that are not read."""
    has_splits: bool = False
    """Whether it names the split of every image, even where all are in one split; see `says_splits`."""
    is_export: bool = False
    """Whether the user's own data are in a format of a published data set."""
    about: str = ""
    """A phrase for the user that says how the labels were read, where a format leaves several ways."""
    names_from_text: frozenset[str] = frozenset()
    """Names of classes that were cut out of text and are in no class list: a character in them may be a separator."""

    @property
    def says_splits(self) -> bool:
        """Whether the splits are the source's own; otherwise all images are in `train`, from which splits are cut."""
        return self.has_splits or set(self.splits) != {"train"}


def text_lines(path: Path) -> list[str]:
    """Returns the lines of a text file; raises ValueError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; see --help for what this format needs") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None


def box_of(corners: Sequence[str | float], where: str) -> Corners:
    """Returns the sides of a box by their names.

    Args:
        corners: xmin, ymin, xmax, ymax as numbers or text.
        where: file and entry, for the message.

    Raises:
        ValueError: the corners are not finite numbers in this order.
    """
    try:
        x0, y0, x1, y1 = map(float, corners)
    except (TypeError, ValueError):
        x0 = y0 = x1 = y1 = math.nan
    if not (-math.inf < x0 <= x1 < math.inf and -math.inf < y0 <= y1 < math.inf):
        raise ValueError(
            f"{where}: a box has the corners {', '.join(map(repr, corners))}; expected numbers of pixels, from xmin "
            "to xmax and from ymin to ymax"
        )
    return {"x0": x0, "y0": y0, "x1": x1, "y1": y1}


def class_list(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns ids and names of the classes in a file with one class a line, or in a data set's vocabulary.csv.

    Raises:
        ValueError: the file cannot be read, holds no class, or holds a class twice.
    """
    lines = [line.strip() for line in text_lines(path) if line.strip()]
    if path.name == VOCABULARY or (lines and lines[0].startswith("class_id,")):
        before = Vocabulary.read(path)
        return before.class_ids, before.names
    if len(set(lines)) < max(len(lines), 1):
        twice = sorted({line for line in lines if lines.count(line) > 1})[:4]
        wrong = f"classes given twice: {', '.join(twice)}" if twice else "no class in it"
        raise ValueError(f"{path}: {wrong}; list each class once, one a line")
    return tuple(lines), tuple(lines)


def from_matrix(labels: NDArray[np.generic]) -> list[IntArray]:
    """Returns the positive columns of each row of a matrix in {0, 1}."""
    rows, columns = np.nonzero(labels)
    return np.split(columns.astype(np.int64), np.cumsum(np.bincount(rows, minlength=len(labels)))[:-1])


def classes_of(class_ids: Sequence[str], names: Sequence[str] | None = None) -> Classes:
    """Returns classes with these names, or with their ids as names."""
    return Classes(tuple(class_ids), tuple(names or class_ids))
