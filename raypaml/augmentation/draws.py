"""Random numbers for the images of a batch, which depend on the seed, the epoch and the row of each sample alone.

An image is therefore changed in the same way for any number of workers, with any other images in its batch, and in a
run that is continued. The generator is counter-based: each number is a function of a counter, so that there is no
state to save.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

STREAM = 2
"""Third number of these draws' seed; `data.plan` uses 0 for the order of samples and 1 for the mirroring."""
_ROUNDS = 10
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_INCREMENTS = np.array([0x9E3779B9, 0xBB67AE85], np.uint32)
_LOW = np.uint64(0xFFFFFFFF)


def philox(counters: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Philox4x32 with 10 rounds (J. Salmon et al., SC 2011, section 4): four random numbers for each counter.

    Args:
        counters: [..., 4].
        key: [2].

    Returns:
        [..., 4].
    """
    first, second, third, fourth = (counters[..., place] for place in range(4))
    for _ in range(_ROUNDS):
        one, other = (value.astype(np.uint64) * by for value, by in zip((first, third), _MULTIPLIERS, strict=True))
        upper_one, upper_other = ((product >> np.uint64(32)).astype(np.uint32) for product in (one, other))
        first, third = upper_other ^ second ^ key[0], upper_one ^ fourth ^ key[1]
        second, fourth = ((product & _LOW).astype(np.uint32) for product in (other, one))
        key = key + _INCREMENTS
    return np.stack((first, second, third, fourth), -1)


class Draws:
    """The random numbers of the samples of one batch; every call gives new ones.

    Args:
        seed: the seed of the run.
        epoch: the epoch, from 0.
        rows: [B] rows of the samples in the training split.
    """

    def __init__(self, seed: int, epoch: int, rows: NDArray[np.int64]):
        self.rows = rows
        self._stream = [seed, epoch, STREAM]
        self._blocks = 0

    @functools.cached_property
    def _key(self) -> NDArray[np.uint32]:
        """The key of the generator, computed at the first draw, for most runs draw nothing."""
        return np.random.SeedSequence(self._stream).generate_state(2).astype(np.uint32)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """[B, count] numbers, uniform on [0, 1), multiples of 2^-32."""
        blocks = np.arange(self._blocks, self._blocks + -(-count // 4))
        self._blocks += len(blocks)
        counters = np.zeros((len(self.rows), len(blocks), 4), np.uint32)
        counters[..., 0] = (self.rows & 0xFFFFFFFF)[:, None]
        counters[..., 1] = (self.rows >> 32)[:, None]
        counters[..., 2] = blocks
        return philox(counters, self._key).reshape(len(self.rows), -1)[:, :count] / 2.0**32

    def integers(self, below: int | NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """[B, count] integers, uniform on 0, 1, ..., below - 1; `below` may be an array [B, count]."""
        return (self.uniform(count) * below).astype(np.int64)

    def signs(self, count: int) -> NDArray[np.int64]:
        """[B, count] signs, -1 or 1."""
        return 2 * self.integers(2, count) - 1
