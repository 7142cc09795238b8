"""Waiting for processes that Ray starts: it is said what is waited for, and one that never comes ends the wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from raypaml.cli import say
from raypaml.counting import clock

WORDS_SECONDS = 20.0
"""Seconds after which it is said what is waited for."""
LIMIT_SECONDS = 300.0
"""Longest wait, in which a cold disk lets a process import torch."""
_REMEDY = "the machine may be too busy or short of memory: give the command again later, or with fewer --workers"


class NoProcessError(ValueError):
    """A process that Ray was to start has not come within LIMIT_SECONDS."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} has not started within {clock(LIMIT_SECONDS)}; {_REMEDY}")


def first_process() -> None:
    """Wait for a process of Ray that can run tasks; NoProcessError where none comes."""
    quick_answers([ray.remote(lambda: None).options(num_cpus=0).remote()], ["this machine"])


def quick_answers(calls: list[ray.ObjectRef], hosts: Sequence[str]) -> list[Any]:
    """The results of calls that take no time once their processes have started.

    Args:
        calls: the results to come.
        hosts: the name of the node of each call.

    Raises:
        NoProcessError: LIMIT_SECONDS have passed; the message names the nodes.
        ray.exceptions.RayTaskError: a call failed.
    """
    if slow := _slow(calls, hosts, WORDS_SECONDS):
        say(f"waiting for a process of Ray to start on {slow}")
        if slow := _slow(calls, hosts, LIMIT_SECONDS - WORDS_SECONDS):
            raise NoProcessError(f"a process of Ray on {slow}")
    return list(ray.get(calls))


def _slow(calls: list[ray.ObjectRef], hosts: Sequence[str], seconds: float) -> str:
    """The names of the nodes whose calls have no result after so many seconds."""
    left = ray.wait(calls, num_returns=len(calls), timeout=seconds)[1]
    return ", ".join(dict.fromkeys(host for call, host in zip(calls, hosts, strict=True) if call in left))


class FirstEvent:
    """Waits for the first event of what is started, such as a run's workers, and says so where it takes long.

    Args:
        tell: prints a line.
        what: what is started.
        limited: whether LIMIT_SECONDS end the wait, as on a private Ray. On a cluster workers may also wait for nodes
            that are being added, or for another program's CPUs.
        lack: returns what is lacking, such as CPUs and who holds them; empty where nothing is. Asked once at the
            beginning, where the answer is said at once, and later from time to time, where another one is.
    """

    def __init__(
        self, tell: Callable[[str], None], what: str, *, limited: bool, lack: Callable[[], str] = lambda: ""
    ) -> None:
        self._tell, self._what, self._limited, self._lack = tell, what, limited, lack
        self._said = ""
        self.again()

    def again(self) -> None:
        """Begin to wait, also after what was started has been lost."""
        self._began, self._next, self._over = time.monotonic(), WORDS_SECONDS, False
        if lacking := self._lack():
            self._say(lacking)

    def came(self, count: int) -> None:
        """Note how many events have come since the last call; NoProcessError where the wait has been too long."""
        waited = time.monotonic() - self._began
        if count:
            self._over, self._limited, self._said = True, False, ""
        elif self._over:
            return
        elif self._limited and waited > LIMIT_SECONDS:
            raise NoProcessError(self._what)
        elif waited > self._next:
            self._next = min(2 * waited, waited + LIMIT_SECONDS)  # seldom, where runs come and go for hours
            self._say(self._lack())

    def _say(self, lacking: str) -> None:
        line = f"waiting for {self._what} to start" + (f": {lacking}" if lacking else "")
        if line != self._said:
            self._tell(line)
            self._said = line
