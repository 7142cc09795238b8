"""Reads the batches of a plan: images by offset from the shards, checked and decoded, and labels from the index."""

from __future__ import annotations

import weakref
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypaml.data.cache import CachedShards, fetching_ahead
from raypaml.data.images import Pixels, decode
from raypaml.data.index import Index
from raypaml.data.plan import Epoch, Part, pieces
from raypaml.data.shard_files import LocalShards, Shards

BrokenReason = Literal[
    "is not there", "is cut short", "does not match its CRC-32", "cannot be decoded", "is of another size"
]

AHEAD = 2
"""The number of batches that loader threads read ahead."""
MAX_BUFFERS = AHEAD + 2
"""Buffers that are kept for later batches: those read ahead, the one in training, and the one just requested."""


class BrokenSampleError(ValueError):
    """A sample whose stored bytes cannot be used; the same bytes are broken wherever they are read."""

    def __init__(self, message: str, reason: BrokenReason = "is not there"):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's part of a global batch. B may be 0 in a short last batch."""

    images: Tensor
    """uint8 [B, 3, H, W], channels last; they are mirrored and normalised later, on the device. Training on kept
    features has float16 [B, D, h, w] instead.
    """
    labels: Tensor
    """int8 [B, K] in {1 positive, 0 negative, -1 unobserved}."""
    truth: Tensor | None
    """int8 [B, K] full labels, None where they are not known; rejections are judged by them, no loss uses them."""
    flip: Tensor
    """bool [B] images to mirror, if the run mirrors at all."""
    rows: NDArray[np.int64]
    """[B] rows of the samples in the index."""
    keys: list[str]
    lane_sizes: tuple[int, ...]
    first_row: int
    global_rows: int
    skipped: tuple[tuple[int, BrokenReason], ...] = ()
    """Broken samples (row, reason) that were planned for this batch and left out of it; see `skip_broken`."""


