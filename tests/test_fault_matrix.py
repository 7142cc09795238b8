"""Faults on real Ray, one row each: what it takes to recover, and whether the weights are the undisturbed run's."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from raypaml.data.storage import Location
from raypaml.recipes import recipe
from raypaml.runs.checkpoint import valid_checkpoints
from raypaml.runs.mirror import Mirror
from tests.conftest import train_here
from tests.fault_table import Row, note
from tests.slow_steps import SLOW, until
from tests.test_mirror import CREDENTIALS
from tests.test_sharding_s3 import running as running_store
from tests.test_train import weights

EPOCHS = 8
OUTAGE = 10  # seconds
pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(900)]


@dataclass
class Running:
    """A command at work, in its second epoch or later; its steps are slow until `enough` is there."""

    command: list[str]
    folder: Path
    enough: Path
    process: subprocess.Popen[str]

    def worker(self, rank: int) -> int:
        """Process id of the worker that last said it has this rank."""
        said = (self.folder / "logs" / f"worker-{rank}.log").read_text()
        return int(re.findall(rf":(\d+) rank {rank} of", said)[-1])

    def wait_for_life(self, count: int) -> None:
        """Wait until rank 0 has continued from a checkpoint so many times."""
        log, deadline = self.folder / "logs" / "worker-0.log", time.monotonic() + 300
        while log.read_text().count("continues from") < count:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    def again(self) -> None:
        """Give the command again, and wait for it."""
        self.process.communicate()
        self.process = given(self.command, self.enough)


def asked(data: Path, storage: Path | str, *flags: str) -> list[str]:
    short = ["--epochs", str(EPOCHS), "--warmup-epochs", "1", "--delta-rel", "0.5", "--checkpoint-steps", "1"]
    place = ["--data", str(data), "--storage", str(storage), "--name", "r", "--workers", "2"]
    return [sys.executable, "-m", "raypaml.train", *place, *short, SLOW, *flags]


def given(command: list[str], enough: Path) -> subprocess.Popen[str]:
    """A command that was given, whose steps are slow until a file is there."""
    told = os.environ | until(enough)
    return subprocess.Popen(command, env=told, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def start(data: Path, storage: Path, *flags: str) -> Running:
    command, enough = asked(data, storage, *flags), storage / "enough"
    running = Running(command, storage / "r", enough, given(command, enough))
    wait_for_epoch(running, 1)
    return running


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def saved(mirror: Mirror, epoch: int) -> bool:
    """Whether the store has a checkpoint of this epoch or a later one: its own may be there for a moment only."""
    return max(mirror.there(["checkpoints"]), default="") >= f"checkpoints/{epoch:04d}"


def wait_for_epoch(running: Running, epoch: int) -> None:
    deadline = time.monotonic() + 240
    while not (valid := list((running.folder / "checkpoints").glob("[0-9]*"))) or max(valid).name < f"{epoch:04d}":
        assert running.process.poll() is None, running.process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def undisturbed(tiny_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    values = {"epochs": EPOCHS, "warmup_epochs": 1, "delta_rel": 0.5, "name": "alone", "workers": 1}
    place = {"data": str(tiny_digits), "storage": str(tmp_path_factory.mktemp("alone"))}
    return weights(train_here(recipe("digits").override(values | place)).folder)


def conclude(fault: str, seconds: float, running: Running, undisturbed: str) -> str:
    """Wait for the end, add the row; what was said."""
    running.enough.touch()
    _, said = running.process.communicate(timeout=400)
    assert running.process.returncode == 0, said
    equal = weights(running.folder) == undisturbed
    note(Row(fault, seconds, "equal" if equal else "NOT EQUAL"))
    assert equal
    return said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_a_worker_is_lost(number: signal.Signals, tiny_digits: Path, tmp_path: Path, undisturbed: str) -> None:
    running = start(tiny_digits, tmp_path, "--hang-seconds", "15")
    began = time.monotonic()
    os.kill(running.worker(1), number)
    running.wait_for_life(1)
    seconds = time.monotonic() - began
    what = {signal.SIGKILL: "worker killed", signal.SIGSTOP: "worker hung, limit 15 s (own watchdog)"}[number]
    said = conclude(what, seconds, running, undisturbed)
    if number == signal.SIGSTOP:
        assert re.search(r"rank 1 \(\S+:\d+\) hangs, no heartbeat for \d+ s: epoch \d, step \d, \w+", said)
    assert "lost: rank" in said


def test_the_driver_is_killed_and_the_command_given_again_twice(
    tiny_digits: Path, tmp_path: Path, undisturbed: str
) -> None:
    running = start(tiny_digits, tmp_path)
    began = time.monotonic()
    for life in (1, 2):
        running.process.kill()
        running.again()
        running.wait_for_life(life)
    conclude("driver killed, command given again, twice", (time.monotonic() - began) / 2, running, undisturbed)


def test_sigterm_saves_ends_with_143_and_the_command_goes_on(
    tiny_digits: Path, tmp_path: Path, undisturbed: str
) -> None:
    running = start(tiny_digits, tmp_path)
    began = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 143
    note(Row("SIGTERM: checkpoint and exit code 143", time.monotonic() - began, "saved"))
    running.again()
    running.wait_for_life(1)
    conclude("SIGTERM, command given again", time.monotonic() - began, running, undisturbed)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "0 bytes": lambda _: b"",
    "altered": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_checkpoint_is_damaged(damage: str, tiny_digits: Path, tmp_path: Path, undisturbed: str) -> None:
    running = start(tiny_digits, tmp_path)
    workers = [Path(f"/proc/{running.worker(rank)}") for rank in (0, 1)]
    running.process.kill()
    running.process.wait()
    wait_until(lambda: not any(worker.exists() for worker in workers))  # they go on saving until Ray ends them
    newest = valid_checkpoints(running.folder / "checkpoints")[0][-1] / "model.safetensors"
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    began = time.monotonic()
    running.again()
    running.wait_for_life(1)
    said = conclude(f"newest checkpoint {damage}", time.monotonic() - began, running, undisturbed)
    assert "passed over damaged checkpoints" in said


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")
def test_the_disk_is_full(tiny_digits: Path, tmp_path: Path, undisturbed: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "small", str(disk)], check=True)
    try:
        running = start(tiny_digits, disk)
        with pytest.raises(OSError, match="No space"):
            (disk / "ballast").write_bytes(bytes(64 * 2**20))
        _, said = running.process.communicate(timeout=200)
        assert running.process.returncode == 2, said
        assert re.search(r"No space left on device.*The last checkpoint is whole: make room", said), said
        assert valid_checkpoints(running.folder / "checkpoints")[0]
        (disk / "ballast").unlink()
        began = time.monotonic()
        running.again()
        running.wait_for_life(1)
        conclude("disk full, then room made, command given again", time.monotonic() - began, running, undisturbed)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_the_store_refuses_for_a_while(
    tiny_digits: Path, tmp_path: Path, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with running_store(tmp_path, 0.05) as store:
        address, enough = store.address("images/runs", ""), tmp_path / "enough"
        process = given(asked(tiny_digits, address), enough)
        mirror = Mirror(tmp_path / "pulled", Location(address) / "r")
        wait_until(lambda: saved(mirror, 1))
        store.ask("_down/0")
        time.sleep(OUTAGE)
        store.ask(f"_down/{sys.maxsize}")
        began, newest = time.monotonic(), max(mirror.there(["checkpoints"]))
        wait_until(lambda: max(mirror.there(["checkpoints"])) > newest)
        seconds = time.monotonic() - began
        enough.touch()
        _, said = process.communicate(timeout=400)
        assert process.returncode == 0, said
        mirror.pull_checkpoints()
        equal = weights(tmp_path / "pulled") == undisturbed
        fault = f"store: 5 % of requests refused (503), all for {OUTAGE} s; its next checkpoint"
        note(Row(fault, seconds, "equal" if equal else "NOT EQUAL"))
        assert store.ask("_counts")["503"] > 10
        assert equal
