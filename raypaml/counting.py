"""Progress of long work: how much is done, how fast, how much time is left. And epochs as people count them, from 1."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from raypaml.log_lines import ProgressLine

LINE_SECONDS = 5.0
"""Seconds between two progress lines of the same work."""

Counted = TypeVar("Counted")


def epoch_number(epoch: int) -> int:
    """The number of an epoch in messages, on pages and on axes, from 1; code and files count epochs from 0."""
    return epoch + 1


def clock(seconds: float) -> str:
    """A duration as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def place_text(epoch: int, step: int) -> str:
    """Names an epoch and a step, given from 0, as people count them, from 1."""
    return f"epoch {epoch_number(epoch)}, step {step + 1}"


def number_of(count: int, unit: str) -> str:
    """A number with its unit, such as "1 node" or "1,234 nodes"; the plural is the unit with an s."""
    return f"{count:,} {unit}" if count == 1 else f"{count:,} {unit}s"


def progress_line(what: str, done: int, total: int, unit: str, rate: float, *more: str) -> ProgressLine:
    """Returns the progress line that every command prints: done of total, further figures, rate, time left.

    Args:
        what: the work, such as "predicting test".
        done, total: how many units are done, and how many there are.
        unit: the name of the units, in the plural.
        rate: units per second; 0 where nothing is done yet, so that the time left cannot be estimated.
        more: further figures.
    """
    speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
    timing = [f"{speed} {unit}/s", f"{clock((total - done) / rate)} left"] if rate else ["time left not known yet"]
    timing = timing if done < total else timing[: bool(rate)]
    return ProgressLine(", ".join([f"{what}: {done:,} of {total:,} {unit}", *more, *timing]))


class Count:
    """Counts finished units, and every few seconds says how many are done, how fast, and how much time is left.

    Args:
        what: the work, such as "predicting test".
        total: how many units there are.
        say: prints a line.
        unit: the name of the units, in the plural.
        done: units that were finished before; the rate leaves them out.
    """

    def __init__(self, what: str, total: int, say: Callable[[str], None], *, unit: str = "images", done: int = 0):
        self._what, self._total, self._say, self._unit = what, total, say, unit
        self._before = self.done = done
        self._began = self._said = time.monotonic()

    def add(self, more: int = 1) -> None:
        """Count more units as done."""
        self.reach(self.done + more)

    def reach(self, done: int) -> None:
        """Set how many units are done in all."""
        self.done = done
        if time.monotonic() - self._said >= LINE_SECONDS and self.done < self._total:
            self.show()

    def show(self, *more: str) -> None:
        """Print the progress line now, with further figures."""
        self._said = time.monotonic()
        rate = (self.done - self._before) / max(self._said - self._began, 1e-9)
        self._say(progress_line(self._what, self.done, self._total, self._unit, rate, *more))

    def each(self, items: Iterable[Counted], size: Callable[[Counted], int] = lambda _: 1) -> Iterator[Counted]:
        """Yield the items, count each when the next one is asked for, and print the last line after all of them."""
        for item in items:
            yield item
            self.add(size(item))
        self.show()
