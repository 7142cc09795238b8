"""Random numbers for the images of a batch: those of a sample depend on seed, epoch and its row alone.

So an image is changed in the same way whatever the number of workers, whoever shares its batch, and after a run was
continued. The generator is counter-based: a number is a function of its place, and no state has to be kept.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

STREAM = 2
"""Third number of the seed of these draws. With 0 `data.plan` draws the order of samples, with 1 who is mirrored."""
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
        first, third = _upper(other) ^ second ^ key[0], _upper(one) ^ fourth ^ key[1]
        second, fourth = (product & _LOW for product in (other, one))
        second, fourth = second.astype(np.uint32), fourth.astype(np.uint32)
        key = key + _INCREMENTS
    return np.stack((first, second, third, fourth), -1)


def _upper(product: NDArray[np.uint64]) -> NDArray[np.uint32]:
    return (product >> np.uint64(32)).astype(np.uint32)


class Draws:
    """The random numbers of the samples of one batch; every call gives new ones.

    Args:
        seed: of the run.
        epoch: from 0.
        rows: [B] samples of the training split.
    """

    def __init__(self, seed: int, epoch: int, rows: NDArray[np.int64]):
        self.rows = rows
        self._stream = [seed, epoch, STREAM]
        self._blocks = 0

    @functools.cached_property
    def _key(self) -> NDArray[np.uint32]:
        """The key of the generator, made at the first draw: most runs draw nothing."""
        return np.random.SeedSequence(self._stream).generate_state(2).astype(np.uint32)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """[B, count] numbers of the uniform distribution on [0, 1), multiples of 2^-32."""
        blocks = np.arange(self._blocks, self._blocks + -(-count // 4))
        self._blocks += len(blocks)
        counters = np.zeros((len(self.rows), len(blocks), 4), np.uint32)
        counters[..., 0] = (self.rows & 0xFFFFFFFF)[:, None]
        counters[..., 1] = (self.rows >> 32)[:, None]
        counters[..., 2] = blocks
        return philox(counters, self._key).reshape(len(self.rows), -1)[:, :count] / 2.0**32

    def integers(self, below: int | NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """[B, count] integers 0, 1, ..., below - 1, all as likely; `below` may be an array [B, count]."""
        return (self.uniform(count) * below).astype(np.int64)

    def signs(self, count: int) -> NDArray[np.int64]:
        """[B, count] times -1 or 1."""
        return 2 * self.integers(2, count) - 1
