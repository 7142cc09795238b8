"""Files written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A path to write in the block; at its end what was written takes the name `path`, at once and whole.

    Whoever looks sees the file as it was before or as it is after. The unfinished one lies beside it, hidden, and is
    removed where the block fails.

    Args:
        path: the final name; its folder exists. A file that has this name is replaced.
        durable: wait until the content is on the disk before it takes the name. Needed only where something written
            later vouches for it, such as a marker: after a loss of power a renamed file may otherwise be empty.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        if durable:
            sync(unfinished)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an indented JSON file, whole or not at all."""
    with whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def share(name: str) -> Path:
    """The folder `tune` of search spaces or `clusters` of cluster files: of the wheel, or of the checkout."""
    package = Path(__file__).parent
    installed = package / "share" / name
    return installed if installed.is_dir() else package.parent / name
