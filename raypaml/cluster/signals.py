"""Ctrl-C and SIGTERM during a run: the first signal makes it save and stop, the second makes it stop at once.

Python allows signal handlers in the main thread only. The handlers that were there before are restored.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Self

from raypaml.errors import StoppedAtOnce
from raypaml.reports.progress import Display

if TYPE_CHECKING:
    from raypaml.cluster.channel import Channel  # with Ray, which a run in this process does without

STOPPING = "stopping after this step, with a checkpoint, or after this part of features; once more to stop at once"
STOPPING_ALL = "stopping all trials after a step, with a checkpoint; once more to stop at once"
"""What a run and a search say; clusters/pod_leaves.sh looks for it."""


def _may_install() -> bool:
    return threading.current_thread() is threading.main_thread()


class Signals:
    """Notes the first Ctrl-C or SIGTERM, and raises StoppedAtOnce at the second; only in the main thread."""

    def __init__(self) -> None:
        self.received = 0
        self._forwarded = False

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM) if _may_install() else ()
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            raise StoppedAtOnce(number)
        self.received = number

    def forward(self, channel: Channel, display: Display) -> None:
        """Tell the workers to stop, once a signal has come."""
        if self.received and not self._forwarded:
            display.say(STOPPING)
            channel.stop()
            self._forwarded = True


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """In the block a SIGTERM that would kill this process raises StoppedAtOnce, so that resources are released."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise StoppedAtOnce(number)

    kills = _may_install() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if kills:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if kills:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Restore the handler of SIGTERM after the block, in which ray.init, for instance, may replace it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if _may_install() and before is not None:  # None: a handler not installed by Python
            signal.signal(signal.SIGTERM, before)


def retake_sigterm() -> None:
    """Install Python's handler of SIGTERM again, over one that Ray's C++ code has installed while it starts."""
    handler = signal.getsignal(signal.SIGTERM)
    if _may_install() and handler is not None:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM in the block, which takes seconds."""
    # by a function, because processes started in the block would inherit SIG_IGN
    numbers = (signal.SIGINT, signal.SIGTERM) if _may_install() else ()
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
