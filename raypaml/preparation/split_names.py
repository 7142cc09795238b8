"""What people call the three splits, in the names of folders and in tables."""

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
"""The split that each name means, in any case."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+|\d+")
"""A word in a name: of `TrainSet`, `train_images`, `train2017`, `Training Set`."""
_ENDS = re.compile(r"(set|data|images|imgs?)$")
"""What is written onto the name of a split without a sign between: `trainset`, `testdata`."""
_PLAIN = (
    *("set", "sets", "data", "dataset", "image", "images", "img", "imgs", "jpg", "jpeg", "png", "photo", "photos"),
    *("picture", "pictures", "split"),
)
"""Words beside the name of a split that change nothing of what it means."""


def split_named(text: str) -> str | None:
    """The split that a name means, whatever its case and the blanks around it; None if it means none."""
    return SPLIT_NAMES.get(text.strip().lower())


def folder_names(split: str) -> Iterator[str]:
    """What a folder of this split may be called, its own name first: `validation`, `Validation`, `VALIDATION`, ..."""
    for name, meant in SPLIT_NAMES.items():
        if meant == split:
            yield from (name, name.capitalize(), name.upper())


def splits_in(name: str) -> set[str]:
    """The splits whose names are words in the name of a folder: of train2017, seg_train, Training Set, trainset."""
    words = (_ENDS.sub("", word.lower()) for word in _WORD.findall(name))
    return {split for word in words if (split := "train" if word == "trainval" else split_named(word))}


def split_within(name: str) -> str | None:
    """The one split in `splits_in`; None where there is none, or more than one."""
    found = splits_in(name)
    return min(found) if len(found) == 1 else None


def says_only_split(name: str) -> bool:
    """Whether a folder's name is that of a split and nothing else: train2017, Test Set, but not test tube."""
    words = [word.lower() for word in _WORD.findall(name)]
    others = [word for word in words if not word.isdecimal() and word not in _PLAIN]
    return len(others) == 1 and split_within(name) is not None
