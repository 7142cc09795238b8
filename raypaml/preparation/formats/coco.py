"""Reads MS COCO from the instances JSON of a year, and exports of labelling tools in the same format."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import numpy as np

from raypaml.data.shards import SPLITS
from raypaml.preparation.findings import Findings
from raypaml.preparation.formats.common import Source, SourceSplit, box_of, classes_of
from raypaml.preparation.formats.table_file import read_json
from raypaml.preparation.requests import SourceBox
from raypaml.preparation.split_names import split_named

_RELEASED = re.compile(r"instances_(?:train|val)\d{4}\.json")
"""Matches the names of the files of MS COCO as it was released for a year."""
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": (int, str), "file_name": (str,)},
    "annotations": {"image_id": (int, str), "category_id": (int, str)},
    "categories": {"id": (int, str), "name": (str,)},
}
"""The fields of each kind of entry that are read, and their types."""
_WORDS = {int: "a number", str: "text"}


class _Image(TypedDict):
    id: int | str
    file_name: str


class _Annotation(TypedDict):
    image_id: int | str
    category_id: int | str
    id: NotRequired[int | str]
    bbox: NotRequired[list[float]]
    """Left, top, width and height in pixels; empty or missing where there is none."""
    iscrowd: NotRequired[int]


class _Category(TypedDict):
    id: int | str
    name: str


class _Instances(TypedDict):
    """What is read of an instances JSON."""

    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read_coco(path: Path) -> Source:
    """Reads MS COCO as it was released, or an export in its format: a JSON file, or a folder with one for each split.

    As released (`annotations/instances_{train,val}YEAR.json`, with the year), val is the test split, and images go in
    the order of their ids as text, as published. (Protocol of E. Cole et al., CVPR 2021.) An export is `DIR/SPLIT/
    _annotations.coco.json` (Roboflow), `DIR/annotations/instances_SPLIT.json` (CVAT), or JSON files in DIR (Label
    Studio's `result.json`, FiftyOne's `labels.json`); there val is the validation split, and categories that no
    annotation has are left out. A class is positive where any annotation names it, crowds too. Images without an
    annotation are left out and counted.

    Raises:
        ValueError: a file is wrong; the message names the file, the entry and the fault.
    """
    if path.is_file():
        return _read_export([path], path.parent)
    instances = sorted((path / "annotations").glob("instances_*.json"))
    if sum(bool(_RELEASED.fullmatch(file.name)) for file in instances) > 1:
        return _read_released(path)
    files = sorted(path.glob("*/_annotations.coco.json")) or instances or sorted(path.glob("*.json"))
    return _read_export(files, path) if files else _read_released(path)


def _read_released(folder: Path) -> Source:
    paths: dict[str, Path] = {}
    for split, name in (("train", "train"), ("test", "val")):
        files = sorted((folder / "annotations").glob(f"instances_{name}*.json"))
        if len(files) != 1:
            raise ValueError(
                f"{folder}: {len(files)} files annotations/instances_{name}*.json; keep the one of your year"
            )
        paths[split] = files[0]
    contents = {split: _load(path) for split, path in paths.items()}
    names = {split: [c["name"] for c in content["categories"]] for split, content in contents.items()}
    if names["train"] != names["test"]:
        raise ValueError(f"{folder}: train and val have different categories; give two files of the same release")
    column = {category["id"]: k for k, category in enumerate(contents["train"]["categories"])}
    splits = {
        split: _read_split(paths[split], content, column, paths[split].stem.removeprefix("instances_") + "/")
        for split, content in contents.items()
    }
    return Source(classes_of(names["train"]), splits, folder)


def _split_of(file: Path) -> str | None:
    """Returns the split that a file is named after, or its folder where all files have the same name."""
    name = file.parent.name if file.name == "_annotations.coco.json" else file.stem
    splits = {split for word in re.split(r"[^A-Za-z]+", name) if (split := split_named(word))}
    return splits.pop() if len(splits) == 1 else None


def _read_export(files: list[Path], folder: Path) -> Source:
    contents = {file: _load(file) for file in files}
    splits = {file: _split_of(file) or ("train" if len(files) == 1 else None) for file in files}
    if None in splits.values() or len(set(splits.values())) < len(files):
        said = ", ".join(f"{file.relative_to(folder)} ({split or 'no split'})" for file, split in splits.items())
        raise ValueError(f"{folder}: {said}; name each file by one split ({', '.join(SPLITS)}), or give one file")
    used = {file: {one["category_id"] for one in content["annotations"]} for file, content in contents.items()}
    names = sorted(
        {c["name"] for file, content in contents.items() for c in content["categories"] if c["id"] in used[file]}
    )
    if not names:
        raise ValueError(f"{folder}: no annotation in {', '.join(file.name for file in files)}")
    sources = {}
    for file, content in contents.items():
        column = {c["id"]: names.index(c["name"]) for c in content["categories"] if c["id"] in used[file]}
        split = str(splits[file])
        sources[split] = _read_split(file, content, column, _prefix(file, content, folder))
        unused = [c["name"] for c in content["categories"] if c["id"] not in used[file]]
        sources[split].findings.add("categories without an annotation here", len(unused), unused)
    about = "an export in COCO's format; images without annotations are left out"
    return Source(classes_of(names), sources, folder, about=about, is_export=True)


def _prefix(file: Path, content: _Instances, folder: Path) -> str:
    """Returns the folder of a file's images in one of the tools' layouts, with a slash; empty where none exists."""
    subset = file.stem.removeprefix("instances_")
    places = (file.parent, file.parent / "data", folder / "images" / subset, folder / "images", folder / subset)
    name = content["images"][0]["file_name"].replace("\\", "/") if content["images"] else ""
    place = next((place for place in places if name and (place / name).is_file()), folder)
    return "" if place == folder else f"{place.relative_to(folder).as_posix()}/"


def _load(path: Path) -> _Instances:
    """Reads an instances JSON; raises ValueError where an entry is not as it is read later."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: no object with {', '.join(_FIELDS)}; not COCO's instances JSON")
    missing = [part for part in _FIELDS if not isinstance(content.get(part), list)]
    if missing:
        raise ValueError(f"{path}: no {', '.join(missing)}; not COCO's instances JSON")
    for part, fields in _FIELDS.items():
        for number, entry in enumerate(content[part], start=1):
            _check_entry(entry, fields, f"{path}: {part}, entry {number}")
        if part == "annotations":
            _check_boxes(content[part], f"{path}: {part}")
        else:
            _check_ids(content[part], f"{path}: {part}")
    return cast("_Instances", content)


