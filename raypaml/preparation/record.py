"""`preparation.json`: what a data set was made from and how, so that only the same command goes on in its folder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from raypaml.data.storage import brief
from raypaml.files import sweep, write_json
from raypaml.preparation.image_form import EARLIER_FORM

RECORD = "preparation.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WORK = ".preparation"
"""Folder within the data set that holds shards and receipts of splits not finished yet."""


def table_digest(table: pa.Table) -> str:
    """SHA-256 of the rows of a table of labels."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()


def read_record(out: Path) -> dict[str, Any] | None:
    """The record of a data folder, None where there is none.

    Parameters that it was written without have the value that they had before there was a choice.
    """
    path = out / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        parameters = record["parameters"]
        earlier = EARLIER_FORM | {"json": "nested"}
        return {"parameters": parameters | earlier | parameters, "splits": dict(record["splits"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the record of a preparation ({error}); prepare into another folder") from None


def write_record(out: Path, record: dict[str, Any]) -> None:
    """Write the record whole; the same whatever the order in which splits were prepared."""
    content = record | {"splits": dict(sorted(record["splits"].items()))}
    write_json(out / RECORD, content, indent=1, ensure_ascii=False)


def check_folder(out: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """The record of `out`, or a new one for a new or empty folder.

    Raises:
        ValueError: the folder holds something else, or a data set made with other parameters.
    """
    record = read_record(out)
    if record is None:
        if out.exists() and not out.is_dir():
            raise ValueError(f"out={out}: a file; give a folder")
        strange = sorted(path.name for path in out.iterdir() if path.name != WORK) if out.is_dir() else []
        if strange:
            raise ValueError(f"out={out}: holds something else ({', '.join(strange[:3])}); give a new or empty folder")
        return {"parameters": parameters, "splits": {}}
    before = record["parameters"]
    changed = [
        f"{name}={before.get(name)} (asked: {parameters.get(name)})"
        for name in {**before, **parameters}
        if before.get(name) != parameters.get(name)
    ]
    if changed:
        raise ValueError(f"out={out}: holds another data set, made with {', '.join(changed)}; give another --out")
    return record


@contextmanager
def claimed(out: Path) -> Iterator[Path]:
    """The work folder of `out`, for this process alone.

    Raises:
        ValueError: another process is preparing into it, or it cannot be written.
    """
    work = out / WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ValueError(f"out={out}: cannot be written: {error.strerror}; give a folder of your own") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        sweep(out)
        yield work
    except BlockingIOError:
        raise ValueError(f"out={out}: another process is preparing into it; wait for it or end it") from None
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ValueError(
            f"out={out}: cannot be written: {brief(error)}; finished shards stay: make room, then run the same command "
            "again"
        ) from None
    finally:
        os.close(lock)


def is_split_finished(record: dict[str, Any], split: str) -> bool:
    """Whether a split of this record was prepared to its end."""
    return bool(record["splits"].get(split, {}).get("finished"))


def remove_if_finished(work: Path, record: dict[str, Any]) -> None:
    """Remove the work folder, unless it holds shards of a split that is not finished."""
    if all(is_split_finished(record, split) for split in record["splits"]):
        shutil.rmtree(work)


def remove_work(work: Path, split: str) -> None:
    """Remove a finished split's work folder: renamed first, so that no half of it is taken for unfinished work."""
    folder, done = work / split, work / f".done-{split}"
    shutil.rmtree(done, ignore_errors=True)
    if folder.is_dir():
        folder.replace(done)
        shutil.rmtree(done)
