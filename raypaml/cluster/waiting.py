"""Waiting for processes that Ray starts: it is said what is waited for, and one that never comes ends the wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from raypaml.cli import clock, say

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
    """

    def __init__(self, tell: Callable[[str], None], what: str, *, limited: bool) -> None:
        self._tell, self._what, self._limited = tell, what, limited
        self._began, self._said = time.monotonic(), False

    def came(self, count: int) -> None:
        """Note how many events have come since the last call; NoProcessError where the wait has been too long."""
        waited = time.monotonic() - self._began
        if count:
            self._said, self._limited = True, False
        elif not self._said and waited > WORDS_SECONDS:
            self._tell(f"waiting for {self._what} to start")
            self._said = True
        elif self._limited and waited > LIMIT_SECONDS:
            raise NoProcessError(self._what)
