"""Finding the worker that hangs, from the heartbeats that all workers of a run send (`training.watchdog`).

When no worker has made progress for too long, those whose heartbeats have stopped (their process is stopped, or their
machine lost) are to blame; if there are none, those that are furthest behind, for which the others wait in a
collective. This module does without torch, which the process that receives heartbeats need not import.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

COMPILING_LIMITS = 6
"""Factor on the limit while a worker compiles its network, a step that takes minutes."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """A heartbeat: what a worker reports of itself every few seconds."""

    rank: int
    world_size: int
    process: str
    """Host and process id; a rank that was started again has another."""
    moves: int
    """How often the worker has gone from one activity to the next."""
    place: str
    """Where it is in training, and what it does there."""
    compiling: bool = False


Beats = Callable[[Beat], bool]
"""Takes a heartbeat; answers whether the process that sent it is to end at once."""


def process_name() -> str:
    """The name of this process in heartbeats: host and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


@dataclass
class _Known:
    beat: Beat
    heard: float
    """When the last heartbeat came, in seconds."""
    moved: float
    """When its progress was last seen, in seconds."""


@dataclass
class Watch:
    """Receives the heartbeats of all workers of a run and says who hangs."""

    limit: float
    """Seconds without progress of any worker after which the run hangs."""
    known: dict[int, _Known] = field(default_factory=dict)
    """The last heartbeat of each rank."""
    condemned: set[str] = field(default_factory=set)
    """Processes that are to end."""
    silent: set[str] = field(default_factory=set)
    """Those of them that cannot be told, for their heartbeats have stopped."""

    def hear(self, beat: Beat, now: float | None = None) -> bool:
        """Note a heartbeat; whether its process is to end. A process that was suspended gets the whole limit again."""
        now = time.monotonic() if now is None else now
        before = self.known.get(beat.rank)
        same = before is not None and (before.beat.process, before.beat.moves) == (beat.process, beat.moves)
        stopped = before is not None and now - before.heard > self.limit  # as between Ctrl-Z and fg
        self.known = {rank: known for rank, known in self.known.items() if rank < beat.world_size}
        self.known[beat.rank] = _Known(beat, now, before.moved if before and same and not stopped else now)
        return beat.process in self.condemned

    def hung(self, now: float | None = None) -> list[str]:
        """A line for each worker to blame, once, where none has made progress for the limit; all are then to end."""
        now = time.monotonic() if now is None else now
        known = [known for _, known in sorted(self.known.items()) if known.beat.process not in self.condemned]
        silent = [known for known in known if now - known.heard > self.limit / 2]
        compiling = any(known.beat.compiling and known not in silent for known in known)
        limit = self.limit * (COMPILING_LIMITS if compiling else 1)
        if not known or now - max(known.moved for known in known) < limit:
            return []
        self.condemned |= {known.beat.process for known in known}
        self.silent |= {known.beat.process for known in silent}
        behind = min(known.beat.moves for known in known)
        blamed = silent or [known for known in known if known.beat.moves == behind]
        return [_line(known, now, known in silent) for known in blamed]

    def forget(self) -> None:
        """Forget all workers, for they have ended; others may follow after any time."""
        self.known.clear()


def _line(known: _Known, now: float, silent: bool) -> str:
    rank = known.beat.rank
    silence, pause = now - known.heard, now - known.moved
    why = f"no heartbeat for {silence:.0f} s" if silent else f"no progress for {pause:.0f} s"
    line = f"rank {rank} ({known.beat.process}) hangs, {why}: {known.beat.place}"
    return line if silent else f"{line}; its stacks are in logs/worker-{rank}-stacks.txt"
