"""Read what the plan says: images by offset from the shards, checked and decoded; labels from the index."""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from raypaml.data.cache import CachedShards, fetching_ahead
from raypaml.data.files import LocalShards, Shards
from raypaml.data.images import Pixels, decode
from raypaml.data.index import Index
from raypaml.data.plan import Epoch, Part
from raypaml.labels import NEGATIVE, UNOBSERVED

Reason = Literal["is not there", "is cut short", "does not match its CRC-32", "cannot be decoded", "is of another size"]


MAX_BUFFERS = 3
"""Of batches, kept for those to come: one is trained on, one has just been read."""


class BrokenSampleError(ValueError):
    """A sample that cannot be used; whether one is depends on its bytes alone."""

    def __init__(self, message: str, reason: Reason = "is not there"):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's part of a global batch. B may be 0 in a short last batch."""

    images: Tensor
    """uint8 [B, 3, H, W], channels last; mirrored and normalised on the device."""
    label_cells: tuple[Tensor, Tensor]
    """What travels between processes: int64 [E] cells of [B, K], flattened, and their int8 [E] labels."""
    unlisted: int
    """Label of all other cells: unobserved, or negative where `label_cells` are the full labels."""
    truth_cells: tuple[Tensor, Tensor] | None
    """The same of the full labels, all other cells negative; None where they are not known or not asked for."""
    num_classes: int
    flip: Tensor
    """bool [B] images to mirror, where the recipe does."""
    rows: NDArray[np.int64]
    """[B] sample numbers."""
    keys: list[str]
    lane_sizes: tuple[int, ...]
    first_row: int
    global_rows: int
    skipped: tuple[tuple[int, Reason], ...] = ()
    """Planned samples (number, reason) that are not in this batch, for they are broken; see `skip_broken`."""

    @cached_property
    def labels(self) -> Tensor:
        """int8 [B, K] in {1 positive, 0 negative, -1 unobserved}."""
        return self._dense(self.label_cells, self.unlisted)

    @cached_property
    def truth(self) -> Tensor | None:
        """int8 [B, K] full labels where known, to judge rejections by; never in a partial-label loss."""
        return None if self.truth_cells is None else self._dense(self.truth_cells, NEGATIVE)

    def _dense(self, cells: tuple[Tensor, Tensor], rest: int) -> Tensor:
        flat = torch.full((len(self.rows) * self.num_classes,), rest, dtype=torch.int8)
        return flat.scatter_(0, *cells).view(len(self.rows), self.num_classes)

    def pin_memory(self) -> Batch:
        """With the images where a GPU fetches them by itself; called by the loader."""
        return dataclasses.replace(self, images=self.images.pin_memory())


