"""Names of images in other people's tables: paths of Windows, of other machines and of Label Studio's server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

_ELSEWHERE = re.compile(r"/|[A-Za-z]:/|[A-Za-z][A-Za-z0-9+.-]+://")
"""How a name begins that is no path below a folder: of a root, of a drive, of an address."""
_LABEL_STUDIO = re.compile(r"/data/(?:local-files/\?d=(.+)|upload/(.+))")
"""Label Studio's names of files in its local storage, and of files that were uploaded."""


def relative_names(names: Sequence[str], images: str, prefix: str = "") -> list[str]:
    """The paths below the folder of images that these names mean, with `/` between folders.

    Args:
        names: as somebody wrote them.
        images: the folder or address of the images; what lies below it by its full name is found.
        prefix: cut off where a name begins with it.

    Raises:
        ValueError: a name lies elsewhere, or is empty.
    """
    folder = (images if "://" in images else str(Path(images).absolute())).replace("\\", "/").rstrip("/") + "/"
    return [_relative(name, folder, prefix.replace("\\", "/")) for name in names]


def check_prefix(names: Sequence[str], prefix: str) -> None:
    """ValueError where no name begins with the prefix that is to be cut."""
    if prefix and names and not any(_path(name).startswith(prefix.replace("\\", "/")) for name in names):
        raise ValueError(f"--path-prefix {prefix}: no image's name begins so; the first one is {names[0]!r}")


def _path(name: str) -> str:
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
