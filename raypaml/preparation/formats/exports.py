"""Reads the exports of labelling tools: Label Studio's JSON, CVAT's XML for images, FiftyOne's classifications.

A file is recognised by its structure; one with another structure is refused. Published descriptions:
https://labelstud.io/guide/task_format, https://docs.cvat.ai/docs/manual/advanced/xml_format (version 1.1) and
https://docs.voxel51.com/user_guide/export_datasets.html (FiftyOneImageClassificationDataset, FiftyOneDataset).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict
from xml.etree import ElementTree

import pyarrow as pa

from raypaml.cli import command
from raypaml.data.image_files import IMAGE_SUFFIXES
from raypaml.preparation.file_tree import files_below
from raypaml.preparation.findings import Findings
from raypaml.preparation.formats.common import box_of
from raypaml.preparation.formats.listed_images import ListedImages
from raypaml.preparation.requests import NamedBox
from raypaml.preparation.split_names import split_named

Flags = Mapping[str, str]
"""The name that the user gave for each role, empty where none was given; `image` and `labels` are used here."""
_SHAPES = ("tag", "box", "polygon", "polyline", "points", "ellipse", "cuboid", "mask", "skeleton")
"""Elements of CVAT's XML that give an image a label."""
_REGIONS = ("rectanglelabels", "polygonlabels", "keypointlabels", "brushlabels", "ellipselabels", "labels")
"""Types of Label Studio's results that give labels to a part of an image."""
_READ = {"choices", *_REGIONS}
"""Types of Label Studio's results that are read."""


class _Result(TypedDict):
    """An answer to one question about an image, in Label Studio."""

    type: str
    from_name: str
    """The question."""
    value: dict[str, list[str]]
    """The labels, by the type of the result."""


class _Annotation(TypedDict):
    """What one annotator said about an image, in Label Studio."""

    result: list[_Result]
    was_cancelled: NotRequired[bool]


class _Task(TypedDict):
    """An image in Label Studio."""

    data: dict[str, str]
    annotations: list[_Annotation]


@dataclass
class _Rows:
    """The images of an export, while they are read."""

    files: list[str] = field(default_factory=list)
    labels: list[list[str]] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    boxes: dict[str, list[NamedBox]] = field(default_factory=lambda: defaultdict(list))
    findings: Findings = field(default_factory=Findings)

    def add(self, file: str, labels: list[str], split: str = "") -> None:
        if not isinstance(file, str) or not all(isinstance(label, str) for label in labels):
            raise TypeError(f"image {file!r} with labels {labels!r}")
        self.files.append(file)
        self.labels.append(labels)
        self.splits.append(split)

    def listed(self, path: Path, about: str) -> ListedImages:
        """Returns the images; where one has a split, each must have one."""
        said = [split for split in self.splits if split]
        if said and len(said) < len(self.splits):
            lacking = self.files[self.splits.index("")]
            raise ValueError(
                f"{path}: {len(self.splits) - len(said)} images have no split, such as {lacking}; give one to each"
            )
        labels = pa.array(self.labels, pa.list_(pa.string()))
        boxes = self.boxes or None
        splits = self.splits if said else None
        return ListedImages(self.files, labels, splits=splits, boxes=boxes, about=about, findings=self.findings)


