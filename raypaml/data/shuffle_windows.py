"""A random order that needs few shards at a time: shards are permuted, and samples shuffled in windows of shards.

The shards of an epoch, in a new random order, form one long sequence of samples. It is cut into lanes of equal length,
whose ends may lie within shards, and every lane into windows of several shards, within which samples are permuted. A
lane therefore needs only the shards of its window at a time, while a batch has samples of every lane and so from all
parts of the data set.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from raypaml.labels import IntArray


class Windows:
    """The order of one epoch.

    Args:
        shard_sizes: [S] number of samples of each shard, in the order of the index; they may differ.
        lanes: number of lanes; their lengths differ by at most one sample.
        window: length of a window, in shards of mean size.
        seed: the seed of this epoch.
    """

    def __init__(self, shard_sizes: IntArray, lanes: int, window: int, seed: tuple[int, ...]):
        self.lanes, self.seed = lanes, seed
        self.shards = np.random.default_rng([*seed, 2]).permutation(len(shard_sizes))
        sizes = shard_sizes[self.shards]
        self.ends = np.cumsum(sizes)  # [S] where each shard ends in the sequence
        self.shift = (np.cumsum(shard_sizes) - shard_sizes)[self.shards] - (self.ends - sizes)  # [S] row minus position
        self.num_samples = int(shard_sizes.sum())
        self.window_samples = window * -(-self.num_samples // max(len(shard_sizes), 1))
        self._cuts = [self._cut(lane) for lane in range(lanes)]
        self._latest: dict[int, tuple[int, IntArray]] = {}

    def take(self, lane: int, begin: int, end: int) -> IntArray:
        """The samples [begin, end) of a lane, in the lane's order."""
        if begin == end:
            return np.empty(0, np.int64)
        cuts = self._cuts[lane]
        first, last = bisect_right(cuts, begin, 1, len(cuts) - 1) - 1, bisect_right(cuts, end - 1, 1, len(cuts) - 1) - 1
        pieces = [
            self._window(lane, number)[max(begin - cuts[number], 0) : max(end - cuts[number], 0)]
            for number in range(first, last + 1)
        ]
        return np.concatenate(pieces)

    def visits(self, lane: int) -> Iterator[tuple[int, int, int]]:
        """Yields every shard of every window of a lane, with the samples [begin, end) of that window in the lane."""
        cuts = self._cuts[lane]
        for begin, end in pairwise(cuts):
            low, high = self._positions(lane, begin, end)
            first, last = np.searchsorted(self.ends, (low, high - 1), "right")
            for shard in self.shards[first : last + 1]:
                yield int(shard), begin, end

    def _bounds(self, lane: int) -> tuple[int, int]:
        return lane * self.num_samples // self.lanes, (lane + 1) * self.num_samples // self.lanes

    def _positions(self, lane: int, begin: int, end: int) -> tuple[int, int]:
        """The positions of the samples [begin, end) of a lane in the sequence.

        Odd lanes go backwards, so that neighbouring lanes, which share a shard at their common end, need it at the
        same time.
        """
        first, last = self._bounds(lane)
        return (last - end, last - begin) if lane % 2 else (first + begin, first + end)

    def _cut(self, lane: int) -> list[int]:
        """The ends of a lane's windows.

        First windows differ in length between lanes, so that not all lanes need new shards at the same time. The length
        of the last is between 0.5 and 1.5 windows.
        """
        first, last = self._bounds(lane)
        length, half = last - first, -(-self.window_samples // 2)
        cuts = range(half + lane * half // self.lanes, length - half, self.window_samples) if length else ()
        return [0, *cuts, length]

    def _window(self, lane: int, number: int) -> IntArray:
        """The shuffled samples of one window; the latest window of each lane is kept in memory."""
        if self._latest.get(lane, (-1,))[0] != number:
            low, high = self._positions(lane, *self._cuts[lane][number : number + 2])
            position = np.random.default_rng([*self.seed, 3, lane, number]).permutation(np.arange(low, high))
            rows = position + self.shift[np.searchsorted(self.ends, position, "right")]
            self._latest[lane] = number, rows
        return self._latest[lane][1]
