"""Saving while training goes on: a separate thread commits a checkpoint while the next steps run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from raypaml.runs.checkpoint import Verified
from raypaml.runs.checkpoint_writer import HostCopies


class Saving:
    """The thread in which one worker commits its checkpoints, one at a time."""

    def __init__(self) -> None:
        self.host, self.verified = HostCopies(), Verified()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._running: Future[str] | None = None

    @property
    def is_running(self) -> bool:
        """Whether a checkpoint is being committed."""
        return self._running is not None and not self._running.done()

    def start(self, commit: Callable[[], str]) -> None:
        """Let the thread call `commit`, which returns a warning or ""; the one before has been waited for."""
        assert self._running is None
        self._running = self._thread.submit(commit)

    def wait(self) -> str:
        """Wait for the last commit; returns its warning, or raises its error, only once."""
        running, self._running = self._running, None
        return running.result() if running else ""

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
