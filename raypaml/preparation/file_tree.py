"""The files below a folder of one's own: links followed once, and of each file that is not taken the reason."""

from __future__ import annotations

import os
from collections.abc import Collection
from heapq import heappop, heappush
from pathlib import Path, PurePosixPath

from raypaml.data.hidden_files import is_hidden


def files_below(root: Path, suffixes: Collection[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Every file below a folder by its path, with the reason why it is not taken; empty: it may be an image.

    Links are followed once, after everything that is really there: what a link leads to again is not taken.

    Args:
        root: the folder.
        suffixes: of images, or of what else is looked for; in lower case, with a dot.

    Returns:
        The reasons; and for each path that a link leads to again, the path under which it was taken. There, paths of
        folders end with `/`.
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
            reasons[path] = reason_of(path, suffixes) if entry.is_file() else "not_a_file"
            _note(first, real / entry.name, path, bool(reasons[path]))
    return reasons


def _note(first: dict[Path, str], real: Path, name: str, is_passed_over: bool) -> None:
    # what is not taken under its own name may be taken under that of a link: images kept in a hidden cache
    if not is_passed_over:
        first[real] = name


def _is_text(path: str) -> bool:
    """Whether a name that the file system gives is one that can be written down: bytes that are no UTF-8 are not."""
    return not any("\ud800" <= sign <= "\udfff" for sign in path)


def reason_of(path: str, suffixes: Collection[str]) -> str:
    """Why a file of this name is no image; empty if it may be one."""
    if is_hidden(path):
        return "hidden"
    if not _is_text(path):
        return "name_not_utf8"
    return "" if PurePosixPath(path).suffix.lower() in suffixes else "not_an_image"
