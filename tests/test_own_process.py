"""One worker trains in the process of the command: the same weights, records, signals, errors and watchdog."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

import raypaml
from raypaml.cluster import launch, own_process, own_signals, session
from raypaml.cluster.own_signals import OwnSignals
from raypaml.cluster.signals import STOPPING
from raypaml.cluster.sole_use import is_used_elsewhere, sole_use
from raypaml.errors import StoppedAtOnce
from raypaml.recipes import recipe
from raypaml.reports.progress import Display
from raypaml.runs.events import Event
from raypaml.runs.history import read_history
from raypaml.settings import RunConfig
from raypaml.training.job import Job, prepare_job
from raypaml.training.watch import Beat
from tests.conftest import MEASURED, newest_files, train_here
from tests.reported import place_of

PROG = "raypaml train digits"
SHORT = {"epochs": 2, "warmup_epochs": 1, "delta_rel": 2.0, "workers": 1}


@pytest.fixture(autouse=True)
def _no_cluster_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


class Shown(Display):
    """A display that may do something at an event; what it says is kept."""

    def __init__(self, at: Callable[[Event], None] = lambda _: None) -> None:
        self.text = io.StringIO()
        super().__init__(Console(file=self.text, width=400))
        self._at = at

    @property
    def lines(self) -> list[str]:
        """What it says, without the time that a log has before it."""
        return [re.sub(r"^[\d-]{10} [\d:]{8}  ", "", line) for line in self.text.getvalue().splitlines()]

    def update(self, event: Event) -> None:
        super().update(event)
        self._at(event)


def job_of(data: Path, storage: Path, **values: Any) -> Job:
    asked = SHORT | {"data": str(data), "storage": str(storage), "name": "run"} | values
    return prepare_job(recipe("digits").override(asked), lambda _: None)


def signalling(number: signal.Signals, times: int) -> Callable[[Event], None]:
    """At the first of all steps, so many signals."""

    def at(event: Event) -> None:
        if place_of(event) == (0, 1):
            for _ in range(times):
                signal.raise_signal(number)

    return at


@pytest.fixture(scope="module")
def bare(tiny_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = SHORT | {"data": str(tiny_digits), "storage": str(tmp_path_factory.mktemp("bare")), "name": "run"}
    return train_here(recipe("digits").override(values)).folder


@pytest.mark.parametrize(
    ("values", "address", "own"),
    [
        ({}, "", True),
        ({"workers": 2}, "", False),
        ({"address": "local"}, "", False),
        ({}, "10.0.0.1:6379", False),
    ],
)
def test_one_worker_without_a_cluster_needs_no_other_process(
    values: dict[str, Any], address: str, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert own_process.is_for_own_process(RunConfig(**values)) == own


def test_a_ray_that_the_program_has_started_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from raypaml.cluster import session

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    for task, train_worker, own in ((False, False, False), (True, False, True), (True, True, False)):
        monkeypatch.setattr(session, "is_task", lambda task=task: task)
        monkeypatch.setattr(session, "is_train_worker", lambda train_worker=train_worker: train_worker)
        assert own_process.is_for_own_process(RunConfig()) == own


def test_it_leaves_what_the_bare_loop_does_and_gives_torch_back(bare: Path, tiny_digits: Path, tmp_path: Path) -> None:
    job = job_of(tiny_digits, tmp_path)
    threads, drawn = torch.get_num_threads(), torch.get_rng_state()
    with Shown() as display:
        assert launch.fit(job, PROG, display) == 0
    folder = tmp_path / "run"
    assert newest_files(folder) == newest_files(bare)
    kept = [
        [{k: v for k, v in one.items() if k not in MEASURED} for one in read_history(run)] for run in (folder, bare)
    ]
    assert kept[0] == kept[1]
    assert list((folder / "predictions" / "test").iterdir())
    assert json.loads((folder / "config.json").read_text())["config"]["run"]["workers"] == 1
    assert "rank 0 of 1 starts" in (folder / "logs" / "worker-0.log").read_text()
    assert (torch.get_num_threads(), torch.equal(torch.get_rng_state(), drawn)) == (threads, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_name_goes_on(
    number: signal.Signals, bare: Path, tiny_digits: Path, tmp_path: Path
) -> None:
    before = signal.getsignal(number)
    with Shown(signalling(number, 1)) as display:
        assert launch.fit(job_of(tiny_digits, tmp_path), PROG, display) == number
    assert STOPPING in display.lines
    assert display.lines[-1] == f"stopped; continue with: {PROG} --name run --storage {tmp_path}"
    assert signal.getsignal(number) == before
    with Shown() as display:
        assert launch.fit(job_of(tiny_digits, tmp_path), PROG, display) == 0
    assert "continues from epoch" in display.text.getvalue()
    assert newest_files(tmp_path / "run") == newest_files(bare)


def test_the_second_signal_stops_at_once(tiny_digits: Path, tmp_path: Path) -> None:
    with Shown(signalling(signal.SIGINT, 2)) as display, pytest.raises(StoppedAtOnce):
        launch.fit(job_of(tiny_digits, tmp_path), PROG, display)
    assert "stopped at once; what came after the last checkpoint is lost; continue with" in display.text.getvalue()
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_the_second_signal_ends_a_process_that_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, said, codes = threading.Event(), list[str](), list[int]()
    monkeypatch.setattr(own_signals, "_PATIENCE", 0.01)
    monkeypatch.setattr(os, "_exit", lambda code: (codes.append(code), ended.set()))
    with OwnSignals(said.append):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(StoppedAtOnce):
            signal.raise_signal(signal.SIGTERM)
        assert ended.wait(10)
    assert (codes, said) == ([143], [STOPPING])
    assert signal.set_wakeup_fd(-1) == -1


def test_a_process_trains_one_run_at_a_time(tiny_digits: Path, tmp_path: Path) -> None:
    """Two in threads took each other's random numbers: other weights, or an error that spoke of dropout."""
    with ThreadPoolExecutor(1) as other, sole_use(), sole_use():
        settings: dict[str, Any] = {"data": tiny_digits, "storage": tmp_path, "name": "a", "workers": 1}
        second = other.submit(raypaml.Run.train, "digits", progress=False, **settings)
        with pytest.raises(raypaml.UserError, match="another thread of this process trains already, or has"):
            second.result()
        with pytest.raises(ValueError, match="another thread of this process trains already, or has"):
            other.submit(lambda: session.join().__enter__()).result()
    assert not is_used_elsewhere()
    assert not (tmp_path / "a").exists()


