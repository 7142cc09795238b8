"""How many entries of each class a run rejects, and how many of them were missed positives: exact sums by epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from raypaml.runs.checkpoint import State
from raypaml.runs.history import RejectedClasses
from raypaml.runs.ranks import Ranks

COLUMNS = ("rejected", "rejected_missed", "missed")
"""What is counted of each class: rejected entries, those of them that were missed positives, all missed positives."""


class ClassCounts:
    """Sums by class over this rank's steps since the last exchange, int64 on the device that computes them."""

    def __init__(self, num_classes: int, device: torch.device):
        self._fresh = torch.zeros(len(COLUMNS), num_classes, dtype=torch.int64, device=device)

    def add(self, counts: Tensor) -> None:
        """Add a step's counts, int64 [len(COLUMNS), K]; does not wait for the device."""
        self._fresh += counts

    def exchange(self, ranks: Ranks, state: State) -> None:
        """Add what all ranks counted to the epoch's sums in the state, before its `tally` takes the same steps.

        The sums stay empty in an epoch begun by an earlier version, which did not count by class.
        """
        fresh = ranks.sum(self._fresh).cpu()
        self._fresh = torch.zeros_like(self._fresh)
        if state.class_counts:
            fresh += torch.tensor(state.class_counts)
        if state.class_counts or not state.tally:
            state.class_counts = fresh.tolist()


def rejections_by_class(counts: list[list[int]], *, known: bool) -> RejectedClasses | None:
    """The counts of an epoch for its record; None where nothing was rejected or counted.

    Args:
        counts: [len(COLUMNS), K], or an empty list.
        known: whether the truth is known, without which nothing is known of missed positives.
    """
    if not counts or not any(counts[0]):
        return None
    classes = [number for number, of_class in enumerate(zip(*counts, strict=True)) if any(of_class)]
    rejected, hits, missed = ([column[number] for number in classes] for column in counts)
    return {
        "class": classes,
        "rejected": rejected,
        "rejected_missed": hits if known else None,
        "missed": missed if known else None,
    }
