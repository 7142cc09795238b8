"""Progress of sharding, from the receipts of finished shards and the counts of shards that are being written."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow.compute as pc

from raypaml.counting import number_of, progress_line
from raypaml.preparation.shard_tasks import ShardJob, read_receipt

SECONDS = 10.0
"""Seconds between two lines of progress."""


class Progress:
    """Says every few seconds how many images are done, found and missing, how fast, and how long the rest takes."""

    def __init__(self, split: str, job: ShardJob, requested: int, say: Callable[[str], None]):
        self._split, self._job, self._requested, self._say = split, job, requested, say
        self._seen: set[str] = set()
        self._unfinished = 0
        self._counts = Counter[str]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        for left in self._job.work.glob("*.count"):  # written by a run that was killed
            left.unlink()
        self._count()
        self._before, self._began = self._counts.copy(), time.monotonic()
        if self._before["done"]:
            shards = number_of(len(self._seen), "shard")
            self._say(f"{self._split}: {self._before['done']:,} images in {shards} are finished already")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._count()
        self._say(self.line())

    def _run(self) -> None:
        while not self._stop.wait(SECONDS):
            self._count()
            self._say(self.line())

    def _count(self) -> None:
        for path in set(self._job.work.glob("[0-9]*.arrow")):
            if path.name not in self._seen:
                self._seen.add(path.name)
                table, meta = read_receipt(path)
                written = pc.sum(pc.equal(table["fate"], "written")).as_py() or 0
                counts = {"done": len(table), "written": written, "missing": len(table) - written}
                self._counts.update({**counts, "read": meta["bytes_read"], "wrote": meta["bytes"]})
        being_written = [path for path in self._job.work.glob("*.count") if f"{path.stem}.arrow" not in self._seen]
        self._unfinished = sum(map(_noted, being_written))

    def line(self) -> str:
        """Returns the line that says how far the split is."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        counts, new = self._counts, self._counts - self._before
        rate = (new["done"] + self._unfinished) / seconds
        more = []
        if counts["done"]:
            shards = f" in {counts['done']:,} images of finished shards" if self._unfinished else ""
            more.append(f"{counts['written']:,} found, {counts['missing']:,} missing{shards}")
        if new["done"]:
            more.append(f"{new['read'] / seconds / 1e6:.1f} MB/s read, {new['wrote'] / seconds / 1e6:.1f} MB/s written")
        done = counts["done"] + self._unfinished
        return progress_line(self._split, done, self._requested, "images", rate, *more)


def _noted(path: Path) -> int:
    """Reads a count; 0 where the file was removed, because the shard is finished, or is just being written."""
    try:
        return int(path.read_text() or 0)
    except OSError:
        return 0
