"""One's own images in folders named by class: which file is an image of which class and split, and why others are not.

CLASS/IMAGE and SPLIT/CLASS/IMAGE are read by the folders' names (`folder_layouts.py`), other layouts where `--layout`
names them; below a folder of a class an image may lie at any depth.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from heapq import heappop, heappush
from pathlib import Path, PurePosixPath

import numpy as np

from raypaml.data.hidden_files import is_hidden
from raypaml.data.image_files import IMAGE_SUFFIXES
from raypaml.data.shards import SPLITS
from raypaml.preparation.findings import Findings
from raypaml.preparation.formats.common import Skipped, Source, SourceSplit, classes_of
from raypaml.preparation.formats.folder_layouts import LAYOUTS, Layout, layout_of, levels, placed_at, split_of


def read_folder(folder: Path, layout: Layout = "") -> Source:
    """Read images in folders named by class: one label an image, complete.

    Every file that is not taken is in `skipped` of the result, with its reason.

    Raises:
        ValueError: no image lies in a folder of a class, or the folder can be read in two ways.
    """
    reasons, again = files_below(folder)
    images = sorted((file for file, reason in reasons.items() if not reason), key=lambda file: file.split("/"))
    named = layout or layout_of(folder, images)
    places = {file: found for file in images if (found := placed_at(file, named))}
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
            splits[split] = SourceSplit(files, positives, findings=_findings(len(files)))
    skipped = [
        Skipped(split_of(file, named), os.fsencode(file).decode(errors="backslashreplace"), reason)
        for file, reason in sorted(reasons.items())
        if reason
    ]
    return Source(classes_of(names), splits, folder, tuple(skipped), has_splits="split" in named.split("/"))


def _findings(images: int) -> Findings:
    findings = Findings()
    findings.add("images listed", images)
    return findings


def _check_links(folder: Path, again: Mapping[str, str], layout: str) -> None:
    """Refuse a file or folder that links put under two classes or splits: neither label would be right."""
    for name, before in again.items():
        if any(a and b and a != b for a, b in zip(levels(name, layout), levels(before, layout), strict=True)):
            raise ValueError(
                f"{folder}: {before} and {name} are the same by a link, under two classes or splits; remove the link, "
                "or give the labels as a table"
            )


def files_below(root: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Every file below a folder, by its path there, and why it is not an image: empty where its name is that of one.

    Links are followed once, after everything that is really there: what a link leads to again is not taken.

    Returns:
        The reasons by path; and by the path of what a link leads to again, the path that it has already. Paths of
        folders end with `/` there.
    """
    reasons, again = dict[str, str](), dict[str, str]()
    first = dict[Path, str]()
    folders, links = [""], list[str]()
    while folders or links:
        name = folders.pop() if folders else heappop(links)
        real = Path(os.path.realpath(root / name))
        if is_hidden(name) and (root / name).is_symlink():
            reasons[name] = "hidden"
        elif real in first:
            mark = "/" if real.is_dir() else ""
            again[name + mark], reasons[name] = first[real] + mark, "linked_before"
        elif real.is_dir():
            _note(first, real, name, is_hidden(name))
            reasons |= _listed(real, name, folders, links, first)
        else:
            reasons[name] = _reason(name) if real.is_file() else "broken_link"
            _note(first, real, name, bool(reasons[name]))
    return reasons, again


def _listed(real: Path, name: str, folders: list[str], links: list[str], first: dict[Path, str]) -> dict[str, str]:
    """The files of one folder with their reasons; its folders and links are added to those that are left."""
    try:
        entries = list(os.scandir(real))
    except OSError:
        return {name: "denied"}
    reasons = {}
    for entry in entries:
        path = f"{name}/{entry.name}" if name else entry.name
        if entry.is_symlink():
            heappush(links, path)
        elif entry.is_dir():
            folders.append(path)
        else:
            reasons[path] = _reason(path) if entry.is_file() else "not_a_file"
            _note(first, real / entry.name, path, bool(reasons[path]))
    return reasons


def _note(first: dict[Path, str], real: Path, name: str, is_passed_over: bool) -> None:
    # what is not taken under its own name may be taken under that of a link: images kept in a hidden cache
    if not is_passed_over:
        first[real] = name


def _is_text(path: str) -> bool:
    """Whether a name that the file system gives is one that can be written down: bytes that are no UTF-8 are not."""
    return not any("\ud800" <= sign <= "\udfff" for sign in path)


def _reason(path: str) -> str:
    """Why a file of this name is no image; empty if it may be one."""
    if is_hidden(path):
        return "hidden"
    if not _is_text(path):
        return "name_not_utf8"
    return "" if PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES else "not_an_image"
