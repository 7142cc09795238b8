"""Training on a running Ray cluster of two nodes, joined by its address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raypaml.recipes import recipe
from raypaml.runs.checkpoint import valid_checkpoints
from tests.conftest import train_here
from tests.fault_table import Row, note
from tests.slow_steps import SLOW, until
from tests.test_train import weights
from tests.two_nodes import TOKEN, drain, two_nodes, worker_node

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(600)]
PORT = 26379
TRAIN = [sys.executable, "-m", "raypaml.train"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with two_nodes(PORT) as up:
        yield up.address


def test_two_nodes_train_the_weights_of_one_process(cluster: str, tiny_digits: Path, tmp_path: Path) -> None:
    common = ["--data", str(tiny_digits), "--epochs", "2", "--warmup-epochs", "1", "--storage", str(tmp_path)]
    environment = os.environ | TOKEN | {"RAY_ADDRESS": cluster}
    subprocess.run([*TRAIN, *common, "--workers", "2", "--name", "two"], check=True, env=environment, timeout=300)
    subprocess.run([*TRAIN, *common, "--workers", "1", "--name", "one"], check=True, timeout=300)
    one, two = (valid_checkpoints(tmp_path / name / "checkpoints")[0][-1] for name in ("one", "two"))
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


def test_an_address_where_nothing_answers_is_one_line(tiny_digits: Path, tmp_path: Path) -> None:
    flags = ["--data", str(tiny_digits), "--storage", str(tmp_path / "runs"), "--address", "127.0.0.1:26111"]
    done = subprocess.run([*TRAIN, *flags], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2
    assert "address=127.0.0.1:26111: no Ray cluster answers there" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_more_workers_than_the_cluster_has_cpus_is_said(cluster: str, tiny_digits: Path, tmp_path: Path) -> None:
    assert (recipe("digits").data.lanes or 0) >= 3
    flags = ["--data", str(tiny_digits), "--storage", str(tmp_path / "runs"), "--address", cluster, "--workers", "3"]
    done = subprocess.run(
        [*TRAIN, *flags], capture_output=True, text=True, timeout=200, check=False, env=os.environ | TOKEN
    )
    assert done.returncode == 2
    assert "workers=3: the cluster has 2 CPUs" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_search_spreads_its_trials_over_the_nodes(cluster: str, tiny_digits: Path, tmp_path: Path) -> None:
    short = ["--data", str(tiny_digits), "--epochs", "12", "--warmup-epochs", "1", "--storage", "here"]
    flags = ["--search", "delta_rel=1:4", "--share", "1", "--trials", "4", "--no-early-stop", "--name", "s"]
    done = subprocess.run(
        [sys.executable, "-m", "raypaml.tune", *short, *flags, "--address", cluster],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        cwd=tmp_path,  # not where the nodes were started
        env=os.environ | TOKEN,
    )
    assert done.returncode == 0, done.stderr
    assert "2 at once, each with 1 CPU" in done.stderr
    assert done.stdout.count("finished") == 4
    found = [json.loads(path.read_text())["node"] for path in (tmp_path / "here" / "s" / "trials").glob("*/where.json")]
    assert (len(found), len(set(found))) == (4, 2)


def test_the_doctor_looks_at_every_node(cluster: str, tiny_digits: Path, tmp_path: Path) -> None:
    flags = ["digits", "--data", str(tiny_digits), "--storage", str(tmp_path), "--workers", "2", "--address", cluster]
    command = [sys.executable, "-m", "raypaml.doctor", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=os.environ | TOKEN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 nodes, all with " in done.stdout


def test_a_node_is_taken_away_with_notice(tiny_digits: Path, tmp_path: Path) -> None:
    epochs, enough = {"epochs": 60, "warmup_epochs": 1, "delta_rel": 0.05}, tmp_path / "enough"
    place = {"data": str(tiny_digits), "storage": str(tmp_path)}
    alone = train_here(recipe("digits").override(epochs | place | {"name": "alone", "workers": 1})).folder
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in (epochs | place).items()]
    log = tmp_path / "two" / "logs" / "worker-0.log"
    with two_nodes(PORT + 1, **until(enough)) as up:
        told = os.environ | TOKEN | until(enough) | {"RAY_ADDRESS": up.address}
        command = [*TRAIN, *flags, "--workers=1:2", "--name=two", SLOW]
        run = subprocess.Popen(command, env=told, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        wait_for_text(log, "rank 0 of 2 starts", run)
        workers = "grep -laP '^ray::RayTrainWorker' /proc/[0-9]*/cmdline"  # as in clusters/pod_leaves.sh
        assert len(subprocess.run(workers, shell=True, capture_output=True, check=False).stdout.split()) >= 2
        lost = worker_node(up.address)
        began = time.monotonic()
        drain(up.address, lost, 60)
        wait_for_text(log, "saved, for a machine is about to be taken away", run)
        note(Row("preemption notice: a checkpoint", time.monotonic() - began, "saved"))
        began = time.monotonic()
        up.kill(1)
        wait_for_text(log, "with 1 worker", run)
        seconds = time.monotonic() - began
        enough.touch()
        _, said = run.communicate(timeout=300)
    assert run.returncode == 0, said
    equal = weights(tmp_path / "two") == weights(alone)
    note(Row("the node is gone, goes on with the rest (--workers 1:2)", seconds, "equal" if equal else "NOT EQUAL"))
    assert equal


def wait_for_text(log: Path, text: str, run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not (log.is_file() and text in log.read_text()):
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline, log.read_text() if log.is_file() else "no log"
        time.sleep(0.1)
