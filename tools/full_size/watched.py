"""Watches processes twice a second: how long one thread works while all others wait, and what goes through Ray."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

BUSY = 0.5
"""Share of the time between two samples from which on a thread works."""
_TICKS = os.sysconf("SC_CLK_TCK")
_SOCKET = re.compile(r"^\S+ +\d+ +\d+ +(\S+) +(\S+) +users:\(\(.*?pid=(\d+)")
_SENT = re.compile(r"bytes_sent:(\d+)")
WORKER = "ray::RayTrainWorker"
"""Processes whose names begin so tell each other gradients, which do not go through Ray."""
Clock = Callable[[], float]


class Stretch:
    """The longest time in which one thread of all these processes worked and no other one did.

    Where a command is to use several processes, this is what more of them cannot shorten.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock, self._before, self._began = clock, dict[str, float](), clock()
        self._at = self._since = self._began
        self.longest, self.began = 0.0, 0.0
        """Its seconds, and how many after the start it began."""

    def sample(self, processes: Iterable[int]) -> None:
        """Looks at what every thread has worked since the last time."""
        now, used = self._clock(), thread_seconds(processes)
        least = BUSY * (now - self._at)
        busy = sum(seconds - self._before.get(thread, 0.0) >= least for thread, seconds in used.items())
        if busy == 1:
            self.longest, self.began = max((self.longest, self.began), (now - self._since, self._since - self._began))
        else:
            self._since = now
        self._before, self._at = used, now


def thread_seconds(processes: Iterable[int]) -> dict[str, float]:
    """Returns the processor time of every thread of these processes, by its path in /proc."""
    used = {}
    for process in processes:
        with suppress(OSError):
            for thread in Path(f"/proc/{process}/task").iterdir():
                with suppress(OSError):
                    fields = (thread / "stat").read_text().rpartition(")")[2].split()
                    used[str(thread)] = (int(fields[11]) + int(fields[12])) / _TICKS
    return used


class Sockets:
    """Bytes sent over TCP among processes of Ray, with the driver, and with workers, but not between two workers.

    What lies in Ray's object store on the same machine is not sent, and counts as memory.
    """

    def __init__(self, tool: str | None = shutil.which("ss", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")) -> None:
        self._sent: dict[tuple[str, str], int] = {}
        self._tool = tool

    @property
    def megabytes(self) -> float | None:
        """All so far; None where iproute2, whose `ss` knows it, is not installed."""
        return None if self._tool is None else sum(self._sent.values()) / 1e6

    def sample(self, processes: Iterable[int], kind_of: Callable[[int], str]) -> None:
        """Looks at every connection between two of these processes."""
        if self._tool is None:
            return
        ours = {process: kind_of(process) for process in processes}
        listed = connections(_listed(self._tool))
        found = {(here, there): (sent, owner) for here, there, sent, owner in listed if owner in ours}
        for (here, there), (sent, owner) in found.items():
            other = found.get((there, here))
            if other is not None and not all(ours[one].startswith(WORKER) for one in (owner, other[1])):
                self._sent[here, there] = max(self._sent.get((here, there), 0), sent)


def _listed(tool: str) -> str:
    return subprocess.run([tool, "-Htinp"], capture_output=True, text=True, check=False).stdout


def connections(listed: str) -> list[tuple[str, str, int, int]]:
    """Returns local address, peer, bytes sent and process of each line pair of `ss -Htinp`."""
    lines = listed.splitlines()
    pairs = ((_SOCKET.match(first), _SENT.search(second)) for first, second in itertools.pairwise(lines))
    return [(one[1], one[2], int(sent[1]) if sent else 0, int(one[3])) for one, sent in pairs if one]
