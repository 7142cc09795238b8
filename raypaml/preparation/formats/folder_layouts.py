"""Finds out in which order folders name splits and classes; where their names leave it open, `--layout` must say it.

A folder that can be read in two ways is refused: if folders of splits, or folders that merely hold images, were taken
for classes, the labels would be wrong without any sign of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from raypaml.cli import command
from raypaml.preparation.findings import EXAMPLES
from raypaml.preparation.split_names import says_only_split, split_named, split_within, splits_in

Layout = Literal["", "class", "split", "any/class", "any/split/class", "split/any/class", "class/split"]
"""What the folders name, from the outermost inwards; empty takes the order that their names show, if it is one."""
LAYOUTS: dict[str, str] = {
    "class": "CLASS/IMAGE",
    "split": "SPLIT/CLASS/IMAGE",
    "any/class": "ANY/CLASS/IMAGE",
    "any/split/class": "ANY/SPLIT/CLASS/IMAGE",
    "split/any/class": "SPLIT/ANY/CLASS/IMAGE",
    "class/split": "CLASS/SPLIT/IMAGE",
}
"""The paths of each layout: ANY is a folder without a meaning; below the last folder images lie at any depth."""
_KEEPERS = (
    *("images", "image", "imgs", "img", "jpegimages", "jpg", "jpeg", "jpegs", "png", "pngs", "photos", "pictures"),
    *("pics", "data", "dataset", "raw", "all", "files", "unlabeled", "unlabelled"),
    *("labels", "label", "labeltxt", "annotations", "masks"),
)
"""Names of folders that hold files of any class."""
_NEVER_CLASSES = ("images", "imgs", "jpegimages", "annotations", "labeltxt", "unlabeled", "unlabelled", "unsorted")
"""Those of these names that are hardly a class even where other folders lie beside them."""


def levels(path: str, layout: str) -> tuple[str, str]:
    """Returns split and class of a file, or of a folder whose path ends with `/`; empty where it has none."""
    pattern = ["split", "class"] if layout == "split" else layout.split("/")
    folder = dict(zip(pattern, path.split("/")[:-1], strict=False))
    split = (split_within(folder.get("split", "")) or "") if "split" in pattern else "train"
    return split, folder.get("class", "")


def split_of(file: str, layout: str) -> str:
    """Returns the split under which the ledger lists a file that is not read."""
    return levels(file, layout)[0] or "train"


def layout_of(folder: Path, images: Sequence[str]) -> Layout:
    """Returns the layout that the names of the folders show.

    Args:
        folder: the outermost folder, for messages.
        images: paths of the images below it.

    Raises:
        ValueError: the names fit several layouts, or none.
    """
    tops = {file.split("/")[0] for file in images if "/" in file}
    is_exact = all(split_named(top) for top in tops)
    is_plain = all(says_only_split(top) for top in tops) and len(_splits(tops)) > 1
    if not tops or not (is_exact or is_plain):
        _check_classes(folder, images)
        return "class"
    if all(file.count("/") < 2 for file in images):
        raise _directly(folder, tops)
    _check_classes(folder, [file.partition("/")[2] for file in images], "within the splits ")
    for top in sorted(tops):
        _check_keepers(folder, [file.partition("/")[2] for file in images if file.startswith(f"{top}/")], f"in {top} ")
    return "split"


def _splits(names: Iterable[str]) -> set[str]:
    return {split for name in names for split in splits_in(name)}


def _check_classes(folder: Path, images: Sequence[str], where: str = "") -> None:
    """Refuses folders whose outermost names may be something else than classes."""
    tops = {file.split("/")[0] for file in images if "/" in file}
    inner = {"/".join(file.split("/")[:2]) for file in images if file.count("/") > 1}
    deep = {name.split("/")[0] for name in inner}
    like = {top for top in tops if splits_in(top)}
    if like & deep:
        others = f" as {_some(tops - like)}" if tops - like else ""
        why = f"{where}{_some(like & deep)} may be splits with folders of classes, or classes{others}"
        raise _two_ways(folder, why)
    if like and (like == tops or len(_splits(like)) > 1):
        raise _directly(folder, like, where)
    below = {name for name in inner if splits_in(name.split("/")[1])}
    if any(split_named(name.split("/")[1]) for name in below) or len(_splits(n.split("/")[1] for n in below)) > 1:
        why = f"{where}{_some(below)} may be splits below what is no split; SPLIT/CLASS/IMAGE has splits first"
        raise _two_ways(folder, why)
    if inner and len(tops) == 1:
        raise _two_ways(folder, f"{where}all images lie in {_some(tops)}, with {_some(inner)}")
    _check_shared(folder, images, inner, where)
    _check_keepers(folder, images, where)


def _check_shared(folder: Path, images: Sequence[str], inner: set[str], where: str) -> None:
    """Refuses folders without images of their own that hold folders of the same names: they may be splits."""
    times = Counter(name.split("/")[1] for name in inner)
    shared = {name for name in inner if times[name.split("/")[1]] > 1 and name.split("/")[1].lower() not in _KEEPERS}
    if shared and not any(file.count("/") == 1 for file in images):
        raise _two_ways(
            folder, f"{where}{_some(shared)}: the folders with the same names may be classes, or those above"
        )


def _check_keepers(folder: Path, images: Sequence[str], where: str) -> None:
    """Refuses classes whose names are those of folders that hold images of any class."""
    tops = {file.split("/")[0] for file in images if "/" in file}
    wrong = {top for top in tops if top.lower() in _NEVER_CLASSES}
    if tops and all(top.lower() in _KEEPERS or splits_in(top) for top in tops):
        wrong = tops
    if wrong:
        lie = "all images lie" if wrong == tops else "images lie"
        raise _two_ways(
            folder,
            f"{where}{lie} in {_some(wrong)}, which is hardly a class; labels in files of their own (YOLO's "
            f"labels/*.txt) are given as a table: {command('shard table')} FILE",
        )


def _directly(folder: Path, names: set[str], where: str = "") -> ValueError:
    return _two_ways(
        folder, f"{where}images lie directly in {_some(names)}, named like splits, in no folder of a class"
    )


def _two_ways(folder: Path, why: str) -> ValueError:
    others = ", ".join(f"{layout} ({form})" for layout, form in LAYOUTS.items() if "/" in layout)
    return ValueError(
        f"{folder}: {why}; give --layout class (each folder here is a class, whatever lies below it) or "
        f"--layout split (SPLIT/CLASS/IMAGE) or one of {others}"
    )


def _some(names: set[str]) -> str:
    more = f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
    return ", ".join(sorted(names)[:EXAMPLES]) + more
