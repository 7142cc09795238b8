"""What labelling tools export, read as it is: Label Studio's JSON, CVAT's XML for images, FiftyOne's classifications.

The structure of a file says what it is; another one is refused. Published descriptions:
https://labelstud.io/guide/task_format, https://docs.cvat.ai/docs/manual/advanced/xml_format (version 1.1) and
https://docs.voxel51.com/user_guide/export_datasets.html (FiftyOneImageClassificationDataset, FiftyOneDataset).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa

from raypaml.data.image_files import IMAGE_SUFFIXES
from raypaml.preparation.file_tree import files_below
from raypaml.preparation.findings import Findings
from raypaml.preparation.formats.common import SourceBox, box_of
from raypaml.preparation.formats.listed_images import ListedImages
from raypaml.preparation.split_names import split_named

Flags = Mapping[str, str]
"""Role -> what the user calls it, empty where nothing was said: `image` and `labels` are used here."""
_SHAPES = ("tag", "box", "polygon", "polyline", "points", "ellipse", "cuboid", "mask", "skeleton")
"""Elements of CVAT that give an image a label."""
_REGIONS = ("rectanglelabels", "polygonlabels", "keypointlabels", "brushlabels", "ellipselabels", "labels")
"""Types of Label Studio's results that give a part of an image labels."""
_READ = {"choices", *_REGIONS}


@dataclass
class _Rows:
    """Images as they are read."""

    files: list[str] = field(default_factory=list)
    labels: list[list[str]] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    boxes: dict[str, list[SourceBox]] = field(default_factory=lambda: defaultdict(list))
    findings: Findings = field(default_factory=Findings)

    def add(self, file: str, labels: list[str], split: str = "") -> None:
        if not isinstance(file, str) or not all(isinstance(label, str) for label in labels):
            raise TypeError(f"image {file!r} with labels {labels!r}")
        self.files.append(file)
        self.labels.append(labels)
        self.splits.append(split)

    def listed(self, path: Path, about: str) -> ListedImages:
        """These rows; where one has a split, each must have one."""
        said = [split for split in self.splits if split]
        if said and len(said) < len(self.splits):
            lacking = self.files[self.splits.index("")]
            raise ValueError(
                f"{path}: {len(self.splits) - len(said)} images have no split, such as {lacking}; give all one"
            )
        labels = pa.array(self.labels, pa.list_(pa.string()))
        boxes = self.boxes or None
        splits = self.splits if said else None
        return ListedImages(self.files, labels, splits=splits, boxes=boxes, about=about, findings=self.findings)


def read_export(path: Path, content: Any, images: str, flags: Flags) -> ListedImages:
    """Read an export.

    Args:
        path: JSON or XML.
        content: of the JSON.
        images: folder of the images: FiftyOne leaves out how their names end.
        flags: `image`: the field of Label Studio's data that names the image; `labels`: which of several questions
            (Label Studio's from_name, FiftyOne's field) is meant.

    Raises:
        ValueError: it is none of the exports that are read, or it is damaged.
    """
    if path.suffix.lower() == ".xml":
        return _read_cvat(path, flags)
    try:
        if isinstance(content, list):
            return _read_label_studio(path, content, flags)
        if isinstance(content.get("labels"), dict):
            if flags["labels"] or flags["image"]:
                raise ValueError(
                    f"{path}: FiftyOne's labels.json has one field; leave out --labels-column, --image-column"
                )
            return _read_fiftyone_labels(path, content, images)
        if isinstance(content.get("samples"), list):
            return _read_fiftyone_samples(path, content["samples"], flags)
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path}: not the export it seems to be ({error!r}); export it again, or give a table"
        ) from None
    coco = "; COCO's JSON is read by the kind coco" if "annotations" in content else ""
    raise ValueError(f"{path}: not an export of Label Studio (tasks), FiftyOne (labels or samples) or CVAT (XML){coco}")


# --- CVAT -------------------------------------------------------------------------------------------------------------


def _read_cvat(path: Path, flags: Flags) -> ListedImages:
    """`<image name subset><tag label/><box label xtl ytl xbr ybr/>...`: a label is positive where anything has it."""
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
        rows.boxes[file] += [_cvat_box(path, file, shape) for shape in shapes if shape.tag == "box"]
    rows.boxes = {file: boxes for file, boxes in rows.boxes.items() if boxes}
    return rows.listed(path, "CVAT for images")


