"""Whether a folder can be written, tried before the work whose results it is to hold."""

from __future__ import annotations

import tempfile
from pathlib import Path

from raypaml.files import made

_TRIED_BYTES = 4096
"""So many bytes are written and removed again to find out whether there is room: a full disk takes empty files."""


def check_writable(folder: Path) -> None:
    """Raise OSError, naming the folder or a parent, unless it can be made and written; nothing of it stays."""
    with made(folder, stays=False):
        try_folder(folder)


def try_folder(folder: Path) -> None:
    """Raise OSError, naming the folder, unless files can be written in this folder, which exists.

    The file that is tried has no name, or loses it at once, so that a process that is killed leaves none behind.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as tried:
            tried.write(bytes(_TRIED_BYTES))
    except OSError as error:
        error.filename = str(folder)
        raise


def try_to_fill(path: Path) -> None:
    """Write some bytes to a file, which is empty afterwards."""
    path.write_bytes(bytes(_TRIED_BYTES))
    path.write_bytes(b"")
