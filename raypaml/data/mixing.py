"""How well an order mixes the source, and what that costs: pure functions of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raypaml.data.plan import Plan, Span


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Two samples of a batch, drawn at random: how often they are from the same shard."""

    share: float
    """In this order, 0..1; 1 where every batch is read from one shard."""
    permuted: float
    """Expected of a permutation of all samples."""

    @property
    def excess(self) -> float:
        """What remains of the source's order: 0 for a permutation, 1 for reading shard after shard."""
        return (self.share - self.permuted) / (1 - self.permuted) if self.permuted < 1 else 0.0


def mixing(plan: Plan, epoch: int = 0) -> Mixing:
    """The mixing of one epoch, counted over all its full batches (all batches where there is no full one)."""
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
    return int((counts * (counts - 1)).sum())


def cache_bytes(spans: Sequence[Span], shard_bytes: Sequence[int]) -> int:
    """The bytes of the shards that are needed at once, at the step of greatest need."""
    if not spans:
        return 0
    change = np.zeros(max(span.last_step for span in spans) + 2, np.int64)
    for span in spans:
        change[span.first_step] += shard_bytes[span.shard]
        change[span.last_step + 1] -= shard_bytes[span.shard]
    return int(change.cumsum().max())
