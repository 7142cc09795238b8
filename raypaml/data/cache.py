"""Shards of a store on this node's disk: fetched whole, once for all processes of the node, within a bound.

A file is complete or not there: it is written under another name and renamed. Whoever needs a shard that is missing
fetches it under the shard's lock; the others wait for the lock. When room is needed, shards that are used up go first,
then those read longest ago. A reader that finds its shard gone fetches it again, so that nothing here can be wrong,
only slow. Locks are `flock`, released by the system when a process dies.
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

from raypaml.data.mixing import cache_bytes
from raypaml.data.plan import Span
from raypaml.data.storage import Location, with_retries

_CHUNK = 1 << 23
"""Bytes asked for at once; a failed chunk is asked for again, what came before it is kept."""
TOUCH_SECONDS = 10.0
"""A shard that is read says so this often."""
STALE_SECONDS = 3600.0
"""A shard not read for so long was left by another run: fetching ahead may take its place."""
THREADS = 4
"""Chunks of a shard fetched beside each other, so that the store's latency does not add up."""

_UNFINISHED = ".unfinished"


class CachedShards:
    """A remote folder of shards, read through the cache.

    Args:
        location: of the shards.
        folder: of the cache; several data sets may share it.
        prefix: of this data set's files in it.
        capacity: bytes of shards in the cache, all data sets together.
        patience: seconds for which a failing store is asked again.
    """

    def __init__(self, location: Location, folder: Path, prefix: str, capacity: int, patience: float = 60.0):
        self.location, self.folder, self.prefix = location, folder, prefix
        self.capacity, self.patience = capacity, patience
        (folder / "locks").mkdir(parents=True, exist_ok=True)

    def where(self, name: str) -> str:
        """As in `files.Shards`."""
        return str(self.location / name)

    def read(self, name: str, shard_bytes: int, offset: int, size: int) -> bytes:
        """As in `files.Shards`."""
        while True:
            try:
                with self._path(name).open("rb", buffering=0) as file:
                    if os.fstat(file.fileno()).st_mtime < time.time() - TOUCH_SECONDS:
                        os.utime(file.fileno())
                    return os.pread(file.fileno(), size, offset)
            except FileNotFoundError:
                self.fetch(name, shard_bytes)

    def renew(self, name: str) -> bool:
        """As in `files.Shards`."""
        with self._lock("cache"):
            self._path(name).unlink(missing_ok=True)
        return True

    def used_up(self, name: str) -> None:
        """Say that a shard may go; who still reads it says otherwise."""
        with suppress(FileNotFoundError):
            os.utime(self._path(name), (0, 0))

    def fetch(
        self, name: str, shard_bytes: int, *, ahead: bool = False, abandoned: Callable[[], bool] = lambda: False
    ) -> bool:
        """Have a shard in the cache; whether it is there now.

        Args:
            ahead: only if there is room beside what others may be reading; else room is made.
            abandoned: asked between chunks; True gives up.

        Raises:
            FileNotFoundError: the store has no such shard.
            OSError: the store failed for as long as patience lasts; the message names the shard and the byte.
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
                    time.sleep(0.05)  # what others are fetching right now will be ready, and may then go
        return True

    def _path(self, name: str) -> Path:
        return self.folder / f"{self.prefix}-{name}"

    @contextmanager
    def _lock(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold a lock among all processes of the node; whether it is held. Under "cache" files come and go."""
        with (self.folder / "locks" / name).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True

    def _reserve(self, unfinished: Path, size: int, *, ahead: bool) -> bool:
        """Make room for a file and take it; whether there was enough."""
        with self._lock("cache"):
            self._clear_unfinished(unfinished)
            files = [(entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in self._entries()]
            total = sum(found for _, found, _ in files)
            for used, found, path in sorted(files):
                if total + size <= self.capacity:
                    break
                if not path.endswith(_UNFINISHED) and not (ahead and used > time.time() - STALE_SECONDS):
                    Path(path).unlink()
                    total -= found
            if total + size > self.capacity:
                return False
            with unfinished.open("wb") as file:
                file.truncate(size)
            return True

    def _clear_unfinished(self, mine: Path) -> None:
        """Remove what processes that died have left, and what this one left before."""
        mine.unlink(missing_ok=True)
        for entry in self._entries():
            if entry.name.endswith(_UNFINISHED):
                with self._lock(entry.name.removesuffix(_UNFINISHED), wait=False) as held:
                    if held:
                        Path(entry.path).unlink()

    def _entries(self) -> list[os.DirEntry[str]]:
        with os.scandir(self.folder) as entries:
            return [entry for entry in entries if entry.is_file()]


def copy(
    source: Location, target: Path, size: int, patience: float = 60.0, abandoned: Callable[[], bool] = lambda: False
) -> bool:
    """Copy at most `size` bytes of a file of a store; False if abandoned. Errors as `CachedShards.fetch`."""
    filesystem, path = source.open()
    file = with_retries(lambda: filesystem.open_input_file(path), str(source), patience=patience)
    size = min(size, file.size())

    def fetch_chunk(offset: int) -> bool:
        if abandoned():
            return False
        what = f"{source}: bytes from {offset:,}"
        chunk = with_retries(partial(file.read_at, min(_CHUNK, size - offset), offset), what, patience=patience)
        return os.pwrite(descriptor, chunk, offset) == len(chunk)

    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT)  # not emptied: its length keeps its room in the cache
    try:
        os.truncate(descriptor, size)
        with file, ThreadPoolExecutor(THREADS) as pool:
            return all(pool.map(fetch_chunk, range(0, size, _CHUNK)))
    finally:
        os.close(descriptor)


class FetchAhead:
    """Fetches shards in the order of the plan, in a thread, as far as the cache has room.

    A failure here is not an error yet: who needs the shard will fetch it again, and name it.
    """

    def __init__(self, shards: CachedShards, names: Sequence[str], shard_bytes: Sequence[int], spans: Sequence[Span]):
        self.shards, self.names, self.shard_bytes = shards, names, shard_bytes
        self._by_end = sorted(spans, key=lambda span: -span.last_step)
        self._turn = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._fetch_all, args=(spans,), daemon=True)
        self._thread.start()

    def at(self, step: int) -> None:
        """Say that all steps before this one are done."""
        with self._turn:
            while self._by_end and self._by_end[-1].last_step < step:
                self.shards.used_up(self.names[self._by_end.pop().shard])
            self._turn.notify()

    def close(self) -> None:
        """Stop after the chunks under way."""
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
    """`FetchAhead` for a while; gives its `at`. ValueError if the cache cannot hold what is needed at once."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by Ray Train and torchrun
    needed = here * cache_bytes(spans, shard_bytes)
    if needed > shards.capacity:
        raise ValueError(
            f"cache_gb={shards.capacity / 1e9:g}: the {here} workers of this node read {needed / 1e9:.3g} GB of shards "
            "at a time; raise --cache-gb, lower --shuffle-window (0 needs them all), or use more nodes"
        )
    ahead = FetchAhead(shards, names, shard_bytes, spans)
    try:
        yield ahead.at
    finally:
        ahead.close()
