"""The sharding tool in processes of its own, forked from one that has all imported: a test can kill many."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from raypaml.flags import run_command
from tools import shard_openimages

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["webdataset", "pyarrow.parquet", "tests.processes"])


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
