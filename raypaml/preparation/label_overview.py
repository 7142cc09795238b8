"""What the labels of a source look like, for its owner to see before hours of work, and what looks wrong in them."""

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
"""Most and least frequent classes that are named."""
CHECKS = {
    "rare-classes": "most classes are positive in one image only",
    "similar-names": "names of classes differ by case, blanks or invisible signs only",
    "separators": "names of classes hold separators, or are made of other names",
    "missing-values": "names of classes are words that programs write where there is no label",
}
"""What is refused unless `--allow` names it."""
FEW = 5
"""Classes that a source must have more of before the first check is made."""
_MOST = 5
"""Labels of an image from which on images are counted together."""
_MISSING = ("nan", "none", "null", "na", "n/a", "<na>", "nil")


def check_names(names: Sequence[str], images: IntArray, allowed: Sequence[str], *, from_text: Collection[str]) -> None:
    """Refuse names of classes that look as if a table was misread.

    Args:
        names: of the classes.
        images: [K] in how many images each is positive.
        allowed: names of CHECKS that are not made.
        from_text: those that no class list holds and that did not come quoted, so that a sign in them may be none of
            their own.

    Raises:
        ValueError: naming the classes, and how to insist.
    """
    unknown = [name for name in allowed if name not in CHECKS]
    if unknown:
        raise ValueError(f"--allow {unknown[0]}: no such check; there are {', '.join(CHECKS)}")
    single = [name for name, count in zip(names, images, strict=True) if count == 1]
    rare = single if len(names) > FEW and 2 * len(single) > len(names) else []
    found = {"rare-classes": rare, "similar-names": _similar(names), "separators": list(_joined(names, from_text))}
    found["missing-values"] = [name for name in names if name.casefold() in _MISSING and name in from_text]
    for check, wrong in found.items():
        if wrong and check not in allowed:
            such = some_of([repr(name) for name in wrong], 4)
            raise ValueError(
                f"{CHECKS[check]}: {len(wrong):,} of {len(names):,}, such as {such}. If the labels were misread, say "
                f"--separator TEXT, --labels-column NAME or --classes FILE; if they are right, --allow {check}"
            )


def _similar(names: Sequence[str]) -> list[str]:
    alike = defaultdict[str, list[str]](list)
    for name in names:
        visible = "".join(sign for sign in name if unicodedata.category(sign) != "Cf")
        alike["".join(unicodedata.normalize("NFKC", visible).casefold().split())].append(name)
    return [name for same in alike.values() if len(same) > 1 for name in same]


def _joined(names: Sequence[str], from_text: Collection[str]) -> Iterator[str]:
    known = set(names)
    for name in names:
        signs = [sign for sign in set(name) if unicodedata.category(sign)[0] in "PZSC"]
        parts = ([part.strip() for part in name.split(sign)] for sign in signs)
        is_made_of_names = any(known.issuperset(filter(None, some)) for some in parts)
        is_cut_badly = any(sign in name for sign in SEPARATORS[0]) or (name[0] in "[{\"'" and name[-1] in "]}\"'")
        if is_made_of_names or (is_cut_badly and name in from_text):
            yield name


def positives_of(source: Source) -> IntArray:
    """[K] in how many images of all splits each class is positive."""
    rows = [columns for split in source.splits.values() for columns in split.positives]
    return np.bincount(np.concatenate([np.zeros(0, np.int64), *rows]), minlength=len(source.classes.class_ids))


def overview(source: Source, labels: Mapping[str, SplitLabels]) -> Iterator[str]:
    """Lines about classes, labels and splits of a source.

    Args:
        source: as it was read.
        labels: its three splits as they were made.
    """
    images, names = positives_of(source), source.classes.names
    per_image = np.array([len(columns) for split in source.splits.values() for columns in split.positives])
    if source.about:
        yield f"read as: {source.about}"
    yield (
        f"{len(names):,} classes; {len(per_image):,} images with {per_image.mean():.2f} positive labels each "
        f"({_histogram(per_image)})"
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


def _histogram(per_image: IntArray) -> str:
    """How many images have 0, 1, ... labels; from _MOST on together."""
    counts = np.bincount(np.minimum(per_image, _MOST))
    parts = [f"{count:,} with {number}{'+' * (number == _MOST)}" for number, count in enumerate(counts) if count]
    return ", ".join(parts)
