"""The names that people give to the three splits, in folders and in tables."""

from __future__ import annotations

import re
from collections.abc import Iterator

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""The split that each name means; upper and lower case do not matter."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+|\d+")
"""Finds the words in a name such as `TrainSet`, `train_images`, `train2017` or `Training Set`."""
_ENDS = re.compile(r"(set|data|images|imgs?)$")
"""Endings that are written directly behind the name of a split, as in `trainset` and `testdata`."""
_PLAIN = (
    *("set", "sets", "data", "dataset", "image", "images", "img", "imgs", "jpg", "jpeg", "png", "photo", "photos"),
    *("picture", "pictures", "split"),
)
"""Words beside the name of a split that do not change its meaning."""


def split_named(text: str) -> str | None:
    """Returns the split that a name means, whatever its case and the blanks around it; None if it means none."""
    return SPLIT_NAMES.get(text.strip().lower())


def folder_names(split: str) -> Iterator[str]:
    """Yields the names that a folder of this split may have: `validation`, `Validation`, `VALIDATION`, `valid`, ..."""
    for name, meant in SPLIT_NAMES.items():
        if meant == split:
            yield from (name, name.capitalize(), name.upper())


def splits_in(name: str) -> set[str]:
    """Returns the splits whose names are words in a folder's name: train2017, seg_train, Training Set, trainset."""
    words = (_ENDS.sub("", word.lower()) for word in _WORD.findall(name))
    return {split for word in words if (split := "train" if word == "trainval" else split_named(word))}


def split_within(name: str) -> str | None:
    """Returns the only split in `splits_in`; None where there is none, or more than one."""
    splits = splits_in(name)
    return min(splits) if len(splits) == 1 else None


def says_only_split(name: str) -> bool:
    """Says whether a folder's name means a split and nothing else: train2017, Test Set, but not test tube."""
    words = [word.lower() for word in _WORD.findall(name)]
    others = [word for word in words if not word.isdecimal() and word not in _PLAIN]
    return len(others) == 1 and split_within(name) is not None
