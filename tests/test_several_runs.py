"""Two runs and a search at once on one cluster, from two programs, in one storage folder and one cache.

Each ends as it does alone, to the bit, though a worker of one is killed. They want six CPUs of four, so that one waits,
and says for whom.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest

from raypaml.data.digits import digits_folder
from raypaml.runs.run_folder import read_config
from tests.conftest import TINY, train_here
from tests.fault_table import Row, note
from tests.slow_steps import SLOW, until
from tests.test_train import weights
from tests.two_nodes import TOKEN, node, wait_for_cpus

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(400)]
PORT, OTHERS = 26679, ("--ray-client-server-port=26680", "--dashboard-agent-listen-port=0")
SHORT = {"epochs": 2, "warmup_epochs": 1, "delta_rel": 2.0, "device": "cpu", "reproducible": True}

PROGRAM = """
import sys, threading, time
from pathlib import Path
from typing import Self
import ray, raypaml
address, go_on, *names = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
class Pause(raypaml.Callback):
    def on_epoch(self, record):
        while record["epoch"] == 0 and not Path(go_on).exists():
            time.sleep(0.1)
def train(name):
    raypaml.Run.train("digits", name=name, workers=2, callbacks=[Pause()], **SETTINGS)
threads = [threading.Thread(target=train, args=[name]) for name in names]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@contextmanager
def head(cpus: int) -> Iterator[str]:
    """The address of a Ray of one node."""
    with tempfile.TemporaryDirectory(prefix="rp-", ignore_cleanup_errors=True) as temp:
        process = node(temp, "--head", f"--port={PORT}", *OTHERS, cpus=str(cpus))
        try:
            wait_for_cpus(f"127.0.0.1:{PORT}", cpus)
            yield f"127.0.0.1:{PORT}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # asked to end, it would wait for detached actors of Ray's own
            process.wait()


@contextmanager
def store(folder: Path) -> Iterator[str]:
    """The address of a simulated S3 that has the files of a folder."""
    command = [sys.executable, "-m", "tests.s3_store", str(folder), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"s3://anonymous@images?endpoint_override=http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.kill()


class Said:
    """A program, which is killed if it outlives the block, and the lines that it has said so far."""

    def __init__(self, *command: str, **environment: str) -> None:
        self._command, self.lines = [sys.executable, *command], list[str]()
        self._told = os.environ | TOKEN | environment

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command, env=self._told, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def end(self) -> None:
        code = self.process.wait(200)
        self._thread.join(10)
        assert code == 0, "".join(self.lines)

    def waits(self) -> list[str]:
        """What it said of waiting for others."""
        return [line.strip() for line in self.lines if "waiting for" in line and "hold" in line]


def starts(run: Path) -> list[str]:
    """The process ids of rank 0, of each time that the run's workers have started."""
    log = run / "logs" / "worker-0.log"
    return re.findall(r":(\d+) rank 0 of \d+ starts", log.read_text()) if log.is_file() else []


def wait(condition: Callable[[], object], *programs: Said) -> None:
    """Wait until something is so, while the programs run."""
    deadline = time.monotonic() + 120
    while not condition():
        said = "".join(line for one in programs for line in one.lines)
        assert all(one.process.poll() is None for one in programs), said
        assert time.monotonic() < deadline, said
        time.sleep(0.1)


def test_two_runs_and_a_search_at_once_end_as_each_does_alone(tmp_path: Path) -> None:
    storage, go_on = tmp_path / "runs", tmp_path / "go on"
    with head(4) as address, store(digits_folder(num_scenes=TINY)) as data:
        place = {"data": data, "storage": str(storage), "cache": str(tmp_path / "cache")}
        program = PROGRAM.replace("SETTINGS", repr(SHORT | place))
        long = SHORT | place | {"epochs": 12}  # with slow steps, so that the runs find the search at work
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in long.items() if value is not True]
        flags += [SLOW, "--reproducible", "--search", "alpha=2:8", "--share", "1", "--trials", "2", "--no-early-stop"]
        tune = ["-m", "raypaml.tune", "digits", "--workers", "1", "--address", address, "--name", "s", *flags]
        with Said("-c", program, address, str(go_on), "a", "b") as runs, Said(*tune, **until(go_on)) as search:
            wait(lambda: runs.waits() or search.waits(), runs, search)
            wait(lambda: starts(storage / "a") or starts(storage / "b"), runs, search)
            hit = storage / ("a" if starts(storage / "a") else "b")
            os.kill(int(starts(hit)[-1]), signal.SIGKILL)
            began = time.monotonic()
            go_on.touch()  # the first epoch of a and b ends
            wait(lambda: len(starts(hit)) > 1, runs)
            seconds = time.monotonic() - began
            runs.end()
            search.end()
        for line in runs.waits() + search.waits():
            assert re.search(r"[12] CPUs? wanted, \d of 4 CPUs (is|are) free: .* holds? [1-4]", line), line
        records = [*storage.glob("?/config.json"), *storage.glob("s/trials/*/config.json")]
        assert len(records) == 4
        for path in records:
            config = read_config(path).override({"name": path.parent.name, "storage": str(tmp_path / "alone")})
            alone = train_here(config.override({"workers": 1, "address": ""})).folder
            assert weights(path.parent) == weights(alone), path
        note(Row("two runs and a search at once, waiting for CPUs: a worker of one killed", seconds, "equal"))
