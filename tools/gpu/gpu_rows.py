"""Runs every entry of `python -m tools.gpu` in a process of its own, so that a failure does not stop the others."""

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
"""Forked processes need not import everything again. CUDA must not be used before a fork, so the command never does."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    expected: str
    result: str
    passed: bool | None
    """Whether the result is as expected; None where nothing is expected, or where this device cannot show it."""


Check = Callable[[argparse.Namespace], Iterator[Row]]


@dataclass(frozen=True)
class Entry:
    """One check or measurement, which yields one or more rows."""

    name: str
    check: Check
    seconds: float
    """Time limit in seconds, after which its process is ended."""


def run_entry(entry: Entry, asked: argparse.Namespace, seconds: float) -> Iterator[Row]:
    """Runs an entry in a process of its own; yields its rows as they come, and a last one with the error if it fails.

    Args:
        entry: the check or measurement to run.
        asked: the command's arguments.
        seconds: time that is left for all entries together.
    """
    limit = min(entry.seconds, seconds)
    if limit <= 0:
        yield Row(entry.name, "to be run", "not run: the time for all entries is used up; raise --minutes", False)
        return
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_send_rows, args=(entry, asked, sender))
    process.start()
    sender.close()
    try:
        yield from _rows(receiver, time.monotonic() + limit)
    except TimeoutError:
        yield Row(entry.name, f"at most {limit:.0f} s", "ended, because it was still running", False)
    except EOFError:
        process.join()
        yield Row(entry.name, "no error", f"its process ended with code {process.exitcode}", False)
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
    """Ends the entry's process, if it still runs, and the processes that it started."""
    assert group is not None
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _send_rows(entry: Entry, asked: argparse.Namespace, sender: Connection) -> None:
    """Runs an entry in its process: sends every row, then None; standard output and error go into a log file."""
    os.setsid()
    log = os.open(Path(asked.logs) / f"{entry.name.replace(' ', '-')}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        for row in entry.check(asked):
            sender.send(row)
    except BaseException as error:
        traceback.print_exc()
        sender.send(Row(entry.name, "no error", error_line(error), False))
    sender.send(None)


def error_line(error: BaseException) -> str:
    """Describes an error by its type, the first line of its message, and the innermost line outside site-packages."""
    said = (str(error).strip() or "no message").splitlines()[0]
    frames = traceback.extract_tb(error.__traceback__)
    last = next(frame for frame in reversed(frames) if "site-packages" not in frame.filename)
    return f"{type(error).__name__}: {said[:200]} ({Path(last.filename).name}:{last.lineno})"
