"""What people call the three splits, in the names of folders and in tables."""

from __future__ import annotations

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


def split_named(text: str) -> str | None:
    """The split that a name means, whatever its case and the blanks around it; None if it means none."""
    return SPLIT_NAMES.get(text.strip().lower())


def folder_names(split: str) -> Iterator[str]:
    """What a folder of this split may be called, its own name first: `validation`, `Validation`, `VALIDATION`, ..."""
    for name, meant in SPLIT_NAMES.items():
        if meant == split:
            yield from (name, name.capitalize(), name.upper())
