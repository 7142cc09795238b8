"""Searches on real Ray that meet faults: every trial ends with the weights and scores of an undisturbed one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raypaml.recipes import recipe
from raypaml.search.faults import read_faults
from tests.conftest import MEASURED, train_here
from tests.fault_table import Row, note
from tests.slow_steps import SLOW, until
from tests.test_train import weights
from tests.two_nodes import TOKEN, TwoNodes, drain, worker_node

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(600)]
SHORT = {"epochs": 90, "warmup_epochs": 1, "delta_rel": 0.5}
SHORTER = 30
"""Epochs of trials that need not last long."""
FIRST, SECOND = "delta_rel=0.5", "delta_rel=1"
PORT = 26479
NOTICE = 20


class Searching:
    """A search at work."""

    def __init__(self, data: Path, storage: Path, *flags: str, **environment: str) -> None:
        short = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]
        plan = ["--searcher=grid", "--no-early-stop", "--share=1", "--checkpoint-steps=1", "--name=s"]
        where = [f"--data={data}", f"--storage={storage}"]
        self._command = [sys.executable, "-m", "raypaml.tune", *where, *short, *plan, *flags]
        self._environment = os.environ | environment
        self.folder = storage / "s"
        self.start()

    def start(self) -> None:
        """Give the command, for the first time or again."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(self._command, env=self._environment, **streams)  # type: ignore[call-overload]

    def trial(self, name: str) -> Path:
        return self.folder / "trials" / name

    def said(self, name: str) -> str:
        """The log of a trial's worker."""
        log = self.trial(name) / "logs" / "worker-0.log"
        return log.read_text() if log.is_file() else ""

    def wait(self, condition: Callable[[], object]) -> float:
        """Wait until something is so; the seconds that it took."""
        began = time.monotonic()
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() - began < 200, self.said(FIRST) + self.said(SECOND)
            time.sleep(0.05)
        return time.monotonic() - began

    def wait_for_epoch(self, name: str, epoch: int) -> None:
        folder = self.trial(name) / "checkpoints"
        self.wait(lambda: any(path.name >= f"{epoch:04d}" for path in folder.glob("[0-9]*")))

    def kill_worker(self, name: str, number: signal.Signals) -> Callable[[], bool]:
        """Send a signal to the worker of a trial; a function that says whether another one has gone on since."""
        lives = self.said(name).count("continues from")
        os.kill(int(re.findall(r":(\d+) rank 0 of", self.said(name))[-1]), number)
        return lambda: self.said(name).count("continues from") > lives

    def again(self) -> Callable[[], bool]:
        """Give the command again; a function that says whether all trials that are left go on."""
        left = [name for name in (FIRST, SECOND) if not (self.trial(name) / "result.json").exists()]
        lives = {name: self.said(name).count("continues from") for name in left}
        self.start()
        return lambda: all(self.said(name).count("continues from") > count for name, count in lives.items())

    def end(self, code: int = 0) -> str:
        """Wait for the end; what was said."""
        said: str = self.process.communicate(timeout=300)[0]
        assert self.process.returncode == code, said
        return said


def figures(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in MEASURED} for record in records]


@pytest.fixture
def begin(tiny_digits: Path, tmp_path: Path) -> Iterator[Callable[..., Searching]]:
    """Begins a search; none is left behind."""
    begun: list[Searching] = []

    def call(*flags: str, **environment: str) -> Searching:
        begun.append(Searching(tiny_digits, tmp_path, *flags, **environment))
        return begun[-1]

    yield call
    for one in begun:
        one.process.kill()
        one.process.communicate()