class Reader:
    """The batches of one rank, by step.

    Args:
        shards: the shards, or their local folder.
        index: the index of the split.
        parts: this rank's part of every step, from the plan.
        full_labels: whether `labels` are the full labels (scheme `full`).
        with_truth: whether batches have the full labels too, where these are known.
        skip_broken: leave broken samples out and name them in the batch, instead of raising `BrokenSampleError`.
        with_images: whether to read images; otherwise those of a batch have 0 x 0 pixels.
    """

    def __init__(
        self,
        shards: Shards | Path,
        index: Index,
        parts: Sequence[Part],
        *,
        full_labels: bool = False,
        with_truth: bool = False,
        skip_broken: bool = False,
        with_images: bool = True,
    ):
        self.shards = LocalShards(shards) if isinstance(shards, Path) else shards
        self.index, self.parts, self.skip_broken = index, parts, skip_broken
        self.full_labels, self.with_truth = full_labels, with_truth and index.has_truth
        self.with_images = with_images
        self.shape = self._first_shape() if with_images else (0, 0, 3)
        """The shape [H, W, 3] that all images of the split have."""
        self._buffers: list[tuple[Pixels, weakref.ref[Pixels]]] = []

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, step: int) -> Batch:
        return self.batch(step)

    def batch(self, step: int, *, pin_memory: bool = False) -> Batch:
        """The batch of a step, read by the calling thread; `pin_memory` allows asynchronous copies to a GPU."""
        part = self.parts[step]
        images, pixels = self._memory(len(part.rows), pin_memory)
        return self._batch(part, images, self._fill(part, pixels, range(len(part.rows))), pin_memory)

    def begin(
        self, step: int, threads: ThreadPoolExecutor, loader_workers: int, *, pin_memory: bool = False
    ) -> Callable[[], Batch]:
        """Start to read the batch of a step in `loader_workers` of the threads.

        Returns:
            A function that waits for these threads and returns the batch.
        """
        part = self.parts[step]
        images, pixels = self._memory(len(part.rows), pin_memory)
        started = [threads.submit(self._fill, part, pixels, piece) for piece in pieces(len(part.rows), loader_workers)]

        def finish() -> Batch:
            broken = {position: why for piece in started for position, why in piece.result().items()}
            return self._batch(part, images, broken, pin_memory)

        return finish

    def _fill(self, part: Part, pixels: Pixels, positions: range) -> dict[int, BrokenReason]:
        """Read some samples of a part into their positions in `pixels`; returns the broken ones by position."""
        broken: dict[int, BrokenReason] = {}
        for position in positions if self.with_images else ():
            try:
                self._read_into(int(part.rows[position]), pixels[position])
            except BrokenSampleError as error:
                if not self.skip_broken:
                    raise
                broken[position] = error.reason
        return broken

    def _memory(self, rows: int, pin_memory: bool) -> tuple[Tensor, Pixels]:
        """Memory [B, H, W, 3] for a batch, as a tensor and as an array that share it."""
        if not pin_memory:
            pixels = self._buffer(rows)
            return torch.from_numpy(pixels), pixels
        pinned = torch.empty((rows, *self.shape), dtype=torch.uint8, pin_memory=True)
        return pinned, pinned.numpy()  # torch reuses it once all copies from it are done

    def _buffer(self, rows: int) -> Pixels:
        """Memory [B, H, W, 3] of an earlier batch that is no longer used, or new memory.

        The operating system takes 1/20 of the time of decoding to provide new pages, which reuse saves.
        """
        free = (kept for kept, holder in self._buffers if holder() is None and len(kept) >= rows)
        buffer = next(free, None)
        if buffer is None:
            buffer = np.empty((rows, *self.shape), np.uint8)
        images = buffer[:rows]
        others = [(kept, holder) for kept, holder in self._buffers if kept is not buffer]
        self._buffers = [*others, (buffer, weakref.ref(images))][-MAX_BUFFERS:]
        return images

    def _batch(self, part: Part, images: Tensor, broken: dict[int, BrokenReason], pin_memory: bool) -> Batch:
        """The batch without its broken samples, in the planned order, which also decides ties."""

        def pinned(values: NDArray[np.generic]) -> Tensor:
            tensor = torch.from_numpy(values)
            return tensor.pin_memory() if pin_memory else tensor

        kept = np.delete(np.arange(len(part.rows)), list(broken))
        rows = part.rows[kept]
        lane_of = np.repeat(np.arange(len(part.lane_sizes)), part.lane_sizes)[kept]
        labels = self.index.truth(rows) if self.full_labels else self.index.labels(rows)
        return Batch(
            images=(pinned(images.numpy()[kept]) if broken else images).permute(0, 3, 1, 2),
            labels=pinned(labels),
            truth=pinned(self.index.truth(rows)) if self.with_truth else None,
            flip=pinned(part.flip[kept]),
            rows=rows,
            keys=self.index.keys(rows),
            lane_sizes=tuple(np.bincount(lane_of, minlength=len(part.lane_sizes)).tolist()),
            first_row=part.first_row,
            global_rows=part.global_rows,
            skipped=tuple((int(part.rows[position]), reason) for position, reason in broken.items()),
        )

    def image(self, row: int) -> Pixels:
        """The RGB image [H, W, 3] of one sample."""
        pixels = np.empty(self.shape, np.uint8)
        self._read_into(row, pixels)
        return pixels

    def _read_into(self, row: int, pixels: Pixels) -> None:
        decoded = self._decode(row, pixels)
        if decoded.shape != pixels.shape:
            sizes = f"{decoded.shape[:2]}, others {pixels.shape[:2]}"
            raise BrokenSampleError(f"{self.name(row)} is {sizes}; shard with --resize", "is of another size")
        if not np.may_share_memory(decoded, pixels):
            pixels[:] = decoded

    def _first_shape(self) -> tuple[int, ...]:
        for row in range(len(self.index)):
            try:
                return self._decode(row).shape
            except BrokenSampleError:
                if not self.skip_broken:
                    raise
        raise ValueError(f"{self.index.where}: none of the {len(self.index):,} images can be read")

    def _decode(self, row: int, into: Pixels | None = None) -> Pixels:
        content = self._read(row)
        try:
            return decode(content, into)
        except ValueError as error:
            raise BrokenSampleError(f"{self.name(row)} {error}", "cannot be decoded") from None

    def _read(self, row: int) -> bytes:
        try:
            return self._checked(row)
        except BrokenSampleError:
            if not self.shards.renew(self.index.shards[int(self.index.shard[row])]):
                raise
            return self._checked(row)

    def _checked(self, row: int) -> bytes:
        index, shard = self.index, int(self.index.shard[row])
        offset, size = int(index.offset[row]), int(index.size[row])
        try:
            content = self.shards.read(index.shards[shard], index.shard_bytes[shard], offset, size)
        except FileNotFoundError:
            raise BrokenSampleError(f"{self.name(row)} is not there: no such shard", "is not there") from None
        except OSError as error:  # the disk or store may work again later, so such a sample is never skipped
            raise ValueError(f"{self.name(row)} cannot be read: {error.strerror or error}") from None
        again = "copy or write the shard again"
        if len(content) < size:
            message = f"{self.name(row)} is cut short, {len(content):,} of {size:,} bytes; {again}"
            raise BrokenSampleError(message, "is cut short")
        if zlib.crc32(content) != index.crc32[row]:
            message = f"{self.name(row)} does not match its CRC-32; {again}"
            raise BrokenSampleError(message, "does not match its CRC-32")
        return content

    def name(self, row: int) -> str:
        """A sample's shard, key and byte offset, for messages."""
        shard = self.shards.where(self.index.shards[int(self.index.shard[row])])
        key = self.index.keys(np.array([row]))[0]
        return f"{shard}: image {key!r} at byte {int(self.index.offset[row])}"