def _cvat_box(path: Path, file: str, shape: ElementTree.Element) -> SourceBox:
    corners = [shape.get(side, "") for side in ("xtl", "ytl", "xbr", "ybr")]
    return {"class": shape.get("label", ""), **box_of(corners, f"{path}: {file}")}


# --- Label Studio -----------------------------------------------------------------------------------------------------


def _read_label_studio(path: Path, tasks: list[Any], flags: Flags) -> ListedImages:
    """Tasks with `data` and `annotations`; a class is positive where any annotator says so."""
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
        results = [[one for one in answer["result"] if _is_asked(one, flags["labels"])] for answer in answers]
        questions |= {one["from_name"] for result in results for one in result}
        unread |= {one["type"] for answer in answers for one in answer["result"]} - _READ
        chosen = [sorted({name for one in result for name in _task_labels(path, one)}) for result in results]
        rows.findings.add(
            "tasks whose annotators differ, any of them counts", any(c != chosen[0] for c in chosen), [file]
        )
        rows.add(file, sorted({name for names in chosen for name in names}))
    if len(questions) > 1:
        raise ValueError(
            f"{path}: several questions were asked ({', '.join(sorted(questions))}); say --labels-column NAME"
        )
    return rows.listed(
        path, "Label Studio's tasks" + (f"; not read: answers of {', '.join(sorted(unread))}" if unread else "")
    )


def _task_image(path: Path, data: dict[str, Any], name: str) -> str:
    keys = [name] if name else ["image"] if "image" in data else list(data)
    if len(keys) != 1 or keys[0] not in data:
        raise ValueError(f"{path}: a task's data are {', '.join(data)}; say with --image-column which one is the image")
    file: str = data[keys[0]]
    return file


def _is_asked(result: dict[str, Any], name: str) -> bool:
    return result["type"] in _READ and name in ("", result["from_name"])


def _task_labels(path: Path, result: dict[str, Any]) -> list[str]:
    labels = result["value"][result["type"]]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{path}: {result['from_name']} holds {labels!r}; expected a list of names")
    return list(labels)


# --- FiftyOne ---------------------------------------------------------------------------------------------------------


def _read_fiftyone_labels(path: Path, content: dict[str, Any], images: str) -> ListedImages:
    """`classes` and `labels`: name of the image without its ending -> a class or several, by name or by number."""
    rows, classes = _Rows(), content.get("classes")
    folder = path.parent / "data" if images == str(path.parent) and (path.parent / "data").is_dir() else Path(images)
    endings = _endings(folder)
    for key, value in content["labels"].items():
        files = endings.get(key, [key])
        if len(files) > 1:
            raise ValueError(f"{path}: {key} may be any of {', '.join(files)} in {folder}; keep one")
        file = files[0] if folder == Path(images) else f"data/{files[0]}"
        rows.findings.add("images without a label", value is None, [file])
        rows.add(file, [] if value is None else [_target(one, classes) for one in _several(value)])
    return rows.listed(path, "FiftyOne's classifications")


def _endings(folder: Path) -> dict[str, list[str]]:
    """Path without its ending -> the files called so, but for hidden ones, below a folder on this machine."""
    files = defaultdict[str, list[str]](list)
    for file, reason in sorted(files_below(folder, IMAGE_SUFFIXES)[0].items()):
        if reason not in ("", "not_an_image", "linked_before"):
            continue
        if Path(file).suffix.lower() in IMAGE_SUFFIXES:
            files[str(Path(file).with_suffix(""))].append(file)
        files[file].append(file)
    return files


def _several(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _target(value: Any, classes: list[str] | None) -> str:
    target = value["label"] if isinstance(value, dict) else value
    if isinstance(target, int) and classes is not None and 0 <= target < len(classes):
        return classes[target]
    if not isinstance(target, str):
        raise TypeError(f"label {target!r}")
    return target


def _read_fiftyone_samples(path: Path, samples: list[Any], flags: Flags) -> ListedImages:
    """`samples`: each with a filepath, tags that may name its split, and fields with classifications."""
    named = {name for sample in samples for name, _ in _classifications(sample)}
    name = flags["labels"] or (named.pop() if len(named) == 1 else "")
    if not name or (flags["labels"] and name not in named):
        raise ValueError(
            f"{path}: fields with classifications: {', '.join(sorted(named)) or 'none'}; say with --labels-column which"
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
    for name, value in sample.items():
        kind = value.get("_cls") if isinstance(value, dict) else None
        if kind == "Classification":
            yield name, [value["label"]]
        if kind == "Classifications":
            yield name, [one["label"] for one in value["classifications"]]
