"""Measures how long `raypaml train digits` takes until its first line, its first step and its table of results.

    python tools/bench/start.py --workers 1 2 --rounds 5 --against ../before

With `--against`, another checkout, such as a worktree of an earlier commit, is measured in turns with this one. Each
run has a pseudo-terminal of its own, in which these lines are awaited. Times are wall-clock seconds; the last column is
the CPU time of all processes of a run (user and system), which a busy machine changes little. The round before the
first, which is not counted, draws the data set into the cache.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import pty
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path

from raypaml.cli import run_command
from raypaml.files import write_whole
from raypaml.writable import check_writable

HERE = Path(__file__).resolve().parents[2]
MARKS = {"first line": b"run bench", "first step": b"epoch 1/", "last epoch": b"epoch 1/1  loss", "table": b"| ---"}
"""The text by which each moment of a run is recognised; the table is on standard output, the rest on the terminal."""
COLUMNS = ("first line", "first step", "last epoch to table", "start to end", "CPU, all processes")
_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of Linux: this process inherits, and so counts, those that a run leaves without a parent."""


def measure(checkout: Path, workers: int, data: str, storage: Path) -> dict[str, float]:
    """Trains one epoch; returns the seconds of each of COLUMNS."""
    flags = ["--epochs=1", "--warmup-epochs=1", f"--storage={storage}", "--name=bench"]
    command = [sys.executable, "-m", "raypaml", "train", "digits", f"--workers={workers}", f"--data={data}", *flags]
    environment = os.environ | {"PYTHONPATH": str(checkout), "COLUMNS": "200", "TERM": "xterm"}
    mine, theirs = pty.openpty()
    before, began = _cpu(), time.monotonic()
    with subprocess.Popen(command, env=environment, cwd=storage, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        seen: dict[str, float] = {}
        assert process.stdout
        readers = [threading.Thread(target=_watch, args=(fd, seen)) for fd in (mine, process.stdout.fileno())]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    ended = time.monotonic()
    os.close(mine)
    if process.returncode or len(seen) < len(MARKS):
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}, seen: {', '.join(seen) or 'nothing'}")
    _wait_for_orphans()
    times = (seen["first line"], seen["first step"], seen["table"] + began - seen["last epoch"], ended)
    return dict(zip(COLUMNS, (*(at - began for at in times), _cpu() - before), strict=True))


def _watch(descriptor: int, seen: dict[str, float]) -> None:
    """Notes when each mark is first read, until the other side is closed."""
    text = b""
    while True:
        try:
            part = os.read(descriptor, 1 << 16)
        except OSError:  # a pseudo-terminal answers so once nobody has its other side open
            part = b""
        if not part:
            return
        text += part
        for name, mark in MARKS.items():
            if mark in text:
                seen.setdefault(name, time.monotonic())


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _wait_for_orphans() -> None:
    """Waits for processes that a run started and did not wait for, such as Ray's own."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def commit(checkout: Path) -> str:
    """Returns the commit of a checkout, followed by + if its files differ from that commit."""
    asked = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--abbrev=7", "--exclude=*"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers to measure [1 2]")
    parser.add_argument("--rounds", type=int, default=5, help="measurements, of which the median counts [5]")
    parser.add_argument("--data", default="digits", help="a data set of digits, such as a smaller one [digits]")
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--json", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    if options.json:
        check_writable(options.json.absolute().parent)
    ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0)
    checkouts = [HERE, *([options.against.resolve()] if options.against else [])]
    print(f"{date.today()}, {os.cpu_count()} cores ({platform.machine()}), load {os.getloadavg()[0]:.1f}; seconds\n")
    print(f"| commit | workers | {' | '.join(COLUMNS)} |\n| --- | ---: |{' ---: |' * len(COLUMNS)}")
    figures: list[dict[str, object]] = []
    for workers in options.workers:
        rounds: dict[Path, list[dict[str, float]]] = {checkout: [] for checkout in checkouts}
        for number in range(-1, options.rounds):  # round -1 only fills caches
            for checkout in checkouts:
                with tempfile.TemporaryDirectory(prefix="bench-start-") as storage:
                    one = measure(checkout, workers, options.data, Path(storage))
                if number >= 0:
                    rounds[checkout].append(one)
        for checkout, each in rounds.items():
            medians = {name: statistics.median(one[name] for one in each) for name in COLUMNS}
            shown = " | ".join(f"{value:.1f}" for value in medians.values())
            print(f"| {commit(checkout)} | {workers} | {shown} |", flush=True)
            figures.append({"commit": commit(checkout), "workers": workers, "rounds": each})
    if options.json:
        write_whole(options.json, json.dumps(figures, indent=1))


if __name__ == "__main__":
    run_command(main, "python tools/bench/start.py")