@pytest.fixture(scope="module")
def alone(tiny_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of both trials, each trained here without Ray or faults."""
    return trained(SHORT | {"data": str(tiny_digits), "storage": str(tmp_path_factory.mktemp("alone"))})


@pytest.fixture(scope="module")
def shorter_alone(tiny_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same with SHORTER epochs."""
    place = {"data": str(tiny_digits), "storage": str(tmp_path_factory.mktemp("shorter"))}
    return trained(SHORT | place | {"epochs": SHORTER})


def trained(settings: dict[str, Any]) -> dict[str, Path]:
    values = {FIRST: 0.5, SECOND: 1.0}
    return {
        name: train_here(recipe("digits").override(settings | {"workers": 1, "name": name, "delta_rel": value})).folder
        for name, value in values.items()
    }


def is_equal(searching: Searching, alone: dict[str, Path]) -> bool:
    pairs = [(searching.trial(name), folder) for name, folder in alone.items()]
    return all(weights(ours) == weights(theirs) and figures(ours) == figures(theirs) for ours, theirs in pairs)


def conclude(rows: dict[str, float], searching: Searching, alone: dict[str, Path]) -> None:
    equal = is_equal(searching, alone)
    for fault, seconds in rows.items():
        note(Row(f"search: {fault}", seconds, "equal" if equal else "NOT EQUAL"))
    assert equal


def test_trials_survive_what_runs_survive(
    begin: Callable[..., Searching], alone: dict[str, Path], tmp_path: Path
) -> None:
    rows, enough = dict[str, float](), tmp_path / "enough"
    searching = begin("--search=delta_rel=1", "--hang-seconds=10", SLOW, **until(enough))
    for name in (FIRST, SECOND):
        searching.wait_for_epoch(name, 1)
    hung = searching.kill_worker(SECOND, signal.SIGSTOP)
    began = time.monotonic()
    rows["a trial's worker killed"] = searching.wait(searching.kill_worker(FIRST, signal.SIGKILL))
    lives = searching.said(FIRST).count("continues from")
    holder = re.findall(r"process (\d+)\)", (searching.trial(FIRST) / ".lock").read_text())
    os.kill(int(holder[0]), signal.SIGKILL)
    rows["a trial's own process killed"] = searching.wait(lambda: searching.said(FIRST).count("continues from") > lives)
    searching.wait(hung)
    rows["a trial's worker hung, limit 10 s"] = time.monotonic() - began
    began = time.monotonic()
    searching.process.send_signal(signal.SIGTERM)
    before = searching.end(code=143)
    note(Row("search: SIGTERM: checkpoints and exit code 143", time.monotonic() - began, "saved"))
    searching.wait(searching.again())
    rows["SIGTERM, command given again"] = time.monotonic() - began
    searching.process.kill()
    searching.process.communicate()
    rows["driver killed, command given again"] = searching.wait(searching.again())
    enough.touch()
    said = searching.end()
    conclude(rows, searching, alone)
    again = r"{}: lost: {}; all start again from the last checkpoint"
    assert re.search(again.format(FIRST, r"rank 0 \(.*died.*\)"), before), before
    assert re.search(again.format(FIRST, r"its process \(.*died.*\)"), before), before
    assert "stopping all trials after a step, with a checkpoint" in before
    assert "stopped; the same command goes on, finished trials are kept" in before
    assert re.search(r"delta_rel=\S+: stopped after \d+ epochs; the same command goes on with it", before), before
    hangs = r"rank 0 \(\S+:\d+\) hangs, no heartbeat for \d+ s: epoch \d+, step \d, \w+"
    assert re.search(f"{SECOND}: {hangs}", before), before
    assert len(re.findall(rf"{FIRST}: continues from epoch \d+, step \d with 1 worker", before)) == 2, before
    faults = [read_faults(searching.trial(name)) for name in (FIRST, SECOND)]
    assert [len(some) for some in faults] == [2, 1], (faults, before, said)
    assert all(one["steps"] is not None and not one["preempted"] for some in faults for one in some)
    assert len(re.findall(r"(?m)^lost: delta_rel=\S+: (rank 0|its process) \(.*\); .* trained again$", said)) == 3, said


def test_a_node_comes_and_is_taken_away(
    begin: Callable[..., Searching], shorter_alone: dict[str, Path], tmp_path: Path
) -> None:
    rows, enough = dict[str, float](), tmp_path / "enough"
    cluster = TwoNodes(PORT, until(enough))
    try:
        cluster.start_head()
        flags = ("--search=delta_rel=1", f"--epochs={SHORTER}", SLOW)
        searching = begin(*flags, **until(enough), **TOKEN, RAY_ADDRESS=cluster.address)
        searching.wait(lambda: "rank 0 of" in searching.said(FIRST))
        assert not searching.said(SECOND)
        cluster.add()
        rows["a node added: a waiting trial starts there"] = searching.wait(
            lambda: (searching.trial(SECOND) / "where.json").is_file()
        )
        places = {name: json.loads((searching.trial(name) / "where.json").read_text()) for name in (FIRST, SECOND)}
        added = worker_node(cluster.address)
        assert places[SECOND]["node"] == added != places[FIRST]["node"]
        searching.wait_for_epoch(SECOND, 1)
        lives, began = searching.said(SECOND).count("continues from"), time.monotonic()
        drain(cluster.address, added, NOTICE)
        searching.wait(lambda: "saved, for a machine is about to be taken away" in searching.said(SECOND))
        note(Row("search: preemption notice: a checkpoint", time.monotonic() - began, "saved"))
        searching.wait(lambda: time.monotonic() > began + NOTICE + 1)  # Ray counts what goes before as lost
        cluster.kill(1)
        enough.touch()
        searching.wait(lambda: searching.said(SECOND).count("continues from") > lives)
        rows["the node is gone, its trial waits for the other one's"] = time.monotonic() - began - NOTICE
        said = searching.end()
    finally:
        cluster.stop()
    conclude(rows, searching, shorter_alone)
    assert re.findall(r"(\d) at once, each with 1 CPU", said) == ["1", "2", "1"]
    faults = read_faults(searching.trial(SECOND))
    assert faults, said
    assert all(fault["preempted"] for fault in faults), said


def test_a_trial_that_is_lost_too_often_fails_alone(
    begin: Callable[..., Searching], shorter_alone: dict[str, Path], tmp_path: Path
) -> None:
    enough = tmp_path / "enough"
    searching = begin("--search=delta_rel=1", f"--epochs={SHORTER}", "--max-failures=1", SLOW, **until(enough))
    searching.wait_for_epoch(SECOND, 1)
    searching.wait(searching.kill_worker(SECOND, signal.SIGKILL))
    searching.wait_for_epoch(SECOND, 3)
    searching.kill_worker(SECOND, signal.SIGKILL)
    enough.touch()
    said = searching.end(code=1)
    limit = "there are more losses than --max-failures 1 allows"
    assert re.search(rf"{SECOND}: lost: rank 0 \(.*\); {limit}", said), said
    assert re.search(rf"(?m)^failed: {SECOND}: rank 0: .*died.*; {limit}", said), said
    assert re.search(rf"\| {FIRST} +\| finished", said), said
    assert "1 trial failed and may succeed in another try: give the command again" in said
    searching.start()
    said = searching.end()
    assert f"{SECOND}: continues from epoch " in said, said
    assert is_equal(searching, shorter_alone)
