"""MS COCO, from the instances JSON of a year."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from raypaml.preparation.findings import Findings
from raypaml.preparation.formats.common import Source, SourceBox, SourceSplit, classes_of


def read_coco(folder: Path) -> Source:
    """Read `annotations/instances_{train,val}YEAR.json`; val is the test split.

    A class is positive where any annotation names it, crowds too. Images without an annotation are left out and
    counted. Images go in the order of their ids as text, as published. (Protocol of E. Cole et al., CVPR 2021.)

    Raises:
        ValueError: naming the file and what is missing in it.
    """
    contents = {split: _load(folder, name) for split, name in (("train", "train"), ("test", "val"))}
    names = {split: [c["name"] for c in content["categories"]] for split, (_, content) in contents.items()}
    if names["train"] != names["test"]:
        raise ValueError(f"{folder}: train and val have other categories; two formats mixed?")
    column = {category["id"]: k for k, category in enumerate(contents["train"][1]["categories"])}
    splits = {split: _read_split(path, content, column) for split, (path, content) in contents.items()}
    return Source(classes_of(names["train"]), splits, folder)


def _load(folder: Path, name: str) -> tuple[Path, dict[str, Any]]:
    found = sorted((folder / "annotations").glob(f"instances_{name}*.json"))
    if len(found) != 1:
        raise ValueError(f"{folder}: {len(found)} files annotations/instances_{name}*.json; keep the one of your year")
    try:
        content = json.loads(found[0].read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{found[0]}: not JSON ({error})") from None
    missing = [part for part in ("images", "annotations", "categories") if part not in content]
    if missing:
        raise ValueError(f"{found[0]}: no {', '.join(missing)}; not COCO's instances JSON")
    return found[0], content


def _read_split(path: Path, content: dict[str, Any], column: dict[int, int]) -> SourceSplit:
    findings = Findings()
    folder = path.stem.removeprefix("instances_")
    file_of = {image["id"]: f"{folder}/{image['file_name']}" for image in content["images"]}
    classes, boxes = defaultdict[int, set[int]](set), defaultdict[int, list[SourceBox]](list)
    for annotation in content["annotations"]:
        image, category = annotation["image_id"], annotation["category_id"]
        if image not in file_of or category not in column:
            findings.add("annotations of unknown images or categories", 1, [annotation["id"]])
            continue
        classes[image].add(column[category])
        if not annotation.get("iscrowd"):
            boxes[image].append(_box(annotation["bbox"], column[category]))
    findings.add("images listed", len(file_of))
    without = [file for image, file in file_of.items() if image not in classes]
    findings.add("images without an annotation, left out", len(without), without)
    images = sorted(classes, key=str)
    return SourceSplit(
        files=[file_of[image] for image in images],
        positives=[np.array(sorted(classes[image]), np.int64) for image in images],
        boxes=[boxes[image] for image in images],
        findings=findings,
    )


def _box(corner_and_size: list[float], column: int) -> SourceBox:
    x, y, width, height = corner_and_size
    return {"class": column, "x0": x, "y0": y, "x1": x + width, "y1": y + height}
