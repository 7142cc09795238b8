"""Which entries were rejected in which epoch, written during training; `raypaml audit` shows it beside its candidates.

<run>/rejected/0007-000120-0.parquet holds what rank 0 rejected in epoch 7 before step 120. Steps that were trained
again after an interruption are there twice, and counted once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from raypaml.data.index import Index
from raypaml.files import check_readable
from raypaml.labels import IntArray, each_once
from raypaml.runs.transfer import ComingEntries
from raypaml.sealed_tables import read_parquet, write_parquet

FOLDER = "rejected"
_SCHEMA = pa.schema([("row", pa.int64()), ("class", pa.int32())])
_NAME = re.compile(r"(\d{4,})-\d{6,}-\d+\.parquet")


class OtherDataError(ValueError):
    """What was rejected belongs to another data set."""


class Rejections:
    """Entries that one rank has rejected, until they are written to a file."""

    def __init__(self, run_folder: Path, index: Index, rank: int):
        self._folder, self._rank = run_folder / FOLDER, rank
        self._about = {"samples": str(len(index)), "vocabulary": index.vocabulary_digest}
        self.fresh = ComingEntries()
        """Entries noted since the last file was written."""

    def write(self, epoch: int, step: int) -> None:
        """Write the entries noted in this epoch before this step, whole or not at all; no file where there are none."""
        rows, classes = self.fresh.take()
        if not len(rows):
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{epoch:04d}-{step:06d}-{self._rank}.parquet"
        table = pa.table([rows, classes], schema=_SCHEMA.with_metadata(self._about))
        write_parquet(path, table, compression="zstd")


def read_epochs(run_folder: Path, index: Index) -> Iterator[tuple[int, IntArray]]:
    """Yield each epoch and the entries rejected in it, in order; OtherDataError where they are of another data set."""
    by_epoch: dict[int, list[Path]] = {}
    for path in sorted((run_folder / FOLDER).glob("*.parquet")):
        if match := _NAME.fullmatch(path.name):
            by_epoch.setdefault(int(match[1]), []).append(path)
    if not by_epoch and (run_folder / FOLDER).exists():
        check_readable(run_folder / FOLDER)
    for epoch, paths in sorted(by_epoch.items()):
        yield epoch, each_once(np.concatenate([_read(path, index) for path in paths]))


def _read(path: Path, index: Index) -> IntArray:
    table = read_parquet(path, "remove it to go on without these steps, or train the run again")
    about = table.schema.metadata or {}
    if about.get(b"vocabulary") != index.vocabulary_digest.encode() or about.get(b"samples") != b"%d" % len(index):
        raise OtherDataError(f"{path}: rejections of another data set than {index.where}")
    entries: IntArray = table["row"].to_numpy() * index.num_classes + table["class"].to_numpy()
    return entries
