"""Pictures that a data set holds more than once, told by CRC-32 and size of their files, which every index has.

Placeholders of lost photographs are one picture many times; a picture in train and test lets a model be tested on what
it was trained on. Pictures that are alike but not the same to the byte are not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raypaml.data.index import Index, open_index

MANY = 10
"""Times from which a picture is likely to be a placeholder."""
_NAMED = 3
"""Examples in a line."""


@dataclass(frozen=True)
class Repeats:
    """Pictures of one split that occur in it more than once."""

    pictures: int
    images: int
    """Samples that show one of them."""
    most: list[tuple[str, int]]
    """The key of one sample, and how often its picture occurs, of those that occur MANY times or more."""
    others: list[tuple[str, int]]
    """The same of some that occur less often."""


@dataclass(frozen=True)
class Shared:
    """Pictures that are in two splits."""

    first: str
    second: str
    images: int
    """Samples of the second split whose picture is in the first one too."""
    pairs: list[tuple[str, str]]
    """Keys of some of them: of the first split, and of the second."""


def marks(index: Index) -> NDArray[np.uint64]:
    """[N] what tells the picture of each sample: the CRC-32 and the size in bytes of its file.

    Two different pictures agree in both about once in 10^14 pairs, if sizes are spread over 20,000 bytes: among the
    3.66 million images of Open Images V3, once in ten such data sets.
    """
    found: NDArray[np.uint64] = index.crc32.astype(np.uint64) << np.uint64(32) | index.size.astype(np.uint64)
    return found


def repeats(index: Index) -> Repeats:
    """The pictures that occur more than once in a split."""
    _, first, counts = np.unique(marks(index), return_index=True, return_counts=True)
    again = np.flatnonzero(counts > 1)
    again = again[np.lexsort((first[again], -counts[again]))]
    many = int((counts >= MANY).sum())
    chosen = again[: many + _NAMED]
    named = list(zip(index.keys(first[chosen]), counts[chosen].tolist(), strict=True))
    return Repeats(len(again), int(counts[again].sum()), named[:many], named[many:])


def shared(indexes: Mapping[str, Index]) -> list[Shared]:
    """The pictures that each two splits have in common, but for those that have none."""
    names = list(indexes)
    pairs = [(a, b) for number, a in enumerate(names) for b in names[number + 1 :]]
    return [found for a, b in pairs if (found := _shared(a, indexes[a], b, indexes[b])).images]


def _shared(first: str, a: Index, second: str, b: Index) -> Shared:
    mine, theirs = marks(a), marks(b)
    known, place = np.unique(mine, return_index=True)
    rows = np.flatnonzero(np.isin(theirs, known))
    some = rows[:_NAMED]
    keys = a.keys(place[np.searchsorted(known, theirs[some])])
    return Shared(first, second, len(rows), list(zip(keys, b.keys(some), strict=True)))


def said_of_same_pictures(indexes: Mapping[str, Index]) -> Iterator[str]:
    """A line for each split with pictures that occur more than once, and for each two splits that share some."""
    for name, index in indexes.items():
        found = repeats(index)
        if found.pictures:
            what = _named("; perhaps placeholders of lost photographs", found.most, len(found.most))
            what += _named("; such as" if not what else "; also", found.others, found.pictures - len(found.most))
            yield f"{name}: {found.images:,} images show only {found.pictures:,} pictures{what}"
    for both in shared(indexes):
        share = 100 * both.images / len(indexes[both.second])
        named = ", ".join(f"{theirs} = {mine}" for mine, theirs in both.pairs)
        more = ", ..." if both.images > len(both.pairs) else ""
        yield (
            f"{both.first} and {both.second}: {both.images:,} images of {both.second} ({share:.1f} %) show a picture "
            f"that is in {both.first} too: {named}{more}"
        )


def _named(what: str, pictures: Sequence[tuple[str, int]], of: int) -> str:
    """Some pictures by the key of one sample each, and how many more there are; empty if there is none."""
    if not pictures:
        return ""
    named = ", ".join(f"that of {key} {count:,} times" for key, count in pictures[:_NAMED])
    more = f" and {of - _NAMED:,} more" if of > _NAMED else ""
    return f"{what}: {named}{more}"


def indexes_in(folder: Path, splits: Sequence[str]) -> dict[str, Index]:
    """The indexes of those splits that are there."""
    paths = {split: folder / f"{split}.arrow" for split in splits}
    return {split: open_index(path) for split, path in paths.items() if path.is_file()}
