"""The command of a disturbed run: given again after each end, and what is done to it and to Ray from outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.ray_chaos.worker import FOLDER
from tests.two_nodes import TOKEN

ROOT = Path(__file__).parents[2]
FADE_SECONDS = 45.0
"""Seconds within which all processes of a command that has ended are gone, unless it was killed."""

_OF_A_RUN = re.compile(r"^ray::(RayTrainWorker|TrainController|_Controller|_Mailbox|Synchron|Preemption)")
"""Names of the processes that Ray starts for a run."""
_AGENT = re.compile(r"ray::(Dashboard|RuntimeEnv)Agent|/(dashboard|runtime_env)/agent")


@dataclass(frozen=True)
class End:
    """How a command ended that was not to end by itself."""

    code: int
    said: str
    """Its last line on standard error."""
    text: str
    """All of it."""


@dataclass
class Command:
    """A command that trains a run, at work."""

    argv: list[str]
    folder: Path
    """Working directory, in which no other process works; standard error goes to a file there, and temporary files to
    a folder in it."""
    stays: bool = False
    """Whether Ray's own processes stay when the command ends, as those of a cluster do."""
    ends: list[End] = field(default_factory=list)
    """Of the times before."""
    taken: Path = Path("/dev/null")
    """File that says that the fault of now comes."""
    process: subprocess.Popen[bytes] = field(init=False)
    began: float = field(init=False)
    """When it was given the last time (`time.time`)."""

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Give the command, for the first time or again."""
        variables = os.environ | TOKEN | {FOLDER: str(self.folder), "TMPDIR": str(self.temporary)}
        variables["PYTHONPATH"] = str(ROOT)
        self.temporary.mkdir(exist_ok=True)
        self.began = time.time()
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                self.argv, cwd=self.folder, env=variables, stdout=subprocess.DEVNULL, stderr=said
            )

    @property
    def temporary(self) -> Path:
        """The folder of temporary files, whose path is short enough for Ray."""
        return self.folder / "t"

    @property
    def said(self) -> Path:
        """What the command says this time."""
        return self.folder / f"said-{len(self.ends)}"

    def ended(self, patience: float = 0.0) -> End | None:
        """How the command has ended, if it has, within so many seconds; what must not be then, is an AssertionError."""
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            return None
        text = self.said.read_text(errors="replace")
        lines = text.strip().splitlines() or [""]
        assert "Traceback" not in text, text
        assert not re.search(r"^\*\*\* |^Fatal Python error|C(\+\+)? stack|raylet.*Failed|SIGSEGV", text, re.M), text
        if code != -signal.SIGKILL:
            self.check_processes(FADE_SECONDS)
        self.ends.append(End(code, lines[-1], text))
        return self.ends[-1]

    def check_processes(self, seconds: float, *, agents: bool = False) -> None:
        """AssertionError where processes are there after so many seconds; Ray's agents may stay unless asked for."""
        deadline = time.monotonic() + seconds
        while left := [found for found in self.processes() if self._is_left(found[1], agents=agents)]:
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.1)

    def _is_left(self, said: str, *, agents: bool) -> bool:
        if self.stays:
            return bool(_OF_A_RUN.search(said))
        return agents or not _AGENT.search(said)

    def wait_for_workers(self) -> None:
        """Wait until no worker is left, which may go on saving until Ray ends it."""
        deadline = time.monotonic() + FADE_SECONDS
        while left := list(self.processes("ray::RayTrainWorker")):
            assert time.monotonic() < deadline, left
            time.sleep(0.1)

    def take(self) -> None:
        """Let the worker that waits for this fault go on, since it comes now."""
        self.taken.touch()

    def processes(self, name: str = "") -> Iterator[tuple[int, str]]:
        """All processes of the command by their ids, and what they are, but not the command itself."""
        for place in Path("/proc").glob("[0-9]*"):
            try:
                here = (place / "cwd").readlink() == self.folder
                said = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace") if here else ""
                dead = here and ") Z " in (place / "stat").read_text()
            except OSError:  # it has just ended
                continue
            if said and not dead and name in said and int(place.name) != self.process.pid:
                yield int(place.name), said.strip()

    def kill(self, name: str) -> None:
        """Kill the processes that have this in their command line, as soon as there are any."""
        deadline = time.monotonic() + 60
        while not (found := list(self.processes(name))):
            assert time.monotonic() < deadline, f"no process {name}"
            time.sleep(0.1)
        self.take()
        for pid, _ in found:
            os.kill(pid, signal.SIGKILL)

    def end_and_begin(self, number: signal.Signals, *, twice: bool = False) -> End:
        """Send the command a signal, or two, wait for its end, and give it again."""
        end = self.sent(number, twice=twice)
        self.begin()
        return end

    def sent(self, number: signal.Signals, *, twice: bool = False) -> End:
        """Send the command a signal, or two, and wait for its end."""
        self.take()
        self.process.send_signal(number)
        if twice:
            time.sleep(0.5)
            self.process.send_signal(number)
        end = self.ended(120)
        assert end, f"does not end on {number.name}"
        return end


def asked(data: Path, storage: str, *flags: str) -> list[str]:
    """The command of a short run; the settings of its undisturbed twin are `tests.test_ledger.windowed`."""
    short = ["--epochs", "3", "--warmup-epochs", "1", "--delta-rel", "2.0", "--shuffle-window", "2"]
    safe = ["--checkpoint-steps", "1", "--nonfinite", "rollback", "--max-failures", "99", "--hang-seconds", "8"]
    place = ["--data", str(data), "--storage", storage, "--name", "run", "--import", "tests.ray_chaos.worker"]
    return [sys.executable, "-m", "raypaml.train", "digits", *place, *short, *safe, *flags]
