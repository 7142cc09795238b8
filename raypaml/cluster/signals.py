"""What Ctrl-C and SIGTERM do to a run: once, it saves and stops; twice, it stops at once."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Self

from raypaml.cluster.channel import Channel
from raypaml.reports.progress import Display


class Signals:
    """Ctrl-C or SIGTERM once: save and stop; twice: stop at once."""

    def __init__(self) -> None:
        self.received = 0
        self._forwarded = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            raise SystemExit(128 + number)
        self.received = number

    def forward(self, channel: Channel, display: Display) -> None:
        """Tell the workers, once."""
        if self.received and not self._forwarded:
            display.say(
                "stopping after this step, with a checkpoint, or after this part of features; once more to stop at once"
            )
            channel.stop()
            self._forwarded = True
