"""Reads images in folders named by class: the class and split of each image, and why other files are not read.

CLASS/IMAGE and SPLIT/CLASS/IMAGE are recognised by the folders' names (`folder_layouts.py`), other layouts are named by
`--layout`. Below the folder of a class an image may lie at any depth.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from raypaml.data.image_files import IMAGE_SUFFIXES
from raypaml.data.shards import SPLITS
from raypaml.preparation.file_tree import files_below
from raypaml.preparation.findings import Findings
from raypaml.preparation.formats.common import Skipped, Source, SourceSplit, classes_of
from raypaml.preparation.formats.folder_layouts import LAYOUTS, Layout, layout_of, levels, split_of


def read_folder(folder: Path, layout: Layout = "") -> Source:
    """Reads images in folders named by class; each has one positive label, and the labels are complete.

    Every file that is not read is in `skipped` of the result, with its reason.

    Raises:
        ValueError: no image lies in a folder of a class, or the folder can be read in two ways.
    """
    reasons, again = files_below(folder, IMAGE_SUFFIXES)
    images = sorted((file for file, reason in reasons.items() if not reason), key=lambda file: file.split("/"))
    named = layout or layout_of(folder, images)
    places = {file: place for file in images if all(place := levels(file, named))}
    _check_links(folder, again, named)
    if not places:
        expected = LAYOUTS[layout] if layout else "CLASS/IMAGE or SPLIT/CLASS/IMAGE"
        raise ValueError(f"{folder}: no images in folders named by class; expected {expected}")
    reasons |= dict.fromkeys(set(images) - set(places), "no_class_folder")
    names = sorted({name for _, name in places.values()})
    column = {name: k for k, name in enumerate(names)}
    splits = {}
    for split in SPLITS:
        files = [file for file, (of, _) in places.items() if of == split]
        if files:
            positives = [np.array([column[places[file][1]]]) for file in files]
            splits[split] = SourceSplit(files, positives, findings=Findings(Counter({"images listed": len(files)})))
    skipped = [
        Skipped(split_of(file, named), os.fsencode(file).decode(errors="backslashreplace"), reason)
        for file, reason in sorted(reasons.items())
        if reason
    ]
    return Source(classes_of(names), splits, folder, tuple(skipped), has_splits="split" in named.split("/"))


def _check_links(folder: Path, again: Mapping[str, str], layout: str) -> None:
    """Refuses a file or folder that links put under two classes or splits: neither label would be right."""
    for name, before in again.items():
        if any(a and b and a != b for a, b in zip(levels(name, layout), levels(before, layout), strict=True)):
            raise ValueError(
                f"{folder}: {before} and {name} are the same by a link, under two classes or splits; remove the link, "
                "or give the labels as a table"
            )
