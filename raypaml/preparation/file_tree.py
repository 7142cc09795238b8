"""Lists the files below a user's folder: links are followed once, and each file that is not read has its reason."""

from __future__ import annotations

import os
from collections.abc import Collection
from heapq import heappop, heappush
from pathlib import Path, PurePosixPath

from raypaml.data.hidden_files import is_hidden


def files_below(root: Path, suffixes: Collection[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Returns each file below a folder by its path, with the reason why it is not read; empty if it may be an image.

    Links are followed once, after everything that is not a link: what a link leads to a second time is not read.

    Args:
        root: the folder.
        suffixes: the endings of images, or of other files that are looked for; in lower case, with a dot.

    Returns:
        The reasons; and for each path that a link leads to a second time, the path under which it was read. Paths of
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
            reasons |= _listed(real, name, suffixes, folders, links, first)
        else:
            reasons[name] = reason_of(name, suffixes) if real.is_file() else "broken_link"
            _note(first, real, name, bool(reasons[name]))
    return reasons, again


def _listed(
    real: Path, name: str, suffixes: Collection[str], folders: list[str], links: list[str], first: dict[Path, str]
) -> dict[str, str]:
    """Returns the files of one folder with their reasons, and adds its folders and links to those to be visited."""
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
            reasons[path] = reason_of(path, suffixes) if entry.is_file() else "not_a_file"
            _note(first, real / entry.name, path, bool(reasons[path]))
    return reasons


def _note(first: dict[Path, str], real: Path, name: str, is_passed_over: bool) -> None:
    # a file that is passed over by its own name may be read by that of a link: images kept in a hidden cache
    if not is_passed_over:
        first[real] = name


def reason_of(path: str, suffixes: Collection[str]) -> str:
    """Returns why a file of this name is not read as an image; empty if it may be one."""
    if is_hidden(path):
        return "hidden"
    if any("\ud800" <= sign <= "\udfff" for sign in path):  # what Python makes of bytes that are not UTF-8
        return "name_not_utf8"
    return "" if PurePosixPath(path).suffix.lower() in suffixes else "not_an_image"
