"""Reads CUB-200-2011, whose 312 binary attributes are the classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raypaml.preparation.findings import Findings
from raypaml.preparation.formats.common import Source, SourceSplit, classes_of, text_lines


def read_cub(folder: Path) -> Source:
    """Reads `CUB_200_2011/` (images.txt, train_test_split.txt, attributes/) and `attributes.txt` in it or beside it.

    An attribute is positive where `is_present` is 1, whatever the certainty. An attribute without a row for an image is
    negative and counted. The split is the official one; images without an attribute are kept, as published.
    (Protocol of E. Cole et al., CVPR 2021.)

    Raises:
        ValueError: a file is missing or wrong; the message names file and line.
    """
    root = next((path for path in (folder, folder / "CUB_200_2011") if (path / "images.txt").is_file()), None)
    if root is None:
        raise ValueError(f"{folder}: no images.txt here nor in CUB_200_2011; give the folder of the archive")
    attributes = next((p for p in (root / "attributes", root, root.parent) if (p / "attributes.txt").is_file()), root)
    names = dict(_pairs(attributes / "attributes.txt"))
    files, is_train = dict(_pairs(root / "images.txt")), dict(_pairs(root / "train_test_split.txt"))
    column = {attribute: k for k, attribute in enumerate(names)}
    row = {image: n for n, image in enumerate(files)}
    labels = np.full((len(files), len(names)), -1, np.int8)
    path = root / "attributes" / "image_attribute_labels.txt"
    for number, line in enumerate(text_lines(path), start=1):
        fields = line.split()
        if fields:
            if len(fields) < 3 or fields[0] not in row or fields[1] not in column or fields[2] not in "01":
                raise ValueError(f"{path}:{number}: {line!r}; expected image, attribute and 0 or 1")
            labels[row[fields[0]], column[fields[1]]] = int(fields[2])
    splits = {}
    for split, state in (("train", "1"), ("test", "0")):
        rows = [n for image, n in row.items() if is_train.get(image) == state]
        findings = Findings()
        findings.add("images listed", len(rows))
        findings.add("attributes without a row, taken for negative", int((labels[rows] < 0).sum()))
        positives = [np.flatnonzero(row == 1) for row in labels[rows]]
        splits[split] = SourceSplit([list(files.values())[n] for n in rows], positives, findings=findings)
    return Source(classes_of(tuple(names.values())), splits, root / "images")


def _pairs(path: Path) -> list[tuple[str, str]]:
    rows = [line.split(maxsplit=1) for line in text_lines(path) if line.strip()]
    wrong = next((number for number, fields in enumerate(rows, start=1) if len(fields) != 2), 0)
    if wrong:
        raise ValueError(f"{path}:{wrong}: {' '.join(rows[wrong - 1])!r}; expected a number and a value")
    return [(number, value.strip()) for number, value in rows]
