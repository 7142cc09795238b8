"""Measures how well the order of a plan mixes the shards, and how large a cache it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raypaml.data.plan import Plan, Span


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """The probability that two random samples of a batch are from the same shard."""

    share: float
    """The probability in this order, 0..1; 1 if every batch is read from one shard."""
    permuted: float
    """The probability in a permutation of all samples."""

    @property
    def excess(self) -> float:
        """Where the order lies between a permutation of all samples (0) and reading shard after shard (1)."""
        return (self.share - self.permuted) / (1 - self.permuted) if self.permuted < 1 else 0.0


def mixing(plan: Plan, epoch: int = 0) -> Mixing:
    """The mixing of one epoch, over all its full batches; over its only batch if that is not full."""
    shard_of = np.repeat(np.arange(len(plan.shard_sizes)), plan.shard_sizes)
    size = min(plan.global_batch_size, plan.num_samples)
    batches = np.sort(shard_of[plan.order(epoch)[: plan.num_samples // size * size].reshape(-1, size)])
    starts = np.ones(batches.shape, bool)
    starts[:, 1:] = batches[:, 1:] != batches[:, :-1]
    runs = np.diff(np.flatnonzero(starts), append=batches.size)  # samples of one shard in one batch
    return Mixing(
        share=_pairs(runs) / max(_pairs(np.full(len(batches), size)), 1),
        permuted=_pairs(np.array(plan.shard_sizes)) / max(_pairs(np.array([plan.num_samples])), 1),
    )


def _pairs(counts: NDArray[np.int64]) -> int:
    """The number of ordered pairs within groups of these sizes."""
    return int((counts * (counts - 1)).sum())


def cache_bytes(spans: Sequence[Span], shard_bytes: Sequence[int]) -> int:
    """The largest number of bytes of shards that any step needs at the same time."""
    if not spans:
        return 0
    change = np.zeros(max(span.last_step for span in spans) + 2, np.int64)
    for span in spans:
        change[span.first_step] += shard_bytes[span.shard]
        change[span.last_step + 1] -= shard_bytes[span.shard]
    return int(change.cumsum().max())
