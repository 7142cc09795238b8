"""Processes forked from one that has all imported: ranks of a process group, and a sharding tool for tests to kill."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from raypaml.cli import run_command
from tools import shard_openimages

CONTEXT = multiprocessing.get_context("forkserver")
IMPORTED = ["webdataset", "pandas", "PIL.JpegImagePlugin", "PIL.PngImagePlugin", "pyarrow.parquet", "tests.processes"]
IMPORTED += ["tests.conftest", "raypaml.training.loop"]
"""Pandas, where it is installed, because Arrow loads it."""
CONTEXT.set_forkserver_preload(IMPORTED)


def start(argv: list[str], said: Path, before: Callable[..., None] | None = None, *args: Any) -> ForkServerProcess:
    """Start the command; what it says goes to the file `said`; `before(*args)`, of a module, is called in it first."""
    process = CONTEXT.Process(target=_run, args=(argv, said, before, args), daemon=True)
    process.start()
    return process


def finish(process: ForkServerProcess) -> int:
    """Its exit code, within a minute."""
    process.join(60)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"process {process.pid} did not end")
    return process.exitcode


def kill(process: ForkServerProcess) -> bool:
    """SIGKILL, now; whether it was still at work."""
    assert process.pid
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
    return finish(process) == -signal.SIGKILL


def _run(argv: list[str], said: Path, before: Callable[..., None] | None, args: tuple[Any, ...]) -> None:
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["shard_openimages.py", *argv]
    if before:
        before(*args)
    run_command(shard_openimages.main, shard_openimages.PROG)


# --- Called in the process before the command -------------------------------------------------------------------------

CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}


def before_each_change(out: Path, act: Callable[[str, tuple[Any, ...]], None]) -> None:
    """Call `act(event, arguments)` before Python opens for writing, renames or removes anything under `out`."""
    busy = False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal busy
        if busy or event not in CHANGES:
            return
        if event == "open" and (not args[2] & (os.O_WRONLY | os.O_RDWR) or Path(str(args[0])).is_dir()):
            return  # read, or a file without a name
        if str(args[0]).startswith(str(out)) or (event in ("os.remove", "os.rmdir") and args[1] >= 0):
            busy = True
            act(event, args)
            busy = False

    sys.addaudithook(hook)


def die_before(out: Path, number: int) -> None:
    """SIGKILL itself before the change of this number."""
    left = iter(range(number))

    def count(event: str, args: tuple[Any, ...]) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    before_each_change(out, count)


def note_states(out: Path, notes: Path) -> None:
    """Before each change a line: what will be changed, and the SHA-256 of every file that has its name."""

    def note(event: str, args: tuple[Any, ...]) -> None:
        with notes.open("a") as file:
            file.write(json.dumps([event, str(args[0]), named(out)]) + "\n")

    before_each_change(out, note)


def named(out: Path) -> dict[str, str]:
    """SHA-256 of every file under `out` but those that say that they are unfinished, and the lock."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file() and not path.name.endswith(".unfinished") and path.name != "lock"
    }
