"""Reads PASCAL VOC 2007 and 2012 from the devkit as it was released."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from raypaml.preparation.findings import Findings
from raypaml.preparation.formats.common import Source, SourceSplit, classes_of, text_lines
from raypaml.preparation.requests import SourceBox

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def read_voc(folder: Path) -> Source:
    """Reads `VOCdevkit/VOC2012` (its val is the test split), or VOC2007 (trainval and test).

    A class is positive in an image where `ImageSets/Main/CLASS_SPLIT.txt` says 1. Where it says 0, the image has only
    difficult objects of the class, and the class is negative, as published. Images without a positive are left out, as
    published. Both are counted. (Protocol of E. Cole et al., CVPR 2021.)

    Raises:
        ValueError: a file is missing or wrong; the message names file and line.
    """
    lists = _find(folder) / "ImageSets" / "Main"
    has_test = (lists / f"{CLASSES[0]}_test.txt").is_file()
    names = ("trainval", "test") if has_test else ("train", "val")
    splits = {split: _read_split(lists, name) for split, name in zip(("train", "test"), names, strict=True)}
    return Source(classes_of(CLASSES), splits, _find(folder) / "JPEGImages")


def _find(folder: Path) -> Path:
    """Returns the folder of the only devkit in or below a folder."""
    inner = [folder, *sorted(folder.glob("VOC20*")), *sorted(folder.glob("VOCdevkit/VOC20*"))]
    devkits = [path for path in inner if (path / "ImageSets" / "Main").is_dir()]
    if len(devkits) != 1:
        names = ", ".join(path.name for path in devkits)
        several = f"{len(devkits)} devkits ({names}); give one of them" if devkits else ""
        raise ValueError(f"{folder}: {several or 'no ImageSets/Main here; give VOCdevkit/VOC2012'}")
    return devkits[0]


def _read_split(lists: Path, name: str) -> SourceSplit:
    findings = Findings()
    states: dict[str, list[int]] = {}
    for column, class_id in enumerate(CLASSES):
        for image, state in _states(lists / f"{class_id}_{name}.txt"):
            row = states.setdefault(image, [0] * len(CLASSES))
            row[column] = 1 if state == 1 else 0
            findings.add("difficult only, taken for negative", state == 0, [f"{image} {class_id}"])
    images = sorted(image for image, row in states.items() if any(row))
    findings.add("images listed", len(states))
    without = sorted(set(states) - set(images))
    findings.add("images without a positive, left out", len(without), without)
    boxes = [_boxes(lists.parent.parent / "Annotations" / f"{image}.xml") for image in images]
    return SourceSplit(
        files=[f"{image}.jpg" for image in images],
        positives=[np.flatnonzero(states[image]) for image in images],
        boxes=boxes if any(boxes) else None,
        findings=findings,
    )


def _states(path: Path) -> list[tuple[str, int]]:
    """Reads the images of a list with the state of its class: 1 positive, 0 only difficult objects, -1 negative."""
    states = []
    for number, line in enumerate(text_lines(path), start=1):
        fields = line.split()
        if fields and (len(fields) != 2 or fields[1] not in ("1", "0", "-1")):
            raise ValueError(f"{path}:{number}: {line!r}; expected an image and 1, 0 or -1")
        states += [(fields[0], int(fields[1]))] if fields else []
    return states


def _boxes(path: Path) -> list[SourceBox]:
    """Returns the objects of an annotation, difficult ones too, in pixels that count from 0."""
    if not path.is_file():
        return []
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
        boxes = list[SourceBox]()
        for one in objects:
            if (name := one.findtext("name")) in CLASSES:
                x0, y0, x1, y1 = (
                    float(str(one.findtext(f"bndbox/{side}"))) for side in ("xmin", "ymin", "xmax", "ymax")
                )
                # VOC counts pixels from 1, and its corners are pixels within the box
                boxes.append({"class": CLASSES.index(str(name)), "x0": x0 - 1, "y0": y0 - 1, "x1": x1, "y1": y1})
        return boxes
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a VOC annotation ({error})") from None
