"""A cache on this node's disk for the shards of a store: fetched whole, once for all processes of the node.

A file in the cache is always complete, because it is written under another name and then renamed. A process that needs
a missing shard fetches it under the shard's lock; the others wait for the lock. When room is needed, shards that are
used up are removed first, then those read longest ago. A reader whose shard was removed fetches it again, so that a
removal costs time but never correctness. Locks are `flock`, which the system releases when a process dies.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from raypaml.data.mixing import cache_bytes
from raypaml.data.plan import Span
from raypaml.data.storage import Location, with_retries
from raypaml.files import check_readable

_CHUNK = 1 << 23
"""Bytes of one request; after a failure only the failed chunk is requested again."""
TOUCH_SECONDS = 10.0
"""A reader updates the modification time of its shard once in this many seconds."""
STALE_SECONDS = 3600.0
"""A shard that was not read for this many seconds is left from another run, and may be removed for one fetched
ahead."""
THREADS = 4
"""Number of chunks of a shard that are fetched at the same time, to hide the store's latency."""

_UNFINISHED = ".unfinished"


class CachedShards:
    """A remote folder of shards, read through the cache.

    Args:
        location: the folder of the shards in the store.
        folder: the folder of the cache, which several data sets may share.
        prefix: the prefix of this data set's files in the cache.
        capacity: the most bytes of shards in the cache, of all data sets together.
        patience: seconds for which requests to a failing store are repeated.
    """

    def __init__(self, location: Location, folder: Path, prefix: str, capacity: int, patience: float = 60.0):
        self.location, self.folder, self.prefix = location, folder, prefix
        self.capacity, self.patience = capacity, patience
        (folder / "locks").mkdir(parents=True, exist_ok=True)

    def where(self, name: str) -> str:
        """As in `shard_files.Shards`."""
        return str(self.location / name)

    def read(self, name: str, shard_bytes: int, offset: int, size: int) -> bytes:
        """As in `shard_files.Shards`."""
        while True:
            try:
                with self._path(name).open("rb", buffering=0) as file:
                    if os.fstat(file.fileno()).st_mtime < time.time() - TOUCH_SECONDS:
                        with suppress(PermissionError):  # of another user, who may remove it sooner
                            os.utime(file.fileno())
                    return os.pread(file.fileno(), size, offset)
            except FileNotFoundError:
                self.fetch(name, shard_bytes)

    def renew(self, name: str) -> bool:
        """As in `shard_files.Shards`."""
        with self._lock("cache"):
            self._path(name).unlink(missing_ok=True)
        return True

    def used_up(self, name: str) -> None:
        """Mark a shard as one that may be removed; a process that still reads it undoes the mark."""
        with suppress(FileNotFoundError, PermissionError):  # the file of another user keeps its time
            os.utime(self._path(name), (0, 0))

    def fetch(
        self, name: str, shard_bytes: int, *, ahead: bool = False, abandoned: Callable[[], bool] = lambda: False
    ) -> bool:
        """Fetch a shard into the cache, unless it is there already.

        Args:
            name: the shard's file name.
            shard_bytes: its size.
            ahead: fetch it only if there is room without removing shards that others may be reading.
            abandoned: called between chunks; if it returns True, the fetching stops.

        Returns:
            Whether the shard is in the cache now.

        Raises:
            FileNotFoundError: the store has no such shard.
            OSError: the store kept failing for `patience` seconds; the message names the shard and the byte.
            ValueError: the cache is smaller than the shard.
        """
        if shard_bytes > self.capacity:
            raise ValueError(
                f"{self.where(name)}: {shard_bytes:,} bytes, the cache holds {self.capacity:,}; raise --cache-gb"
            )
        path = self._path(name)
        with self._lock(path.name):
            while not path.exists():
                unfinished = path.with_name(path.name + _UNFINISHED)
                if self._reserve(unfinished, shard_bytes, ahead=ahead):
                    if not copy(self.location / name, unfinished, shard_bytes, self.patience, abandoned):
                        return False
                    with self._lock("cache"):
                        unfinished.replace(path)
                elif ahead or abandoned():
                    return False
                else:
                    time.sleep(0.05)  # shards that others are fetching can be removed once they are complete
        return True

    def _path(self, name: str) -> Path:
        return self.folder / f"{self.prefix}-{name}"

    @contextmanager
    def _lock(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold a lock among all processes of the node; gives whether it is held.

        The lock "cache" is held to add and remove files, the lock of a file to fetch it.
        """
        with _opened_lock(self.folder / "locks" / name) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True

    def _reserve(self, unfinished: Path, size: int, *, ahead: bool) -> bool:
        """Reserve room for a file, by removing others if need be; returns whether there was enough."""
        with self._lock("cache"):
            self._clear_unfinished(unfinished)
            files = [(entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in self._entries()]
            total = sum(file_size for _, file_size, _ in files)
            for used, file_size, path in sorted(files):
                if total + size <= self.capacity:
                    break
                if not path.endswith(_UNFINISHED) and not (ahead and used > time.time() - STALE_SECONDS):
                    Path(path).unlink()
                    total -= file_size
            if total + size > self.capacity:
                return False
            with unfinished.open("wb") as file:
                file.truncate(size)
            return True

    def _clear_unfinished(self, mine: Path) -> None:
        """Remove unfinished files that dead processes left, and the one that this process is about to write."""
        mine.unlink(missing_ok=True)
        for entry in self._entries():
            if entry.name.endswith(_UNFINISHED):
                with self._lock(entry.name.removesuffix(_UNFINISHED), wait=False) as held:
                    if held:
                        Path(entry.path).unlink()

    def _entries(self) -> list[os.DirEntry[str]]:
        with os.scandir(self.folder) as entries:
            return [entry for entry in entries if entry.is_file()]


def _opened_lock(path: Path) -> IO[str]:
    """Open a file to lock it; that of another user who shares the cache for reading only, as far as that is allowed."""
    try:
        return path.open("w")
    except PermissionError:
        check_readable(path)
        return path.open()


def copy(
    source: Location, target: Path, size: int, patience: float = 60.0, abandoned: Callable[[], bool] = lambda: False
) -> bool:
    """Copy at most `size` bytes of a file of a store; returns False if abandoned. Raises as `CachedShards.fetch`."""
    filesystem, path = source.open()
    file = with_retries(lambda: filesystem.open_input_file(path), str(source), patience=patience)
    size = min(size, file.size())

    def fetch_chunk(offset: int) -> bool:
        if abandoned():
            return False
        what = f"{source}: bytes from {offset:,}"
        chunk = with_retries(partial(file.read_at, min(_CHUNK, size - offset), offset), what, patience=patience)
        return os.pwrite(descriptor, chunk, offset) == len(chunk)

    # not truncated to 0: its length reserves room in the cache
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.truncate(descriptor, size)
        with file, ThreadPoolExecutor(THREADS) as pool:
            return all(pool.map(fetch_chunk, range(0, size, _CHUNK)))
    finally:
        os.close(descriptor)


class FetchAhead:
    """Fetches shards in the order of the plan, in a thread, as far as the cache has room.

    A failure is ignored here: the reader that needs the shard will fetch it again, and report the error.
    """

    def __init__(self, shards: CachedShards, names: Sequence[str], shard_bytes: Sequence[int], spans: Sequence[Span]):
        self.shards, self.names, self.shard_bytes = shards, names, shard_bytes
        self._by_end = sorted(spans, key=lambda span: -span.last_step)
        self._turn = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._fetch_all, args=(spans,), daemon=True)
        self._thread.start()

    def at(self, step: int) -> None:
        """Note that all steps before this one are done."""
        with self._turn:
            while self._by_end and self._by_end[-1].last_step < step:
                self.shards.used_up(self.names[self._by_end.pop().shard])
            self._turn.notify()

    def close(self) -> None:
        """Stop once the chunks that are being fetched are complete."""
        with self._turn:
            self._closed = True
            self._turn.notify()
        self._thread.join()

    def _fetch_all(self, spans: Sequence[Span]) -> None:
        for span in spans:
            name, size = self.names[span.shard], self.shard_bytes[span.shard]
            with suppress(OSError, ValueError):
                while not self._closed and not self.shards.fetch(
                    name, size, ahead=True, abandoned=lambda: self._closed
                ):
                    with self._turn:
                        self._turn.wait(1.0)


@contextmanager
def fetching_ahead(
    shards: CachedShards, names: Sequence[str], shard_bytes: Sequence[int], spans: Sequence[Span]
) -> Iterator[Callable[[int], None]]:
    """Fetch shards ahead during the block; gives `FetchAhead.at`.

    Raises:
        ValueError: the cache cannot hold the shards that the workers of this node read at the same time.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by Ray Train and torchrun
    needed = here * cache_bytes(spans, shard_bytes)
    if needed > shards.capacity:
        raise ValueError(
            f"cache_gb={shards.capacity / 1e9:g}: this node's workers ({here}) read {needed / 1e9:.3g} GB of shards "
            "at a time; raise --cache-gb, lower --shuffle-window (0 needs them all), or use more nodes"
        )
    ahead = FetchAhead(shards, names, shard_bytes, spans)
    try:
        yield ahead.at
    finally:
        ahead.close()
