"""Which rank reads which samples in which step: functions of seed, epoch, shards, batch size, lanes and world size.

An epoch is a fixed sequence of global batches. Each batch is cut into `lanes`, whose number does not depend on the
workers; a rank has one or more neighbouring lanes. The global batches, their order and the order of samples within them
are therefore the same for every number of workers, and a run is continued from the cursor (epoch, step) alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import overload

import numpy as np
from numpy.typing import NDArray

from raypaml.data.shuffle_windows import Windows
from raypaml.labels import IntArray

MAX_LANES = 64
AT_ONCE = 16
"""The most samples that a loader thread takes at a time."""


def default_lanes(global_batch_size: int) -> int:
    """The largest divisor of the global batch size up to 64."""
    return max(n for n in range(1, MAX_LANES + 1) if global_batch_size % n == 0)


def lane_slices(lane_sizes: Sequence[int]) -> list[slice]:
    """The slice of each non-empty lane in this rank's part of a batch."""
    return [slice(end - size, end) for end, size in zip(accumulate(lane_sizes), lane_sizes, strict=True) if size]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One rank's part of one global batch."""

    rows: IntArray
    """[B] rows of this rank's samples; may be empty in a short last batch."""
    first_row: int
    """Position of `rows[0]` within the global batch."""
    global_rows: int
    """Number of samples of the global batch."""
    lane_sizes: tuple[int, ...]
    """Number of samples of each of this rank's lanes, in order; their sum is B."""
    flip: NDArray[np.bool_]
    """[B] whether to mirror each image, if the run mirrors images; the same whichever rank reads the sample."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """The first and the last step in which a rank reads a shard."""

    shard: int
    first_step: int
    last_step: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The canonical order of one split.

    Training shuffles anew in each epoch, and its last batch may be shorter, so that every sample is read exactly once
    per epoch. Evaluation (`shuffle=False`) reads the split in the order of the index.
    """

    num_samples: int
    global_batch_size: int
    lanes: int
    seed: int = 0
    shuffle: bool = True
    window: int = 0
    """Number of shards that a lane mixes (`data.shuffle_windows`); 0: an epoch is a permutation of all samples."""
    shard_sizes: tuple[int, ...] = field(default=(), repr=False)
    """Number of samples of each shard, in the order of the index."""

    def __post_init__(self) -> None:
        if self.global_batch_size % self.lanes:
            raise ValueError(f"lanes={self.lanes}: must divide global_batch_size={self.global_batch_size}")
        if self.window < 0:
            raise ValueError(f"shuffle_window={self.window}: must be at least 0")
        assert sum(self.shard_sizes) == self.num_samples or not (self.window or self.shard_sizes), "samples by shard"

    @property
    def steps(self) -> int:
        """Number of global batches per epoch."""
        return -(-self.num_samples // self.global_batch_size)

    def order(self, epoch: int) -> IntArray:
        """[N] the rows of all samples in the order of the epoch."""
        if not self.shuffle:
            return np.arange(self.num_samples)
        if self.window:
            return np.concatenate([np.empty(0, np.int64), *(part.rows for part in self.epoch(epoch, 0, 1))])
        return np.random.default_rng([self.seed, epoch, 0]).permutation(self.num_samples)

    def bounds(self, rank: int, world_size: int) -> tuple[int, int]:
        """The lanes [first, end) of a rank; the numbers of lanes of two ranks differ by at most one."""
        check_world_size(world_size, self.lanes)
        return rank * self.lanes // world_size, (rank + 1) * self.lanes // world_size

    def epoch(self, epoch: int, rank: int, world_size: int) -> Epoch:
        """One rank's part of every step of an epoch."""
        return Epoch(self, epoch, *self.bounds(rank, world_size))


class Epoch(Sequence[Part]):
    """The samples of the lanes [first, end) in every step of an epoch, computed when a step is accessed."""

    def __init__(self, plan: Plan, epoch: int, first_lane: int, end_lane: int):
        self.plan, self.epoch, self.first_lane, self.end_lane = plan, epoch, first_lane, end_lane

    def __len__(self) -> int:
        return self.plan.steps

    @overload
    def __getitem__(self, step: int) -> Part: ...
    @overload
    def __getitem__(self, step: slice) -> list[Part]: ...
    def __getitem__(self, step: int | slice) -> Part | list[Part]:
        if isinstance(step, slice):
            return [self[number] for number in range(*step.indices(len(self)))]
        step = range(len(self))[step]
        size, lanes = self.plan.global_batch_size, self.plan.lanes
        global_rows = min(size, self.plan.num_samples - step * size)
        ends = np.arange(self.first_lane, self.end_lane + 1) * global_rows // lanes
        rows = self._rows(step, ends)
        return Part(
            rows=rows,
            first_row=int(ends[0]),
            global_rows=global_rows,
            lane_sizes=tuple(np.diff(ends).tolist()),
            flip=self._coins[rows >> 3] >> (rows & 7).astype(np.uint8) & 1 == 1,
        )

    def _rows(self, step: int, ends: IntArray) -> IntArray:
        """The samples of the lanes of a step that lie between these `ends` in the global batch."""
        first = step * self.plan.global_batch_size
        if not self.plan.shuffle:
            return np.arange(first + ends[0], first + ends[-1])
        if not self.plan.window:
            return self._permutation[first + ends[0] : first + ends[-1]].astype(np.int64)
        begin = step * (self.plan.global_batch_size // self.plan.lanes)
        lanes = zip(range(self.first_lane, self.end_lane), np.diff(ends).tolist(), strict=True)
        return np.concatenate([self._windows.take(lane, begin, begin + size) for lane, size in lanes])

    @cached_property
    def _permutation(self) -> NDArray[np.int32]:
        return self.plan.order(self.epoch).astype(np.int32)

    @cached_property
    def _windows(self) -> Windows:
        return Windows(np.array(self.plan.shard_sizes), self.plan.lanes, self.plan.window, (self.plan.seed, self.epoch))

    @cached_property
    def _coins(self) -> NDArray[np.uint8]:
        """A random bit per sample, eight in a byte."""
        bits = np.random.default_rng([self.plan.seed, self.epoch, 1]).bytes(self.plan.num_samples // 8 + 1)
        return np.frombuffer(bits, np.uint8)

    def spans(self) -> list[Span]:
        """The steps in which these lanes read each shard, in the order in which a cache should fetch them."""
        per_lane = self.plan.global_batch_size // self.plan.lanes
        if not self.plan.shuffle:
            ends = np.cumsum(self.plan.shard_sizes)
            visits = zip(range(len(ends)), ends - self.plan.shard_sizes, ends, strict=True)
            return _spans(visits, self.plan.global_batch_size)
        if not self.plan.window:
            every = ((shard, 0, self.plan.num_samples) for shard in range(len(self.plan.shard_sizes)))
            return _spans(every, self.plan.global_batch_size)
        lanes = range(self.first_lane, self.end_lane)
        return _spans((visit for lane in lanes for visit in self._windows.visits(lane)), per_lane)


def _spans(visits: Iterable[tuple[int, int, int]], samples_per_step: int) -> list[Span]:
    """Join the visits (shard, first sample, end sample) of each shard into one span of steps."""
    steps: dict[int, tuple[int, int]] = {}
    for shard, begin, end in visits:
        if begin < end:
            first, last = begin // samples_per_step, (end - 1) // samples_per_step
            before = steps.get(shard, (first, last))
            steps[shard] = min(first, before[0]), max(last, before[1])
    spans = [Span(shard=shard, first_step=int(first), last_step=int(last)) for shard, (first, last) in steps.items()]
    return sorted(spans, key=lambda span: (span.first_step, span.last_step, span.shard))


def pieces(rows: int, loader_workers: int) -> list[range]:
    """The ranges of rows into which a part is divided for loader threads; each idle thread takes the next one."""
    size = min(AT_ONCE, max(1, -(-rows // loader_workers)))
    return [range(first, min(first + size, rows)) for first in range(0, rows, size)]


def check_world_size(world_size: int, lanes: int) -> None:
    """Raise ValueError if a worker would have no lane."""
    if not 1 <= world_size <= lanes:
        raise ValueError(
            f"workers={world_size}: this run has {lanes} lanes, and every worker needs one; use 1..{lanes} workers "
            "or a global_batch_size with a larger divisor up to 64"
        )
