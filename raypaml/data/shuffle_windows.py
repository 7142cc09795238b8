"""An order that mixes well and still reads shard after shard: shards permuted, samples shuffled in windows of shards.

The shards of an epoch, in a new random order, make one long sequence of samples. It is cut into lanes of equal length,
shards or no shards, and every lane into windows of several shards, within which samples are permuted. A lane therefore
needs only its window's shards at a time, and a batch holds samples from every lane: from all over the data set.
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
        shard_sizes: [S] samples of each shard, in index order; they may differ.
        lanes: equal pieces of the epoch; they differ by one sample at most.
        window: shards of mean size that are mixed at once.
        seed: of this epoch.
    """

    def __init__(self, shard_sizes: IntArray, lanes: int, window: int, seed: tuple[int, ...]):
        self.lanes, self.seed = lanes, seed
        self.shards = np.random.default_rng([*seed, 2]).permutation(len(shard_sizes))
        sizes = shard_sizes[self.shards]
        self.ends = np.cumsum(sizes)  # [S] of the shards within the sequence
        self.shift = (np.cumsum(shard_sizes) - shard_sizes)[self.shards] - (self.ends - sizes)  # [S] to their rows
        self.num_samples = int(shard_sizes.sum())
        self.window_samples = window * -(-self.num_samples // max(len(shard_sizes), 1))
        self._cuts = [self._cut(lane) for lane in range(lanes)]
        self._latest: dict[int, tuple[int, IntArray]] = {}

    def take(self, lane: int, begin: int, end: int) -> IntArray:
        """The samples [begin, end) of a lane, in its order."""
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
        """(shard, begin, end) of every shard in every window: the lane's samples among which its own are."""
        cuts = self._cuts[lane]
        for begin, end in pairwise(cuts):
            low, high = self._positions(lane, begin, end)
            first, last = np.searchsorted(self.ends, (low, high - 1), "right")
            for shard in self.shards[first : last + 1]:
                yield int(shard), begin, end

    def _bounds(self, lane: int) -> tuple[int, int]:
        return lane * self.num_samples // self.lanes, (lane + 1) * self.num_samples // self.lanes

    def _positions(self, lane: int, begin: int, end: int) -> tuple[int, int]:
        """Where samples [begin, end) of a lane lie in the sequence. Odd lanes go backwards: neighbouring lanes share a
        shard at their common end, and so they need it at the same time.
        """
        first, last = self._bounds(lane)
        return (last - end, last - begin) if lane % 2 else (first + begin, first + end)

    def _cut(self, lane: int) -> list[int]:
        """Between a lane's windows. First ones differ in length, so that not all lanes need new shards at once; the
        last is between half a window and one and a half.
        """
        first, last = self._bounds(lane)
        length, half = last - first, -(-self.window_samples // 2)
        cuts = range(half + lane * half // self.lanes, length - half, self.window_samples) if length else ()
        return [0, *cuts, length]

    def _window(self, lane: int, number: int) -> IntArray:
        """The samples of one window, shuffled. The latest of each lane is kept."""
        if self._latest.get(lane, (-1,))[0] != number:
            low, high = self._positions(lane, *self._cuts[lane][number : number + 2])
            position = np.random.default_rng([*self.seed, 3, lane, number]).permutation(np.arange(low, high))
            rows = position + self.shift[np.searchsorted(self.ends, position, "right")]
            self._latest[lane] = number, rows
        return self._latest[lane][1]