class Reader(Dataset[Batch]):
    """Step -> Batch. Each process that uses it opens the shards for itself.

    Args:
        shards: where they lie, or their local folder.
        index: of the split.
        parts: one rank's part of every step, from the plan.
        full_labels: give the full labels as labels (scheme `full`).
        with_truth: give the full labels beside the observed ones, where they are known.
        skip_broken: leave broken samples out and name them in the batch, instead of raising `BrokenSampleError`.
        with_images: read the images; without, a batch has images of 0 x 0 pixels.
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
        """[H, W, 3], of all images of the split."""
        self._buffers: list[tuple[Pixels, weakref.ref[Pixels]]] = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_buffers": []}

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, step: int) -> Batch:
        part = self.parts[step]
        images = self._buffer(len(part.rows))
        skipped: dict[int, Reason] = {}
        for position, row in enumerate(part.rows.tolist() if self.with_images else ()):
            try:
                self._read_into(row, images[position])
            except BrokenSampleError as error:
                if not self.skip_broken:
                    raise
                skipped[position] = error.reason
        kept = np.delete(np.arange(len(part.rows)), list(skipped))
        return self._batch(part, images if not skipped else images[kept], kept, skipped)

    def _buffer(self, rows: int) -> Pixels:
        """[B, H, W, 3] memory of an earlier batch that is gone, or new: for the system to give out a new page takes a
        twentieth of the time that it takes to decode into it.
        """
        free = (kept for kept, holder in self._buffers if holder() is None and len(kept) >= rows)
        buffer = next(free, None)
        if buffer is None:
            buffer = np.empty((rows, *self.shape), np.uint8)
        images = buffer[:rows]
        others = [(kept, holder) for kept, holder in self._buffers if kept is not buffer]
        self._buffers = [*others, (buffer, weakref.ref(images))][-MAX_BUFFERS:]
        return images

    def _batch(self, part: Part, images: Pixels, kept: NDArray[np.int64], skipped: dict[int, Reason]) -> Batch:
        """The batch of the samples kept; their order, and so their place among ties, is the planned one."""
        rows = part.rows[kept]
        lane_of = np.repeat(np.arange(len(part.lane_sizes)), part.lane_sizes)[kept]
        truth = self.index.truth_cells(rows) if self.full_labels or self.with_truth else None
        observed = truth if self.full_labels and truth is not None else self.index.label_cells(rows)
        return Batch(
            images=torch.from_numpy(images).permute(0, 3, 1, 2),
            label_cells=_tensors(*observed),
            unlisted=NEGATIVE if self.full_labels else UNOBSERVED,
            truth_cells=_tensors(*truth) if truth is not None and self.with_truth else None,
            num_classes=self.index.num_classes,
            flip=torch.from_numpy(part.flip[kept]),
            rows=rows,
            keys=self.index.keys(rows),
            lane_sizes=tuple(np.bincount(lane_of, minlength=len(part.lane_sizes)).tolist()),
            first_row=part.first_row,
            global_rows=part.global_rows,
            skipped=tuple((int(part.rows[position]), reason) for position, reason in skipped.items()),
        )

    def image(self, row: int) -> Pixels:
        """[H, W, 3] RGB of one sample."""
        pixels = np.empty(self.shape, np.uint8)
        self._read_into(row, pixels)
        return pixels

    def _read_into(self, row: int, pixels: Pixels) -> None:
        found = self._decode(row, pixels)
        if found.shape != pixels.shape:
            sizes = f"{found.shape[:2]}, others {pixels.shape[:2]}"
            raise BrokenSampleError(f"{self.name(row)} is {sizes}; shard with --resize", "is of another size")
        if not np.may_share_memory(found, pixels):
            pixels[:] = found

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
        except OSError as error:  # a disk or a store that fails today may not tomorrow: never skipped
            raise ValueError(f"{self.name(row)} cannot be read: {error.strerror or error}") from None
        again = "copy or write the shard again"
        if len(content) < size:
            said = f"{self.name(row)} is cut short, {len(content):,} of {size:,} bytes; {again}"
            raise BrokenSampleError(said, "is cut short")
        if zlib.crc32(content) != index.crc32[row]:
            said = f"{self.name(row)} does not match its CRC-32; {again}"
            raise BrokenSampleError(said, "does not match its CRC-32")
        return content

    def name(self, row: int) -> str:
        """Shard, key and byte of a sample."""
        shard = self.shards.where(self.index.shards[int(self.index.shard[row])])
        key = self.index.keys(np.array([row]))[0]
        return f"{shard}: image {key!r} at byte {int(self.index.offset[row])}"


def _tensors(cells: NDArray[np.int64], labels: NDArray[np.int8]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(cells), torch.from_numpy(labels)


class _Answers(Dataset[Batch | ValueError]):
    """What a reader gives or says, so that its message reaches the user without the traceback of another process."""

    def __init__(self, reader: Reader):
        self.reader = reader

    def __getitem__(self, step: int) -> Batch | ValueError:
        try:
            return self.reader[step]
        except ValueError as error:
            return error


def read(reader: Reader, *, start_step: int = 0, loader_workers: int = 0, pin_memory: bool = False) -> Iterator[Batch]:
    """The batches from `start_step` on, in order, decoded by `loader_workers` processes (0: in this one).

    Shards of a store are fetched ahead meanwhile, by threads of this process. Loader processes are then started afresh
    instead of forked, for a store's client does not survive a fork.
    """
    remote = isinstance(reader.shards, CachedShards)
    multiprocessing.set_forkserver_preload(["raypaml.data.batches"])
    loader = DataLoader(
        _Answers(reader),
        batch_size=None,
        sampler=range(start_step, len(reader)),
        num_workers=loader_workers,
        pin_memory=pin_memory,
        multiprocessing_context="forkserver" if remote and loader_workers else None,
    )
    with _ahead(reader, start_step) as at:
        with _without_main():
            answers = iter(loader)
        for step, answer in enumerate(answers, start_step):
            at(step)
            if isinstance(answer, ValueError):
                raise answer
            yield answer
        at(len(reader))


@contextmanager
def _without_main() -> Iterator[None]:
    """Processes started afresh import the program's main module (of a Ray worker: Ray), which ours have no need of."""
    main = sys.modules["__main__"].__dict__
    saved: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main["__spec__"] = main["__file__"] = None
    try:
        yield
    finally:
        del main["__file__"]
        main.update(saved)


def _ahead(reader: Reader, start_step: int) -> AbstractContextManager[Callable[[int], None]]:
    """Shards of an epoch are fetched ahead where they lie in a store; takes the number of steps done."""
    shards, parts, index = reader.shards, reader.parts, reader.index
    if not (isinstance(shards, CachedShards) and isinstance(parts, Epoch)):
        return nullcontext(lambda _: None)
    spans = [span for span in parts.spans() if span.last_step >= start_step]
    return fetching_ahead(shards, index.shards, index.shard_bytes, spans)