def read(reader: Reader, *, start_step: int = 0, loader_workers: int = 0, pin_memory: bool = False) -> Iterator[Batch]:
    """The batches from `start_step` on, in order, read ahead by `loader_workers` threads; 0: by the calling thread.

    Threads suffice, because reading, checking and decoding release Python's lock. Processes would cost half as much
    time again for sending batches (tools/bench/BENCHMARKS.md), and their memory would grow with their number. Shards
    of a store are fetched ahead in the meantime.
    """
    steps = range(start_step, len(reader))
    batches = (
        _by_threads(reader, steps, loader_workers, pin_memory)
        if loader_workers
        else (reader.batch(step, pin_memory=pin_memory) for step in steps)
    )
    with _ahead(reader, start_step) as at, closing(batches):
        for step, batch in zip(steps, batches, strict=True):
            at(step)
            yield batch
        at(len(reader))


def _by_threads(reader: Reader, steps: range, loader_workers: int, pin_memory: bool) -> Generator[Batch]:
    threads, begun = ThreadPoolExecutor(loader_workers, "loader"), deque[Callable[[], Batch]]()
    try:
        for step in steps:
            begun.append(reader.begin(step, threads, loader_workers, pin_memory=pin_memory))
            if len(begun) > AHEAD:
                yield begun.popleft()()
        while begun:
            yield begun.popleft()()
    finally:
        threads.shutdown(cancel_futures=True)


def _ahead(reader: Reader, start_step: int) -> AbstractContextManager[Callable[[int], None]]:
    """Fetch shards ahead during an epoch if they lie in a store; gives a function that takes the steps done so far."""
    shards, parts, index = reader.shards, reader.parts, reader.index
    if not (reader.with_images and isinstance(shards, CachedShards) and isinstance(parts, Epoch)):
        return nullcontext(lambda _: None)
    spans = [span for span in parts.spans() if span.last_step >= start_step]
    return fetching_ahead(shards, index.shards, index.shard_bytes, spans)
