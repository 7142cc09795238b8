"""The same photos as five people would keep them, and folders of classes in three ways: equal data sets by digest.

    python -m tests.five_layouts PHOTOS /tmp/layouts     # 3,593 photos took a few minutes

PHOTOS holds labels.csv (image, labels between blanks, split) and the folder images. `test_five_layouts.py` does the
same with a few generated pictures.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from raypaml.preparation.data_card import CARD
from raypaml.shard import main as shard

RESIZE = 224


@dataclass(frozen=True)
class Photo:
    """A photo: its name without folders, its split and its classes."""

    name: str
    split: str
    labels: tuple[str, ...]


Write = Callable[[Path, Path, Sequence[Photo]], list[str]]
"""Writes photos from a folder into another one, and returns what `raypaml shard` is given to read them."""


def place(photo: Path, target: Path) -> None:
    """Put a photo somewhere else."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(photo, target)
    except OSError:
        shutil.copy(photo, target)


def _table(path: Path, rows: Sequence[Sequence[str]], encoding: str = "utf-8", delimiter: str = ",") -> str:
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return str(path)


def flat(images: Path, folder: Path, photos: Sequence[Photo]) -> list[str]:
    """All photos in one folder; labels between blanks."""
    for photo in photos:
        place(images / photo.name, folder / photo.name)
    rows = [["image", "labels", "split"], *([p.name, " ".join(p.labels), p.split] for p in photos)]
    return ["table", _table(folder / "labels.csv", rows), "--complete"]


def split_in_path(images: Path, folder: Path, photos: Sequence[Photo]) -> list[str]:
    """Train, VAL and test in the paths; Excel's semicolons and byte order mark; labels between commas."""
    folders = {"train": "Train", "validation": "VAL", "test": "test"}
    rows = [["Image", "Labels", "Split"]]
    for photo in photos:
        path = f"{folders[photo.split]}/{photo.name}"
        place(images / photo.name, folder / "pictures" / path)
        rows.append([path, ",".join(photo.labels), folders[photo.split]])
    table = _table(folder / "t.csv", rows, "utf-8-sig", ";")
    return ["table", table, "--images", str(folder / "pictures"), "--complete"]


def column_a_class(images: Path, folder: Path, photos: Sequence[Photo]) -> list[str]:
    """Folders of splits that the table does not name; a column a class, in UTF-16 with tabs."""
    folders = {"train": "train", "validation": "dev", "test": "Test"}
    classes = sorted({name for photo in photos for name in photo.labels})
    rows = [["image", "split", *classes]]
    for photo in photos:
        place(images / photo.name, folder / folders[photo.split] / photo.name)
        rows.append([photo.name, photo.split, *(str(int(name in photo.labels)) for name in classes)])
    table = _table(folder / "t.tsv", rows, "utf-16", "\t")
    return ["table", table, "--class-columns", f"{classes[0]}..{classes[-1]}", "--complete"]  # one is called train


def label_studio(images: Path, folder: Path, photos: Sequence[Photo]) -> list[str]:
    """Label Studio's choices, and paths of Windows."""
    rows = [["image", "split", "choice"]]
    for photo in photos:
        place(images / photo.name, folder / photo.split / photo.name)
        cell = photo.labels[0] if len(photo.labels) == 1 else json.dumps({"choices": photo.labels})
        rows.append([f"{photo.split}\\{photo.name}", photo.split.upper(), cell])
    return ["table", _table(folder / "t.csv", rows), "--labels-column", "choice", "--complete"]


def cvat(images: Path, folder: Path, photos: Sequence[Photo]) -> list[str]:
    """CVAT's tags."""
    subsets = {"train": "Train", "validation": "val", "test": "test"}
    root = ElementTree.Element("annotations")
    for photo in photos:
        place(images / photo.name, folder / photo.name)
        image = ElementTree.SubElement(root, "image", name=photo.name, subset=subsets[photo.split])
        for name in photo.labels:
            ElementTree.SubElement(image, "tag", label=name)
    ElementTree.ElementTree(root).write(folder / "annotations.xml", encoding="utf-8", xml_declaration=True)
    return ["table", str(folder / "annotations.xml"), "--complete"]


def class_folders(images: Path, folder: Path, photos: Sequence[Photo]) -> list[str]:
    """SPLIT/CLASS/IMAGE, by the first label of each photo."""
    for photo in photos:
        place(images / photo.name, folder / photo.split / photo.labels[0] / photo.name)
    return ["folder", str(folder)]


def class_folders_as_found(images: Path, folder: Path, photos: Sequence[Photo]) -> list[str]:
    """The same with other names of splits, folders below those of classes, and what systems leave behind."""
    folders = {"train": "TRAIN", "validation": "valid", "test": "Test"}
    for number, photo in enumerate(photos):
        own = folder / folders[photo.split] / photo.labels[0]
        place(images / photo.name, own / photo.name)
        if number % 50 == 0:
            (own / f"._{photo.name}").write_bytes(b"macOS")
            (own / ".ipynb_checkpoints").mkdir(exist_ok=True)
            (own / ".ipynb_checkpoints" / f"x-{photo.name}").write_bytes(b"a copy")
    (folder / ".DS_Store").write_bytes(b"macOS")
    (folder / "README.md").write_text("About these photos.\n")
    return ["folder", str(folder)]


def table_of_class_folders(images: Path, folder: Path, photos: Sequence[Photo]) -> list[str]:
    """A table of the first label of each photo."""
    ordered = sorted(photos, key=lambda photo: (photo.labels[0], photo.name))  # as folders list them
    return flat(images, folder, [Photo(p.name, p.split, p.labels[:1]) for p in ordered])


FORMS: Mapping[str, Write] = {form.__name__: form for form in (flat, split_in_path, column_a_class, label_studio, cvat)}
"""Five ways to keep photos with several labels each."""
SINGLE: Mapping[str, Write] = {
    form.__name__: form for form in (class_folders, class_folders_as_found, table_of_class_folders)
}
"""Three ways to keep photos with one label each."""


def digests(images: Path, photos: Sequence[Photo], out: Path, forms: Mapping[str, Write], *more: str) -> dict[str, str]:
    """The digest of the data set that is made of each form, and nothing said but what a newcomer would say."""
    found = {}
    for name, write in forms.items():
        (out / name).mkdir(parents=True)
        arguments = [*write(images, out / name, photos), "--out", str(out / f"{name}-shards"), "--workers", "1", *more]
        assert shard(arguments) == 0, name
        found[name] = json.loads((out / f"{name}-shards" / CARD).read_text())["digest"]
    return found


def read_photos(table: Path) -> list[Photo]:
    """Photos of a table with the splits train and test; every fifth of train becomes validation."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    train = [row["image"] for row in rows if row["split"] == "train"][::5]
    return [
        Photo(row["image"], "validation" if row["image"] in train else row["split"], tuple(row["labels"].split()))
        for row in rows
    ]


def main(data: Path, out: Path) -> int:
    """Write, prepare and compare; 1 where digests differ."""
    photos, differ = read_photos(data / "labels.csv"), 0
    for forms in (FORMS, SINGLE):
        found = digests(data / "images", photos, out, forms, "--resize", str(RESIZE))
        print(*(f"{digest[:16]}  {name}" for name, digest in found.items()), sep="\n")
        differ |= len(set(found.values())) > 1
    print(f"{len(photos):,} photos: {'digests differ' if differ else 'equal data sets'}")
    return differ


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:3])))