def read_export(path: Path, content: object, images: str, flags: Flags) -> ListedImages:
    """Reads an export.

    Args:
        path: the JSON or XML file.
        content: the content of the JSON file.
        images: folder of the images; FiftyOne leaves out the endings of their names.
        flags: `image` is the field of Label Studio's data that names the image; `labels` is the question that is read
            where there are several (Label Studio's from_name, FiftyOne's field).

    Raises:
        ValueError: the file is no export that is read, or it is damaged.
    """
    if path.suffix.lower() == ".xml":
        return _read_cvat(path, flags)
    try:
        if isinstance(content, list):
            return _read_label_studio(path, content, flags)
        if isinstance(content, dict) and isinstance(content.get("labels"), dict):
            if flags["labels"] or flags["image"]:
                raise ValueError(
                    f"{path}: FiftyOne's labels.json has one field; leave out --labels-column, --image-column"
                )
            return _read_fiftyone_labels(path, content["labels"], content.get("classes"), images)
        if isinstance(content, dict) and isinstance(content.get("samples"), list):
            return _read_fiftyone_samples(path, content["samples"], flags)
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path}: not the export it seems to be ({error!r}); export it again, or give a table"
        ) from None
    is_coco = isinstance(content, dict) and "annotations" in content
    coco = f"; COCO's JSON is read by `{command('shard coco')}`" if is_coco else ""
    raise ValueError(f"{path}: not an export of Label Studio (tasks), FiftyOne (labels or samples) or CVAT (XML){coco}")


# --- CVAT -------------------------------------------------------------------------------------------------------------


def _read_cvat(path: Path, flags: Flags) -> ListedImages:
    """Reads `<image name subset><tag label/><box label xtl ytl xbr ybr/>...`; every label of an element is positive."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError, LookupError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    if flags["labels"] or flags["image"]:
        raise ValueError(f"{path}: CVAT's XML has no columns; leave out --labels-column and --image-column")
    if root.tag != "annotations":
        raise ValueError(f"{path}: its root is <{root.tag}>, not CVAT's <annotations>")
    if root.find("track") is not None:
        raise ValueError(f"{path}: holds tracks of a video; export it as `CVAT for images 1.1`")
    rows = _Rows()
    for image in root.iter("image"):
        file, subset = image.get("name", ""), image.get("subset", "")
        shapes = [shape for shape in image if shape.tag in _SHAPES]
        rows.add(file, [shape.get("label", "") for shape in shapes], "" if subset.lower() == "default" else subset)
        for box in image.findall("box"):
            corners = [box.get(side, "") for side in ("xtl", "ytl", "xbr", "ybr")]
            rows.boxes[file].append({"class": box.get("label", ""), **box_of(corners, f"{path}: {file}")})
    return rows.listed(path, "CVAT for images")


# --- Label Studio -----------------------------------------------------------------------------------------------------


def _read_label_studio(path: Path, tasks: list[_Task], flags: Flags) -> ListedImages:
    """Reads tasks with `data` and `annotations`; a class is positive where any annotator says so."""
    if not tasks or not all(isinstance(task.get("data"), dict) and "annotations" in task for task in tasks):
        raise ValueError(
            f"{path}: not Label Studio's JSON of tasks with data and annotations; export it as JSON, or as JSON_MIN or "
            "CSV and read that with --labels-column"
        )
    rows, questions, unread = _Rows(), set[str](), set[str]()
    for task in tasks:
        file = _task_image(path, task["data"], flags["image"])
        answers = [one for one in task["annotations"] if not one.get("was_cancelled")]
        if not answers:
            rows.findings.add("tasks without an annotation, left out", 1, [file])
            continue
        results = [
            [one for one in answer["result"] if one["type"] in _READ and flags["labels"] in ("", one["from_name"])]
            for answer in answers
        ]
        questions |= {one["from_name"] for result in results for one in result}
        unread |= {one["type"] for answer in answers for one in answer["result"]} - _READ
        chosen = [sorted({name for one in result for name in _task_labels(path, one)}) for result in results]
        rows.findings.add(
            "tasks whose annotators differ, any of them counts", any(c != chosen[0] for c in chosen), [file]
        )
        rows.add(file, sorted({name for names in chosen for name in names}))
    if len(questions) > 1:
        raise ValueError(
            f"{path}: the tasks have several questions ({', '.join(sorted(questions))}); choose by --labels-column NAME"
        )
    return rows.listed(
        path, "Label Studio's tasks" + (f"; not read: answers of {', '.join(sorted(unread))}" if unread else "")
    )


def _task_image(path: Path, data: dict[str, str], name: str) -> str:
    """Returns the file of a task's image; `name` is its field where the user named it."""
    keys = [name] if name else ["image"] if "image" in data else list(data)
    if len(keys) != 1 or keys[0] not in data:
        raise ValueError(f"{path}: a task's data are {', '.join(data)}; name the field of the image by --image-column")
    return data[keys[0]]


