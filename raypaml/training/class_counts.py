"""How many entries of each class a run rejects, and how many of them were missed positives: exact sums by epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from raypaml.runs.checkpoint import State
from raypaml.runs.ranks import Ranks

COLUMNS = ("rejected", "rejected_missed", "missed")
"""What is counted of each class: rejected entries, those of them that were missed positives, all missed positives."""


class ClassCounts:
    """Integer sums by class of this rank's steps since the last exchange, on the device that computes them."""

    def __init__(self, num_classes: int, device: torch.device):
        self._fresh = torch.zeros(len(COLUMNS), num_classes, dtype=torch.int64, device=device)

    def add(self, counts: Tensor) -> None:
        """Add a step's counts, int64 [len(COLUMNS), K]; waits for nothing."""
        self._fresh += counts

    def exchange(self, ranks: Ranks, state: State) -> None:
        """Add what all ranks counted to the epoch's sums in the state; before the state's `tally` takes the same steps.

        They stay empty in an epoch that an earlier version began, for it did not count its steps.
        """
        fresh = ranks.sum(self._fresh).cpu()
        self._fresh = torch.zeros_like(self._fresh)
        if state.class_counts:
            fresh += torch.tensor(state.class_counts)
        if state.class_counts or not state.tally:
            state.class_counts = fresh.tolist()


def rejections_by_class(counts: list[list[int]], *, known: bool) -> dict[str, list[int] | None] | None:
    """Counts of an epoch for its record: columns of equal length, of the classes that have anything to count.

    Args:
        counts: [len(COLUMNS), K], or nothing.
        known: whether the truth is, without which nothing is known of missed positives.

    Returns:
        `class` and the COLUMNS by name, the last two None where the truth is not known; None instead of all where
        nothing was rejected or counted.
    """
    if not counts or not any(counts[0]):
        return None
    classes = [number for number, of_class in enumerate(zip(*counts, strict=True)) if any(of_class)]
    columns = {name: [column[number] for number in classes] for name, column in zip(COLUMNS, counts, strict=True)}
    return {"class": classes, "rejected": columns["rejected"]} | {
        name: columns[name] if known else None for name in COLUMNS[1:]
    }
