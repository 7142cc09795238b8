"""How long a run has held its workers, however many there were and however often they started: `worker_time.json`.

Rank 0 writes the file every few seconds, so that also what a killed run had used is known. A worker is one GPU, or one
process on the CPU. Times are those of the machines' clocks, in seconds since 1970.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from raypaml.files import write_json
from raypaml.runs.mirror import Mirror
from raypaml.runs.run_files import WORKER_TIME
from raypaml.stored_json import read_if_there

WRITE_SECONDS = 5.0
"""Least time between two writings of the file while nothing else happens."""


class Attempt(TypedDict):
    """The workers of a run, from one start of all of them to the next."""

    command: float
    """When the command began that started them."""
    workers: int
    device: str
    """cpu or cuda."""
    began: float
    seen: float
    """When they were last known to be there."""
    lost: float
    """Worker-seconds lost to restarts in the run so far, as known when these workers were ready to train."""


class TimeRecord(TypedDict):
    """The content of `worker_time.json`."""

    command: float
    """When the last command began."""
    before: float
    """Worker-seconds of the checkpoint from which the first of these attempts continued: of a warm-up that trials
    share, or of an earlier version."""
    is_estimate: bool
    """Whether `before` was estimated, as training time times workers, for an earlier version did not count."""
    attempts: list[Attempt]


def read_worker_time(folder: Path) -> TimeRecord | None:
    """Read a run's record; None for a run of an earlier version, ValueError where the file is damaged."""
    remedy = "remove it; what came after the last checkpoint is then not counted"
    return read_if_there(folder / WORKER_TIME, TimeRecord, "the record of workers' time", remedy)


def begin_command(folder: Path) -> None:
    """Note that a command begins to train the run in a folder, which tells its restarts from a later continuation."""
    record = read_worker_time(folder) or TimeRecord(command=0.0, before=0.0, is_estimate=False, attempts=[])
    write_json(folder / WORKER_TIME, {**record, "command": time.time()})


def held_seconds(record: TimeRecord) -> float:
    """Worker-seconds of all attempts.

    The time between two attempts of one command counts for the workers of the later one, which wait for it; the time
    between two commands does not.
    """
    total = record["before"]
    for before, one in zip([None, *record["attempts"]], record["attempts"], strict=False):
        waited = one["began"] - before["seen"] if before and before["command"] == one["command"] else 0.0
        total += one["workers"] * (max(0.0, one["seen"] - one["began"]) + max(0.0, waited))
    return total


class HeldTime:
    """The record of a run's attempts, in which rank 0 keeps the last one up to date."""

    def __init__(self, folder: Path, workers: int, device: str, began: float) -> None:
        self._path = folder / WORKER_TIME
        self._record = read_worker_time(folder) or TimeRecord(command=began, before=0.0, is_estimate=False, attempts=[])
        self._mine = Attempt(
            command=self._record["command"], workers=workers, device=device, began=began, seen=began, lost=0.0
        )
        self._record["attempts"].append(self._mine)
        self._written = 0.0

    @property
    def lost(self) -> float:
        """Worker-seconds lost to restarts so far."""
        return self._mine["lost"]

    def merge(self, store: Mirror) -> None:
        """Add the attempts that another machine has noted in the store, before anything is written here."""
        here = self._record
        store.pull(WORKER_TIME)
        if there := read_worker_time(self._path.parent):
            self._record = joined_time(here, there)
            self._mine["command"] = self._record["command"]

    def look(self) -> float:
        """Worker-seconds of the run up to now."""
        self._mine["seen"] = time.time()
        return held_seconds(self._record)

    def note(self) -> None:
        """Note that the workers are still there; the file is written only every WRITE_SECONDS."""
        self._mine["seen"] = time.time()
        if self._mine["seen"] - self._written > WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the file; a disk that takes nothing stops training when a checkpoint is written, and not here."""
        self._written = self._mine["seen"] = time.time()
        with suppress(OSError):
            write_json(self._path, self._record)

    def restored(self, held: float, lost: float, trained: float, *, again: bool) -> None:
        """Note what a restart cost: all that was held since the state that training continues from.

        Args:
            held: worker-seconds of the run up to that state; 0 where an earlier version saved it, or there is none.
            lost: worker-seconds lost up to that state.
            trained: seconds of training up to that state.
            again: whether this attempt has trained before, and goes back to a checkpoint.
        """
        if len(self._record["attempts"]) == 1 and not again:
            self._record["before"] = held or trained * self._mine["workers"]
            self._record["is_estimate"] = bool(trained and not held)
            self._mine["lost"] = lost
        else:
            self._mine["lost"] = lost + max(0.0, self.look() - max(held, self._record["before"]))
        self.write()


def joined_time(one: TimeRecord, other: TimeRecord) -> TimeRecord:
    """The attempts of two copies of a record; of an attempt in both, the one that was seen later."""
    attempts: dict[float, Attempt] = {}
    for attempt in (*one["attempts"], *other["attempts"]):
        known = attempts.setdefault(attempt["began"], attempt)
        known["seen"] = max(known["seen"], attempt["seen"])
    first = max(one, other, key=lambda record: record["before"])
    return TimeRecord(
        command=max(one["command"], other["command"]),
        before=first["before"],
        is_estimate=first["is_estimate"],
        attempts=[attempts[began] for began in sorted(attempts)],
    )


def worker_counts(attempts: Sequence[Attempt]) -> list[int]:
    """The numbers of workers that there were, in order, without immediate repeats."""
    counts = [attempt["workers"] for attempt in attempts]
    return [count for before, count in zip([0, *counts], counts, strict=False) if count != before]
