"""Lines of a log, and those that are worth little in it without the time."""

from __future__ import annotations

import time


class ProgressLine(str):
    """A line that says how far some work is, printed every few seconds; in a log it needs the time with it."""


def stamped(text: str) -> str:
    """A line of a log, with the local time before it."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}"
