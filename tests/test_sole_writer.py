"""Two commands on one run or search: the second is refused in one line, and the first goes on as if alone."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import raypaml
from raypaml.cluster import as_loop
from raypaml.runs.history import read_history
from raypaml.runs.shared_lock import SharedLock
from raypaml.runs.sole_writer import LOCK_FILE, sole_writer

SHORT = {"epochs": 2, "warmup_epochs": 1, "delta_rel": 2.0, "workers": 1, "name": "run", "progress": False}
HOLD = """
import sys, time, pathlib
from raypaml.runs.shared_lock import SharedLock
from raypaml.runs.sole_writer import sole_writer
with sole_writer(pathlib.Path(sys.argv[1]), "raypaml train", print):
    print("held", flush=True)
    time.sleep(60)
"""


def said_nothing(line: str) -> None:
    raise AssertionError(line)


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of a folder, until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_run_that_another_process_trains_is_refused_until_that_is_killed(tiny_digits: Path, tmp_path: Path) -> None:
    asked = SHORT | {"data": tiny_digits, "storage": tmp_path, "epochs": 1}
    with held_elsewhere(tmp_path / "run") as process:
        with pytest.raises(raypaml.UserError) as refused:
            raypaml.Run.train("digits", **asked)
        host = f"{os.uname().nodename}, process {process.pid}"
        told = rf"raypaml train, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d \S+ \({host}\)"
        ways = "wait for it, end it, or give this one another --name"
        assert re.fullmatch(rf"{tmp_path}/run: is being written by {told}; {ways}", str(refused.value))
        assert [path.name for path in (tmp_path / "run").iterdir()] == [
            LOCK_FILE
        ]  # nothing was written, not even a log
        process.kill()  # SIGKILL
        process.wait()
        assert raypaml.Run.train("digits", **asked).is_finished


class TrainsItself(raypaml.Callback):
    """Asks for the run again after its first epoch."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.asked, self.refused = asked, ""

    def on_epoch(self, record: object) -> None:  # noqa: ARG002
        if not self.refused:
            with pytest.raises(raypaml.UserError) as refused:
                raypaml.Run.train("digits", **self.asked)
            self.refused = str(refused.value)


def test_the_first_goes_on_as_if_alone(evaluated_digits: Path, trained: tuple[Path, str], tmp_path: Path) -> None:
    again = TrainsItself(SHORT | {"data": evaluated_digits, "storage": tmp_path})
    run = raypaml.Run.train("digits", callbacks=again, **again.asked)
    assert f"process {os.getpid()}" in again.refused
    assert losses(run.folder) == losses(trained[0])


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_history(run)]


def test_a_search_is_refused_too(tiny_digits: Path, tmp_path: Path) -> None:
    asked = {"data": tiny_digits, "storage": tmp_path, "name": "search", "epochs": 2, "progress": False}
    with (
        sole_writer(tmp_path / "search", "raypaml tune", said_nothing),
        pytest.raises(raypaml.UserError, match=r"search: is being written by raypaml tune, since"),
    ):
        raypaml.Search.run("digits", search="alpha=1|2", **asked)
    assert not (tmp_path / "search").exists()  # nothing of a search was begun


@pytest.mark.parametrize("name", [".", "which/is/removed"])  # the one before leaves nothing in a folder that it made
def test_who_is_started_again_waits_for_the_process_before(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    held, ended = threading.Event(), threading.Event()

    def before() -> None:
        with sole_writer(folder, "before", said_nothing):
            held.set()
            ended.wait(30)

    thread = threading.Thread(target=before)
    thread.start()
    assert held.wait(30)
    threading.Timer(0.1, ended.set).start()
    with sole_writer(folder, "again", said_nothing, patience=30):
        thread.join(30)
        assert "again, since" in (folder / LOCK_FILE).read_text()


def test_a_lock_on_a_file_that_its_holder_removes_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, path = fcntl.flock, tmp_path / LOCK_FILE

    def late(file: int, how: int) -> None:
        monkeypatch.undo()
        path.unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert SharedLock(path).take("one")
    assert not SharedLock(path).take("another")


def test_what_others_put_into_a_new_folder_stays(tmp_path: Path) -> None:
    with sole_writer(tmp_path / "storage" / "run", "raypaml train", said_nothing):
        (tmp_path / "storage" / "another run").mkdir()
    assert [path.name for path in (tmp_path / "storage").iterdir()] == ["another run"]


def test_a_trainer_of_the_users_own_holds_its_run(
    tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(as_loop, "RESTART_SECONDS", 0.0)
    with (
        sole_writer(tmp_path / "run", "raypaml train", said_nothing),
        pytest.raises(ValueError, match="is being written by raypaml train, since"),
    ):
        raypaml.train_in_worker("digits", data=str(tiny_digits), storage=str(tmp_path), name="run", device="cpu")


def test_without_locks_it_is_said_and_nobody_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    said: list[str] = []
    with sole_writer(tmp_path, "raypaml train", said.append):
        pass
    assert said == [
        f"{tmp_path}: its file system has no locks (No locks available): start no other command that writes there"
    ]
