"""Who reads which sample when: pure functions of (seed, epoch, samples, batch size, lanes, world size).

An epoch is a fixed sequence of global batches. Each batch is cut into `lanes`, a number that does not depend on the
workers; a rank owns a run of neighbouring lanes. So the global batches, their order and the order of samples within
them are the same for every number of workers, and the cursor (epoch, step) is all that resuming needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_LANES = 64

Rows = NDArray[np.int64]


def default_lanes(global_batch_size: int) -> int:
    """The largest divisor of the global batch size up to 64."""
    return max(n for n in range(1, MAX_LANES + 1) if global_batch_size % n == 0)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One rank's part of one global batch."""

    rows: Rows
    """[B] samples of this rank; may be empty in a short last batch."""
    first_row: int
    """Position of `rows[0]` within the global batch."""
    global_rows: int
    """Samples of the whole global batch."""
    lane_sizes: tuple[int, ...]
    """Samples of each of this rank's lanes, in order; they add up to B."""
    flip: NDArray[np.bool_]
    """[B] whether to mirror each image, if the recipe augments; drawn per sample, not per rank."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The canonical order of one split.

    Training shuffles per epoch and keeps a shorter last batch, so every sample is seen exactly once per epoch;
    evaluation (`shuffle=False`) goes through the split in index order.
    """

    num_samples: int
    global_batch_size: int
    lanes: int
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.global_batch_size % self.lanes:
            raise ValueError(f"lanes={self.lanes}: must divide global_batch_size={self.global_batch_size}")

    @property
    def steps(self) -> int:
        """Global batches per epoch."""
        return -(-self.num_samples // self.global_batch_size)

    def order(self, epoch: int) -> Rows:
        """[N] all samples in the order of the epoch."""
        if not self.shuffle:
            return np.arange(self.num_samples)
        return self._rng(epoch, 0).permutation(self.num_samples)

    def flips(self, epoch: int) -> NDArray[np.bool_]:
        """[N] a coin per sample."""
        return self._rng(epoch, 1).integers(0, 2, self.num_samples).astype(bool)

    def _rng(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, stream])

    def bounds(self, rank: int, world_size: int) -> tuple[int, int]:
        """The lanes [first, end) that a rank owns; ranks differ by at most one lane."""
        check_world_size(world_size, self.lanes)
        return rank * self.lanes // world_size, (rank + 1) * self.lanes // world_size

    def epoch(self, epoch: int, rank: int, world_size: int) -> list[Part]:
        """Every step's part of one rank."""
        first_lane, end_lane = self.bounds(rank, world_size)
        order, flips = self.order(epoch), self.flips(epoch)
        parts = []
        for start in range(0, self.num_samples, self.global_batch_size):
            batch = order[start : start + self.global_batch_size]
            ends = np.arange(first_lane, end_lane + 1) * len(batch) // self.lanes
            rows = batch[ends[0] : ends[-1]]
            parts.append(
                Part(
                    rows=rows,
                    first_row=int(ends[0]),
                    global_rows=len(batch),
                    lane_sizes=tuple(np.diff(ends).tolist()),
                    flip=flips[rows],
                )
            )
        return parts


def check_world_size(world_size: int, lanes: int) -> None:
    """Raise ValueError if some worker would have no lane."""
    if not 1 <= world_size <= lanes:
        raise ValueError(
            f"workers={world_size}: this run has {lanes} lanes, and every worker needs one; use 1..{lanes} workers "
            "or a global_batch_size with a larger divisor up to 64"
        )
