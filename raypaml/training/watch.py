"""Who hangs: hears the beats of all workers of a run (`training.watchdog`), and blames some when none has moved.

Those that are silent (stopped, or their machine is lost), else those that are furthest behind: the others wait for them
in a collective. Without torch, which the process that hears them need not import.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

COMPILING_LIMITS = 6
"""The limit is so many times as long while a worker compiles its network: that one step takes minutes."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a worker says of itself."""

    rank: int
    world_size: int
    process: str
    """Host and process id: another process of the same rank is another life of it."""
    moves: int
    place: str
    compiling: bool = False


Beats = Callable[[Beat], bool]
"""Takes a beat; answers whether this process is to end at once."""


@dataclass
class _Known:
    beat: Beat
    heard: float
    moved: float


@dataclass
class Watch:
    """Hears the beats of all workers of a run and says who hangs."""

    limit: float
    """Seconds without a move of anybody."""
    known: dict[int, _Known] = field(default_factory=dict)
    condemned: set[str] = field(default_factory=set)
    """Processes that are to end."""

    def hear(self, beat: Beat, now: float | None = None) -> bool:
        """Note a beat; whether its process is to end. One that was stopped and goes on has the whole limit again."""
        now = time.monotonic() if now is None else now
        before = self.known.get(beat.rank)
        same = before is not None and (before.beat.process, before.beat.moves) == (beat.process, beat.moves)
        stopped = before is not None and now - before.heard > self.limit  # as between Ctrl-Z and fg
        self.known = {rank: known for rank, known in self.known.items() if rank < beat.world_size}
        self.known[beat.rank] = _Known(beat, now, before.moved if before and same and not stopped else now)
        return beat.process in self.condemned

    def hung(self, now: float | None = None) -> list[str]:
        """A line for each worker to blame, once, if none has moved for the limit; all are then to end."""
        now = time.monotonic() if now is None else now
        known = [known for _, known in sorted(self.known.items()) if known.beat.process not in self.condemned]
        silent = [known for known in known if now - known.heard > self.limit / 2]
        compiling = any(known.beat.compiling and known not in silent for known in known)
        limit = self.limit * (COMPILING_LIMITS if compiling else 1)
        if not known or now - max(known.moved for known in known) < limit:
            return []
        self.condemned |= {known.beat.process for known in known}
        behind = min(known.beat.moves for known in known)
        blamed = silent or [known for known in known if known.beat.moves == behind]
        return [_line(known, now, known in silent) for known in blamed]


def _line(known: _Known, now: float, silent: bool) -> str:
    rank = known.beat.rank
    said = f"nothing heard of it for {now - known.heard:.0f} s" if silent else f"no move for {now - known.moved:.0f} s"
    line = f"rank {rank} ({known.beat.process}) hangs, {said}: {known.beat.place}"
    return line if silent else f"{line}; it leaves its stacks in logs/worker-{rank}-stacks.txt"
