"""Reads names of images in users' tables: paths of Windows, of other machines and of Label Studio's server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

_ELSEWHERE = re.compile(r"/|[A-Za-z]:/|[A-Za-z][A-Za-z0-9+.-]+://")
"""Matches the beginning of a name that is not a relative path: a root, a drive or an address."""
_LABEL_STUDIO = re.compile(r"/data/(?:local-files/\?d=(.+)|upload/(.+))")
"""Matches Label Studio's names of files in its local storage, and of files that were uploaded."""


def relative_names(names: Sequence[str], images: str, prefix: str = "") -> list[str]:
    """Returns the paths below the folder of images that these names mean, with `/` between folders.

    Args:
        names: the names as they stand in a table.
        images: the folder or address of the images; it is cut off where a full name begins with it.
        prefix: text that is cut off where a name begins with it.

    Raises:
        ValueError: a name lies elsewhere, or is empty.
    """
    folder = (images if "://" in images else str(Path(images).absolute())).replace("\\", "/").rstrip("/") + "/"
    return [_relative(name, folder, prefix.replace("\\", "/")) for name in names]


def check_prefix(names: Sequence[str], prefix: str) -> None:
    """Raises ValueError where no name begins with the prefix that is to be cut off."""
    if prefix and names and not any(_path(name).startswith(prefix.replace("\\", "/")) for name in names):
        raise ValueError(f"--path-prefix {prefix}: no name of an image begins with it; the first name is {names[0]!r}")


def _path(name: str) -> str:
    """Returns a name with `/` between folders, and without the address of Label Studio's server."""
    path = name.strip().replace("\\", "/")
    served = _LABEL_STUDIO.fullmatch(path)
    if served:
        return unquote(served[1]) if served[1] else served[2]
    return path


def _relative(name: str, folder: str, prefix: str) -> str:
    path = _path(name)
    if prefix and path.startswith(prefix):
        path = path.removeprefix(prefix).lstrip("/")
    path = path.removeprefix(folder)
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    if not path:
        raise ValueError("a row has labels and no image; fill in its image, or remove it")
    if _ELSEWHERE.match(path):
        raise ValueError(
            f"{' '.join(name.split())}: not below the folder of images; --path-prefix TEXT cuts TEXT from the "
            "front of each name, and --images DIR says where the rest is found"
        )
    return path
