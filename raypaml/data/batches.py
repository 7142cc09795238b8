"""Read what the plan says: images by offset from the shards, checked and decoded; labels from the index."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from raypaml.data.images import decode
from raypaml.data.index import Index
from raypaml.data.plan import Part

MAX_OPEN = 64
"""Shards a reader keeps open."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's part of a global batch. B may be 0 in a short last batch."""

    images: Tensor
    """uint8 [B, 3, H, W]; mirrored and normalised on the device."""
    labels: Tensor
    """int8 [B, K] in {1 positive, 0 negative, -1 unobserved}."""
    truth: Tensor | None
    """int8 [B, K] full labels where known, to judge rejections by; never in a partial-label loss."""
    flip: Tensor
    """bool [B] images to mirror, where the recipe does."""
    rows: NDArray[np.int64]
    """[B] sample numbers."""
    keys: list[str]
    lane_sizes: tuple[int, ...]
    first_row: int
    global_rows: int


class OpenFiles:
    """Descriptors of the files read last; pickled, it starts empty, for descriptors stay in their process."""

    def __init__(self) -> None:
        self._found: OrderedDict[Path, int] = OrderedDict()

    def open(self, path: Path) -> int:
        """A descriptor for reading; the one used longest ago is closed where there are too many."""
        if path not in self._found:
            self._found[path] = os.open(path, os.O_RDONLY)
            if len(self._found) > MAX_OPEN:
                os.close(self._found.popitem(last=False)[1])
        self._found.move_to_end(path)
        return self._found[path]

    def __del__(self) -> None:
        for descriptor in self._found.values():
            os.close(descriptor)

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[()]]:
        return OpenFiles, ()


class Reader(Dataset[Batch]):
    """Step -> Batch. Each process that uses it opens the shards for itself.

    Args:
        folder: where the shards lie.
        index: of the split.
        parts: one rank's part of every step, from the plan.
        full_labels: give the full labels as labels (scheme `full`).
        with_truth: give the full labels beside the observed ones, where they are known.
        with_images: read the images; without, a batch has images of 0 x 0 pixels.
    """

    def __init__(
        self,
        folder: Path,
        index: Index,
        parts: Sequence[Part],
        *,
        full_labels: bool = False,
        with_truth: bool = False,
        with_images: bool = True,
    ):
        self.folder, self.index, self.parts = folder, index, parts
        self.full_labels, self.with_truth = full_labels, with_truth and index.has_truth
        self._files = OpenFiles()
        self.with_images = with_images
        self._shape = self._decode(0).shape if with_images else (0, 0, 3)  # all images of a split have one size

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, step: int) -> Batch:
        part = self.parts[step]
        rows = part.rows
        images = np.empty((len(rows), *self._shape), np.uint8)
        for position, row in enumerate(rows if self.with_images else ()):
            images[position] = self.image(int(row))
        labels = self.index.truth(rows) if self.full_labels else self.index.labels(rows)
        return Batch(
            images=torch.from_numpy(images).permute(0, 3, 1, 2),
            labels=torch.from_numpy(labels),
            truth=torch.from_numpy(self.index.truth(rows)) if self.with_truth else None,
            flip=torch.from_numpy(part.flip),
            rows=rows,
            keys=self.index.keys(rows),
            lane_sizes=part.lane_sizes,
            first_row=part.first_row,
            global_rows=part.global_rows,
        )

    def image(self, row: int) -> NDArray[np.uint8]:
        """[H, W, 3] RGB of one sample."""
        pixels = self._decode(row)
        if pixels.shape != self._shape:
            raise ValueError(f"{self._name(row)} is {pixels.shape[:2]}, others {self._shape[:2]}; shard with --resize")
        return pixels

    def _decode(self, row: int) -> NDArray[np.uint8]:
        content = self._read(row)
        try:
            return decode(content)
        except ValueError as error:
            raise ValueError(f"{self._name(row)} {error}") from None

    def _read(self, row: int) -> bytes:
        shard = self.folder / self.index.shards[int(self.index.shard[row])]
        try:
            content = os.pread(self._files.open(shard), int(self.index.size[row]), int(self.index.offset[row]))
        except OSError as error:
            raise ValueError(f"{self._name(row)} cannot be read: {error.strerror}") from None
        if zlib.crc32(content) != self.index.crc32[row]:
            raise ValueError(f"{self._name(row)} does not match its CRC-32; copy or write the shard again")
        return content

    def _name(self, row: int) -> str:
        shard = self.folder / self.index.shards[int(self.index.shard[row])]
        key = self.index.keys(np.array([row]))[0]
        return f"{shard}: image {key!r} at byte {int(self.index.offset[row])}"


def read(reader: Reader, *, start_step: int = 0, loader_workers: int = 0, pin_memory: bool = False) -> Iterator[Batch]:
    """The batches from `start_step` on, in order, decoded by `loader_workers` processes (0: in this one)."""
    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=range(start_step, len(reader)),
        num_workers=loader_workers,
        pin_memory=pin_memory,
    )
    return iter(loader)
