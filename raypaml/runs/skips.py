"""Broken samples that a run skips: counted over all workers, named, and never more than its budget allows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, TypedDict, get_args

import numpy as np
import torch

from raypaml.data.batches import Batch
from raypaml.data.batches import BrokenReason as Broken
from raypaml.data.index import Index
from raypaml.files import write_whole
from raypaml.runs.ranks import Ranks

Reason = Literal[Broken, "was in a step that was not finite"]
REASONS: tuple[Reason, ...] = get_args(Reason)
_NAMED = 5
"""Most samples that an error names."""

Skip = tuple[int, Reason]
"""The row of a skipped sample in the index, and the reason."""


class SkippedSample(TypedDict):
    """Where a skipped sample is, and why it was skipped: a line of skipped.jsonl, without the epoch."""

    shard: str
    key: str
    offset: int
    """Byte in the shard."""
    reason: Reason


def seen_together(batch: Batch, ranks: Ranks) -> Batch:
    """The batch with `global_rows` set to the samples of all ranks, of which broken ones are missing; a collective."""
    seen = int(ranks.sum(torch.tensor([len(batch.rows)])).item())
    return dataclasses.replace(batch, global_rows=seen)


def gather(ranks: Ranks, mine: Iterable[Skip]) -> list[Skip]:
    """What all ranks have skipped, in the order of samples, on every rank; a collective."""
    coded = np.array([row * len(REASONS) + REASONS.index(reason) for row, reason in mine], np.int64)
    of_all = sorted(ranks.gather(coded).tolist())
    return [(code // len(REASONS), REASONS[code % len(REASONS)]) for code in of_all]


def check_budget(skipped: Sequence[SkippedSample], split: str, samples: int, skip_budget: float) -> None:
    """Raise ValueError, naming samples, where more of a split's samples were skipped than the budget allows."""
    allowed = int(skip_budget * samples)
    if len(skipped) > allowed:
        first = "; ".join(
            f"{s['shard']}: image {s['key']!r} at byte {s['offset']} {s['reason']}" for s in skipped[:_NAMED]
        )
        raise ValueError(
            f"{split}: {len(skipped):,} broken samples found, skip_budget={skip_budget:g} of {samples:,} allows "
            f"{allowed:,}; repair the shards or raise --skip-budget. The first: {first}"
        )


def named(skipped: Sequence[Skip], index: Index) -> list[SkippedSample]:
    """Where each of these samples is, and what is wrong with it."""
    rows = np.array([row for row, _ in skipped], np.int64)
    return [
        {"shard": index.shards[index.shard[row]], "key": key, "offset": int(index.offset[row]), "reason": reason}
        for (row, reason), key in zip(skipped, index.keys(rows), strict=True)
    ]


def write_skipped(path: Path, by_epoch: Sequence[tuple[int, int, Reason]], index: Index) -> None:
    """Write `skipped.jsonl`, a line for every sample skipped in an epoch, given as (epoch, row, reason)."""
    lines = named([(row, reason) for _, row, reason in by_epoch], index)
    epochs = (epoch for epoch, _, _ in by_epoch)
    text = (json.dumps({"epoch": epoch, **line}) + "\n" for epoch, line in zip(epochs, lines, strict=True))
    write_whole(path, "".join(text))
