"""Saving while training goes on: a thread of its own commits one checkpoint while the next steps run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from raypaml.runs.checkpoint import Verified
from raypaml.runs.checkpoint_writer import HostCopies


class Saving:
    """What one worker is saving: one thing at a time, in a thread."""

    def __init__(self) -> None:
        self.host, self.verified = HostCopies(), Verified()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._running: Future[str] | None = None

    @property
    def is_running(self) -> bool:
        """Whether something is being saved."""
        return self._running is not None and not self._running.done()

    def start(self, commit: Callable[[], str]) -> None:
        """Let the thread commit this; it returns what is to be said of it, if anything. The last one has ended."""
        assert self._running is None
        self._running = self._thread.submit(commit)

    def wait(self) -> str:
        """Wait until all is committed; what is to be said of it, once. Raises what went wrong with it, once."""
        running, self._running = self._running, None
        return running.result() if running else ""

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