def _task_labels(path: Path, result: _Result) -> list[str]:
    """Returns the labels in a result; raises ValueError where they are no list of names."""
    labels = result["value"][result["type"]]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{path}: {result['from_name']} holds {labels!r}; expected a list of names")
    return list(labels)


# --- FiftyOne ---------------------------------------------------------------------------------------------------------


def _read_fiftyone_labels(
    path: Path, labels: Mapping[str, object], classes: Sequence[str] | None, images: str
) -> ListedImages:
    """Reads one class or several for each image, by name or number; the names of images lack their endings."""
    rows = _Rows()
    folder = path.parent / "data" if images == str(path.parent) and (path.parent / "data").is_dir() else Path(images)
    endings = _endings(folder)
    for key, value in labels.items():
        files = endings.get(key, [key])
        if len(files) > 1:
            raise ValueError(f"{path}: {key} may be any of {', '.join(files)} in {folder}; keep one of them")
        file = files[0] if folder == Path(images) else f"data/{files[0]}"
        rows.findings.add("images without a label", value is None, [file])
        targets = value if isinstance(value, list) else [] if value is None else [value]
        rows.add(file, [_target(target, classes) for target in targets])
    return rows.listed(path, "FiftyOne's classifications")


def _endings(folder: Path) -> dict[str, list[str]]:
    """Returns the files below a local folder that are not hidden, by their path without its ending."""
    files = defaultdict[str, list[str]](list)
    for file, reason in sorted(files_below(folder, IMAGE_SUFFIXES)[0].items()):
        if reason not in ("", "not_an_image", "linked_before"):
            continue
        if Path(file).suffix.lower() in IMAGE_SUFFIXES:
            files[str(Path(file).with_suffix(""))].append(file)
        files[file].append(file)
    return files


def _target(value: object, classes: Sequence[str] | None) -> str:
    """Returns the name of a class that is given by name or number, or as a `Classification`."""
    target = value["label"] if isinstance(value, dict) else value
    if isinstance(target, int) and classes is not None and 0 <= target < len(classes):
        return classes[target]
    if not isinstance(target, str):
        raise TypeError(f"label {target!r}")
    return target


def _read_fiftyone_samples(path: Path, samples: list[dict[str, Any]], flags: Flags) -> ListedImages:
    """Reads `samples`: each has a filepath, tags that may name its split, and fields with classifications."""
    named = {name for sample in samples for name, _ in _classifications(sample)}
    name = flags["labels"] or (named.pop() if len(named) == 1 else "")
    if not name or (flags["labels"] and name not in named):
        raise ValueError(
            f"{path}: fields with classifications: {', '.join(sorted(named)) or 'none'}; choose one by --labels-column"
        )
    rows = _Rows()
    for sample in samples:
        splits = [tag for tag in sample.get("tags", ()) if split_named(tag)]
        if len(splits) > 1:
            raise ValueError(f"{path}: {sample['filepath']} has the tags of several splits: {', '.join(splits)}")
        labels = dict(_classifications(sample)).get(name, [])
        rows.add(sample["filepath"], labels, splits[0] if splits else "")
    return rows.listed(path, "FiftyOne's samples")


def _classifications(sample: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yields the name of each field with classifications, and its labels."""
    for name, value in sample.items():
        kind = value.get("_cls") if isinstance(value, dict) else None
        if kind == "Classification":
            yield name, [value["label"]]
        if kind == "Classifications":
            yield name, [one["label"] for one in value["classifications"]]