def _check_entry(entry: object, fields: Mapping[str, tuple[type, ...]], where: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: {str(entry)[:60]} is no object")
    for name, kinds in fields.items():
        value = entry.get(name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            said = f"is {str(value)[:60]!r}" if name in entry else "is not there"
            raise ValueError(f"{where}: {name} {said}; expected {' or '.join(_WORDS[kind] for kind in kinds)}")


def _check_boxes(annotations: list[dict[str, object]], where: str) -> None:
    for number, annotation in enumerate(annotations, start=1):
        box = annotation.get("bbox") or []
        if not isinstance(box, list) or len(box) not in (0, 4) or not all(isinstance(x, int | float) for x in box):
            raise ValueError(
                f"{where}, entry {number}: bbox is {str(box)[:60]!r}; expected x, y, width and height in pixels"
            )


def _check_ids(entries: list[dict[str, object]], where: str) -> None:
    seen = set[tuple[str, object]]()
    for name in ("id", "file_name"):
        for value in (entry[name] for entry in entries if name in entry):
            if (name, value) in seen:
                raise ValueError(f"{where}: two entries with {name} {str(value)[:60]!r}; keep one")
            seen.add((name, value))


def _read_split(path: Path, content: _Instances, column: dict[int | str, int], prefix: str) -> SourceSplit:
    findings = Findings()
    file_of = {image["id"]: prefix + image["file_name"].replace("\\", "/") for image in content["images"]}
    classes, boxes = defaultdict[int | str, set[int]](set), defaultdict[int | str, list[SourceBox]](list)
    for annotation in content["annotations"]:
        image, category = annotation["image_id"], annotation["category_id"]
        if image not in file_of or category not in column:
            example = annotation.get("id", f"of image {image}")
            findings.add("annotations of unknown images or categories", 1, [example])
            continue
        classes[image].add(column[category])
        if not annotation.get("iscrowd") and annotation.get("bbox"):
            x, y, width, height = annotation["bbox"]
            sides = box_of((x, y, x + width, y + height), f"{path}: bbox {annotation['bbox']}")
            boxes[image].append({"class": column[category], **sides})
    if content["annotations"] and not classes:
        raise ValueError(
            f"{path}: none of its {len(content['annotations']):,} annotations names an image_id and a category_id that "
            f"are listed, such as {content['annotations'][0]['image_id']!r}; text and numbers are different ids"
        )
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
