"""What a training worker reports while it trains: events, which the display, trackers and gauges show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from raypaml.runs.history import EpochRecord


@dataclass(frozen=True)
class Message:
    """A line for people, said once, such as that a run continues from a checkpoint."""

    text: str


@dataclass(frozen=True)
class Resumed(Message):
    """Training continues from a checkpoint."""

    epoch: int
    """From 0."""
    step: int
    """Steps of that epoch that are done."""


@dataclass(frozen=True)
class Activity:
    """What a worker does between steps, reported often, such as how far it is with computing features."""

    text: str


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Where training is, about once a second; figures since the report before are marked recent."""

    epoch: int
    """From 0."""
    step: int
    """Steps of the epoch done so far."""
    steps: int
    """Steps of a whole epoch."""
    epochs: int
    """Epochs of the whole run."""
    loss: float
    """Recent mean over the samples of all ranks; NaN where all of them were left out."""
    rejected: int
    """Entries rejected in this epoch so far, on all ranks."""
    rejection_rate: float
    """Recent rejected entries over all entries, 0..1."""
    learning_rate: float
    """The backbone's in the last step."""
    samples_left: int
    """Samples to train on until the end of the run."""
    images_per_second: float
    """Recent rate of all ranks together."""
    data_wait_share: float
    """Recent share of their time, 0..1, in which the ranks waited for batches."""
    memory_bytes: int
    """Most bytes that this worker has held: on a GPU in this epoch, on the CPU since it started."""

    @property
    def steps_done(self) -> int:
        """Steps since training began."""
        return self.epoch * self.steps + self.step


@dataclass(frozen=True)
class EpochReport:
    """The end of an epoch, validated and recorded."""

    record: EpochRecord
    epochs: int
    """Epochs of the whole run."""


Event = Message | Activity | StepReport | EpochReport


class LoopSignal(IntEnum):
    """What the driver asks of the workers; they learn it when they next agree on their progress."""

    NOTHING = 0
    STOP = 1
    """Save a checkpoint and stop. True says the same."""
    SAVE = 2
    """Save a checkpoint and go on: a machine is about to be taken away."""


Report = Callable[[Event], LoopSignal | bool]
"""Takes an event of a worker; answers what the driver asks of the workers."""
