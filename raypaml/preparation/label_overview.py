"""Summarises the labels of a source before hours of work are spent on them, and refuses those that look misread."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from raypaml.labels import IntArray
from raypaml.preparation.findings import some_of
from raypaml.preparation.formats.common import Source
from raypaml.preparation.formats.label_cells import SEPARATORS
from raypaml.preparation.requests import SplitLabels

_SHOWN = 10
"""How many of the most, and of the least, frequent classes are named."""
CHECKS = {
    "rare-classes": "most classes are positive in one image only",
    "similar-names": "names of classes differ by case, blanks or invisible signs only",
    "separators": "names of classes hold separators, or are made of other names",
    "missing-values": "names of classes are words that programs write where there is no label",
}
"""The checks of class names by name, each with what it refuses; `--allow` switches a check off."""
FEW = 5
"""The check `rare-classes` is made where a source has more than so many classes."""
_MOST = 5
"""Images with this many labels or more are counted together."""
_MISSING = ("nan", "none", "null", "na", "n/a", "<na>", "nil")


def check_names(names: Sequence[str], images: IntArray, allowed: Sequence[str], *, from_text: Collection[str]) -> None:
    """Refuses names of classes that look as if a table was misread.

    Args:
        names: the names of the classes.
        images: [K] number of images in which each class is positive.
        allowed: names of the CHECKS that are left out.
        from_text: names that are in no class list and were not quoted, so that a character in them may be a separator.

    Raises:
        ValueError: names look wrong; the message lists them and says how to allow them.
    """
    unknown = [name for name in allowed if name not in CHECKS]
    if unknown:
        raise ValueError(f"--allow {unknown[0]}: no such check; there are {', '.join(CHECKS)}")
    single = [name for name, count in zip(names, images, strict=True) if count == 1]
    rare = single if len(names) > FEW and 2 * len(single) > len(names) else []
    suspects = {"rare-classes": rare, "similar-names": _similar(names), "separators": list(_joined(names, from_text))}
    suspects["missing-values"] = [name for name in names if name.casefold() in _MISSING and name in from_text]
    for check, wrong in suspects.items():
        if wrong and check not in allowed:
            such = some_of([repr(name) for name in wrong], 4)
            raise ValueError(
                f"{CHECKS[check]}: {len(wrong):,} of {len(names):,}, such as {such}. If the labels were misread, give "
                f"--separator TEXT, --labels-column NAME or --classes FILE; if they are right, --allow {check}"
            )


def _similar(names: Sequence[str]) -> list[str]:
    """Returns the names that differ from another one by case, blanks or invisible characters only."""
    alike = defaultdict[str, list[str]](list)
    for name in names:
        visible = "".join(sign for sign in name if unicodedata.category(sign) != "Cf")
        alike["".join(unicodedata.normalize("NFKC", visible).casefold().split())].append(name)
    return [name for same in alike.values() if len(same) > 1 for name in same]


def _joined(names: Sequence[str], from_text: Collection[str]) -> Iterator[str]:
    """Yields the names that contain a separator or are made of other names."""
    known = set(names)
    for name in names:
        signs = [sign for sign in set(name) if unicodedata.category(sign)[0] in "PZSC"]
        parts = ([part.strip() for part in name.split(sign)] for sign in signs)
        is_made_of_names = any(known.issuperset(filter(None, some)) for some in parts)
        is_cut_badly = any(sign in name for sign in SEPARATORS[0]) or (name[0] in "[{\"'" and name[-1] in "]}\"'")
        if is_made_of_names or (is_cut_badly and name in from_text):
            yield name


def positives_of(source: Source) -> IntArray:
    """Returns [K] the number of images, over all splits, in which each class is positive."""
    rows = [columns for split in source.splits.values() for columns in split.positives]
    return np.bincount(np.concatenate([np.zeros(0, np.int64), *rows]), minlength=len(source.classes.class_ids))


def overview(source: Source, labels: Mapping[str, SplitLabels]) -> Iterator[str]:
    """Yields lines about the classes, labels and splits of a source.

    Args:
        source: the source as it was read.
        labels: its three splits as they were cut.
    """
    images, names = positives_of(source), source.classes.names
    per_image = np.array([len(columns) for split in source.splits.values() for columns in split.positives])
    if source.about:
        yield f"read as: {source.about}"
    counts = enumerate(np.bincount(np.minimum(per_image, _MOST)))
    histogram = ", ".join(f"{count:,} with {number}{'+' * (number == _MOST)}" for number, count in counts if count)
    yield (
        f"{len(names):,} classes; {len(per_image):,} images with {per_image.mean():.2f} positive labels each "
        f"({histogram})"
    )
    findings, outside = next(iter(source.splits.values())).findings, "labels outside the classes"
    if findings.counts[outside]:
        yield f"{findings.counts[outside]:,} {outside}, left out: {', '.join(findings.examples[outside])}"
    order = np.argsort(-images, kind="stable")
    yield f"most frequent: {', '.join(f'{names[k]} {images[k]:,}' for k in order[:_SHOWN])}"
    if len(names) > _SHOWN:
        yield f"least frequent: {', '.join(f'{names[k]} {images[k]:,}' for k in order[::-1][:_SHOWN])}"
    sizes = {split: len(one.table) + sum(len(keys) for keys in one.others.values()) for split, one in labels.items()}
    yield f"splits: {', '.join(f'{split} {size:,}' for split, size in sizes.items())}"
