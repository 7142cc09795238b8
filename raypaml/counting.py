"""Work that is counted as it is done: how much of all, how fast, and how long the rest will take; epochs from 1."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from raypaml.cli import clock

LINE_SECONDS = 5.0
"""Between two lines of one count."""

Counted = TypeVar("Counted")


def epoch_number(epoch: int) -> int:
    """The number of an epoch as people read it, in messages, on pages and axes: from 1. Code and files count from 0."""
    return epoch + 1


def place_text(epoch: int, step: int) -> str:
    """An epoch and a step of it, both from 0, as people read them, from 1."""
    return f"epoch {epoch_number(epoch)}, step {step + 1}"


def progress_line(what: str, done: int, total: int, unit: str, rate: float, *more: str) -> str:
    """The line that every command shows: done of all, rate, time left; what else there is to say stands before these.

    Args:
        what: is done.
        done, total: of these units.
        unit: in the plural.
        rate: units a second; 0 where nothing is done yet, so that the rest cannot be estimated.
        more: further figures.
    """
    speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
    timing = [f"{speed} {unit}/s", f"{clock((total - done) / rate)} left"] if rate else ["time left not known yet"]
    return ", ".join([f"{what}: {done:,} of {total:,} {unit}", *more, *(timing if done < total else timing[:1])])


class Count:
    """Says every few seconds how much of all is done, how fast, and how long the rest takes.

    Args:
        what: is done, such as "predicting test".
        total: units in all.
        say: takes the lines.
        unit: in the plural.
        done: units that were there before; they do not count in the rate.
    """

    def __init__(self, what: str, total: int, say: Callable[[str], None], *, unit: str = "images", done: int = 0):
        self._what, self._total, self._say, self._unit = what, total, say, unit
        self._before = self.done = done
        self._began = self._said = time.monotonic()

    def add(self, more: int = 1) -> None:
        """Count some more as done."""
        self.reach(self.done + more)

    def reach(self, done: int) -> None:
        """Count so many as done in all."""
        self.done = done
        if time.monotonic() - self._said >= LINE_SECONDS and self.done < self._total:
            self.show()

    def show(self, *more: str) -> None:
        """Say where it stands, with further figures."""
        self._said = time.monotonic()
        rate = (self.done - self._before) / max(self._said - self._began, 1e-9)
        self._say(progress_line(self._what, self.done, self._total, self._unit, rate, *more))

    def each(self, items: Iterable[Counted], size: Callable[[Counted], int] = lambda _: 1) -> Iterator[Counted]:
        """The same items, each counted once the next is asked for; at their end a line says so."""
        for item in items:
            yield item
            self.add(size(item))
        self.show()
