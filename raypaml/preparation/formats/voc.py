"""PASCAL VOC 2007 and 2012, from the devkit as it was released."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from raypaml.preparation.findings import Findings
from raypaml.preparation.formats.common import Source, SourceBox, SourceSplit, classes_of, text_lines

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def read_voc(folder: Path) -> Source:
    """Read `VOCdevkit/VOC2012` (train; its val is the test split), or VOC2007 (trainval and test).

    A class is positive in an image where `ImageSets/Main/CLASS_SPLIT.txt` says 1. Where it says 0, only difficult
    objects are there: negative, as published. Images without a positive are left out, as published; both are counted.
    (Protocol of E. Cole et al., CVPR 2021.)

    Raises:
        ValueError: naming file and line.
    """
    lists = _find(folder) / "ImageSets" / "Main"
    has_test = (lists / f"{CLASSES[0]}_test.txt").is_file()
    names = ("trainval", "test") if has_test else ("train", "val")
    splits = {split: _read_split(lists, name) for split, name in zip(("train", "test"), names, strict=True)}
    return Source(classes_of(CLASSES), splits, _find(folder) / "JPEGImages")


def _find(folder: Path) -> Path:
    inner = [folder, *sorted(folder.glob("VOC20*")), *sorted(folder.glob("VOCdevkit/VOC20*"))]
    found = [path for path in inner if (path / "ImageSets" / "Main").is_dir()]
    if len(found) != 1:
        several = f"{len(found)} devkits ({', '.join(path.name for path in found)}); give one of them" if found else ""
        raise ValueError(f"{folder}: {several or 'no ImageSets/Main here; give VOCdevkit/VOC2012'}")
    return found[0]


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
    found = []
    for number, line in enumerate(text_lines(path), start=1):
        fields = line.split()
        if fields and (len(fields) != 2 or fields[1] not in ("1", "0", "-1")):
            raise ValueError(f"{path}:{number}: {line!r}; expected an image and 1, 0 or -1")
        found += [(fields[0], int(fields[1]))] if fields else []
    return found


def _boxes(path: Path) -> list[SourceBox]:
    """The objects of an annotation, difficult ones too, in pixels from 0."""
    if not path.is_file():
        return []
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
        return [_box(found) for found in objects if found.findtext("name") in CLASSES]
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a VOC annotation ({error})") from None


def _box(found: ElementTree.Element) -> SourceBox:
    corners = found.find("bndbox")
    assert corners is not None
    x0, y0, x1, y1 = (float(str(corners.findtext(side))) for side in ("xmin", "ymin", "xmax", "ymax"))
    # corner pixels count from 1 and are part of the box
    return {"class": CLASSES.index(str(found.findtext("name"))), "x0": x0 - 1, "y0": y0 - 1, "x1": x1, "y1": y1}
