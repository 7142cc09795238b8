"""Rows of the table of `python -m tools.gpu`, each from a process of its own, so that no failure stops the others."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

CONTEXT = multiprocessing.get_context("fork")
"""A fork has imported everything already; the command itself never touches CUDA, which a fork would not survive."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    expected: str
    found: str
    passed: bool | None
    """None where nothing is expected, or where this device cannot show it."""


Check = Callable[[argparse.Namespace], Iterator[Row]]


@dataclass(frozen=True)
class Entry:
    """One check or measurement; it may have several rows."""

    name: str
    check: Check
    seconds: float
    """Seconds after which it is ended."""


def run_entry(entry: Entry, asked: argparse.Namespace, seconds: float) -> Iterator[Row]:
    """Run the entry in a process of its own and give its rows as they come; how it failed is one more row.

    Args:
        entry: what to run.
        asked: the command's arguments.
        seconds: left for all entries together.
    """
    limit = min(entry.seconds, seconds)
    if limit <= 0:
        yield Row(entry.name, "to be run", "the time for all entries is used up; --minutes gives more", False)
        return
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_send_rows, args=(entry, asked, sender))
    process.start()
    sender.close()
    try:
        yield from _rows(receiver, time.monotonic() + limit)
    except TimeoutError:
        yield Row(entry.name, f"at most {limit:.0f} s", "still running, ended", False)
    except EOFError:
        process.join()
        yield Row(entry.name, "an end without an error", f"its process ended with code {process.exitcode}", False)
    finally:
        _end(process.pid)
        process.join()


def _rows(receiver: Connection, deadline: float) -> Iterator[Row]:
    while receiver.poll(max(0.0, deadline - time.monotonic())):
        row = receiver.recv()
        if row is None:
            return
        yield row
    raise TimeoutError


def _end(group: int | None) -> None:
    """End the entry's process, where it still is, with those that it started."""
    assert group is not None
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _send_rows(entry: Entry, asked: argparse.Namespace, sender: Connection) -> None:
    """In the new process: send every row, then None; its own output goes into a log."""
    os.setsid()
    log = os.open(Path(asked.logs) / f"{entry.name.replace(' ', '-')}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        for row in entry.check(asked):
            sender.send(row)
    except BaseException as error:
        traceback.print_exc()
        sender.send(Row(entry.name, "an end without an error", error_line(error), False))
    sender.send(None)


def error_line(error: BaseException) -> str:
    """The kind of an error, the first line of what it says, and the last line of ours on the way to it."""
    said = (str(error).strip() or "no message").splitlines()[0]
    frames = traceback.extract_tb(error.__traceback__)
    last = next(frame for frame in reversed(frames) if "site-packages" not in frame.filename)
    return f"{type(error).__name__}: {said[:200]} ({Path(last.filename).name}:{last.lineno})"
