"""`preparation.json`: what a data set was made from and how, so that only the same command continues in its folder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NotRequired, TypedDict

import pyarrow as pa

from raypaml.data.storage import brief
from raypaml.files import sweep, write_json
from raypaml.preparation.image_form import EARLIER_FORM
from raypaml.preparation.requests import Parameters
from raypaml.stored_json import read_if_there

RECORD = "preparation.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors that a full disk or quota gives."""
WORK = ".preparation"
"""Folder within the data set that holds shards and receipts of splits that are not finished."""

SplitPlan = TypedDict("SplitPlan", {"labels": str, "from": str, "shard_samples": int, "finished": NotRequired[bool]})
"""How a split is cut into shards: digest of its requests, whether images are `files` or in `archives`, and images
requested per shard; `finished` is there once it is."""


class Record(TypedDict):
    """preparation.json."""

    parameters: Parameters
    splits: dict[str, SplitPlan]


def table_digest(table: pa.Table) -> str:
    """Returns the SHA-256 of the rows of a table of labels."""
    sink = _Digest()
    with pa.ipc.new_stream(pa.PythonFile(sink, "w"), table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.sha256.hexdigest()


class _Digest(io.RawIOBase):
    """A file of which only the digest is kept: a table of 3.66 million images is not written a second time."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content: bytes) -> int:  # type: ignore[override]
        self.sha256.update(content)
        return len(content)


def read_record(out: Path) -> Record | None:
    """Returns the record of a data folder, None where there is none.

    Parameters that an old record lacks get the value that they had before there was a choice.
    """
    record = read_if_there(out / RECORD, Record, "the record of a preparation", "prepare into another folder")
    if record is None:
        return None
    parameters, earlier = record["parameters"], EARLIER_FORM | {"json": "nested"}
    return {"parameters": parameters | earlier | parameters, "splits": record["splits"]}


def write_record(out: Path, record: Record) -> None:
    """Writes the record, with its splits sorted, so that the order in which they were prepared does not show."""
    content = {"parameters": record["parameters"], "splits": dict(sorted(record["splits"].items()))}
    write_json(out / RECORD, content, indent=1, ensure_ascii=False)


def check_folder(out: Path, parameters: Parameters) -> Record:
    """Returns the record of `out`, or a new one for a new or empty folder.

    Raises:
        ValueError: the folder holds other files, or a data set made with other parameters.
    """
    record = read_record(out)
    if record is None:
        if out.exists() and not out.is_dir():
            raise ValueError(f"out={out}: is a file; give a folder")
        strange = sorted(path.name for path in out.iterdir() if path.name != WORK) if out.is_dir() else []
        if strange:
            raise ValueError(f"out={out}: holds other files ({', '.join(strange[:3])}); give a new or empty folder")
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
    """Gives the work folder of `out` to this process alone for the length of a block.

    Raises:
        ValueError: another process is preparing into `out`, or it cannot be written.
    """
    work = out / WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT, 0o666)
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


def is_split_finished(record: Record, split: str) -> bool:
    """Says whether a split of this record was prepared to its end."""
    return split in record["splits"] and bool(record["splits"][split].get("finished"))


def remove_if_finished(work: Path, record: Record) -> None:
    """Removes the work folder, unless a split is unfinished and has shards in it."""
    if all(is_split_finished(record, split) for split in record["splits"]):
        shutil.rmtree(work)


def remove_work(work: Path, split: str) -> None:
    """Removes the work folder of a finished split; renames it first, so that no part of it seems unfinished work."""
    folder, done = work / split, work / f".done-{split}"
    shutil.rmtree(done, ignore_errors=True)
    if folder.is_dir():
        folder.replace(done)
        shutil.rmtree(done)