def test_in_another_thread_signals_stay_the_callers() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[Any] = []

    def enter() -> None:
        with OwnSignals(lambda _: None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """Errors that the loop raises, one a try; then it finishes."""
    errors: list[Exception] = []

    def train(*_: Any, **__: Any) -> bool:
        if errors:
            raise errors.pop(0)
        return True

    monkeypatch.setattr(own_process, "train", train)
    return errors


def test_what_may_go_better_is_tried_again(tries: list[Exception], tiny_digits: Path, tmp_path: Path) -> None:
    tries += [OSError("the store is away"), RuntimeError("rank 0: no memory")]
    with Shown() as display:
        assert launch.fit(job_of(tiny_digits, tmp_path), PROG, display) == 0
    lost = "lost: rank 0 (the store is away); it starts again from the last checkpoint"
    assert lost in display.lines
    log = (tmp_path / "run" / "logs" / "worker-0.log").read_text()
    assert "OSError: the store is away" in log
    assert lost in log


@pytest.mark.parametrize(
    ("error", "kind", "said", "left"),
    [
        (ValueError("shard 3 is damaged"), ValueError, "rank 0: shard 3 is damaged", 1),
        (OSError(28, "No space left on device"), ValueError, "make room and give the command again", 1),
        (torch.AcceleratorError("CUDA error: device-side assert"), RuntimeError, "rank 0: CUDA error", 1),
        (KeyError("x"), RuntimeError, r"rank 0: KeyError\('x'\)", 1),
        (RuntimeError("again"), RuntimeError, "rank 0: again", 0),
    ],
)
def test_what_would_not_go_better_is_raised_as_by_a_worker_of_ray(
    error: Exception,
    kind: type[Exception],
    said: str,
    left: int,
    tries: list[Exception],
    tiny_digits: Path,
    tmp_path: Path,
) -> None:
    tries.append(error)
    with Shown() as display, pytest.raises(kind, match=said):
        launch.fit(job_of(tiny_digits, tmp_path, max_failures=left), PROG, display)
    assert tries == []


@pytest.mark.parametrize(("threads", "environment", "used"), [(0, None, 1), (0, "3", 2), (1, None, 2)])
def test_no_setting_of_threads_means_those_of_a_worker_of_ray(
    threads: int, environment: str | None, used: int, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    torch.set_num_threads(2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)  # torch has read it when it was imported
    own_process._use_threads_of_a_worker(threads)
    assert torch.get_num_threads() == used


def test_the_watchdog_says_where_the_loop_hangs_and_how_to_go_on() -> None:
    with Shown() as display:
        watchdog = own_process._Watchdog(0.2, display, "continue with: X")
        beat = Beat(rank=0, world_size=1, process="h:1", moves=3, place="epoch 1, step 2, reading train-0.tar")
        assert not watchdog.hear(beat)
        deadline = time.monotonic() + 10
        while not watchdog.hear(beat):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    (line,) = display.lines
    said = r"rank 0 \(h:1\) hangs, no progress for \d+ s: epoch 1, step 2, reading train-0\.tar; its stacks"
    assert re.match(said, line), line
    assert line.endswith("; this process ends; continue with: X")
