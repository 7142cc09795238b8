"""The files and folders that people name for what a command writes: tried before the work begins, whole or not at all.

That a disk is full, a storage read-only or a name too long is found out in a moment, and not after hours of work. What
a command that fails has made is removed again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from raypaml.files import made, whole
from raypaml.labels import VOCABULARY
from raypaml.runs.run_files import CONFIG, METRICS_FILE, MODEL, MODEL_CARD, RESULT, STATE
from raypaml.writable import try_folder, try_to_fill

_OWN_FILES = {CONFIG, METRICS_FILE, RESULT, VOCABULARY, MODEL, STATE, MODEL_CARD}
"""Files that no output may replace where a run, a checkpoint, predictions or an export keep them."""


@contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """Give a path to write to in the block, as `files.whole` does, after trying whether it can be written.

    The folder of the file is made. A device or a pipe, such as /dev/stdout, is written in place.

    Raises:
        OSError: the file cannot be written.
        ValueError: the folder holds a data set, or the file would replace one that belongs to a run.
    """
    is_file = path.is_file() and path.parent != Path("/dev")  # where a file is what the shell has put there
    if path.exists() and not is_file and not path.is_dir():
        yield path  # there is nothing to try, and to replace it would take it from everybody
        return
    kind = holds(path.parent)
    if kind == "a data set" or (kind and path.name in _OWN_FILES):
        raise ValueError(f"{path}: the folder holds {kind}, which the file would change; give it another folder")
    with made(path.parent), whole(path) as unfinished:
        try_to_fill(unfinished)
        yield unfinished


@contextmanager
def output_files(*paths: str | None) -> Iterator[list[Path | None]]:
    """Give a path to write to for each of several files, as `output_file` does; None for those without a name.

    Raises:
        OSError, ValueError: as `output_file`; ValueError also where two are the same file.
    """
    named = [path for path in paths if path]
    if twice := [path for path in named if named.count(path) > 1]:
        raise ValueError(f"{twice[0]}: named for two outputs; give each a file of its own")
    with ExitStack() as stack:
        yield [stack.enter_context(output_file(Path(path))) if path else None for path in paths]


@contextmanager
def output_folder(path: Path, *, goes_on: bool = False) -> Iterator[Path]:
    """Make a folder, and try whether it can be written, before the block, which writes into it.

    Args:
        path: the folder, which may hold files of an earlier command.
        goes_on: whether a further call goes on with what this one has finished. Otherwise, if the block raises, the
            folder is removed with all that is in it, unless it was there before.

    Raises:
        OSError: the folder cannot be made or written.
        ValueError: the folder holds a data set, a run or a checkpoint.
    """
    if (kind := holds(path)) in ("a data set", "a run", "a checkpoint"):
        raise ValueError(f"out={path}: the folder holds {kind}, which the files would be mixed with; give another one")
    with made(path) as is_new:
        try_folder(path)
        try:
            yield path
        except BaseException:
            if is_new and not goes_on:
                shutil.rmtree(path, ignore_errors=True)
            raise


def holds(folder: Path) -> str:
    """What a folder holds that outputs must not be mixed with, such as a data set or a run; "" for nothing of these."""
    signs = {
        "a data set": (VOCABULARY, "*.arrow"),
        "a run": (CONFIG, VOCABULARY),
        "a checkpoint": (STATE, MODEL),
        "predictions": (VOCABULARY, "part-*.parquet"),
        "an export": (MODEL_CARD, MODEL),
    }
    if not folder.is_dir():
        return ""
    return next((kind for kind, names in signs.items() if all(any(folder.glob(name)) for name in names)), "")
