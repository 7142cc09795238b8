"""`python -m raypaml.train` as a user runs it: real Ray, real processes, real signals."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from raypaml.labels import GROUP_NAMES
from raypaml.model.backbones import build_backbone
from raypaml.runs.checkpoint import read_state, valid_checkpoints
from tests.slow_steps import SLOW, until

pytestmark = pytest.mark.ray
PROG = "python -m raypaml.train"


def command(data: Path, storage: Path, *flags: str) -> list[str]:
    short = ("--epochs", "4", "--warmup-epochs", "1", "--delta-rel", "1.5")
    return [sys.executable, "-m", "raypaml.train", "--data", str(data), "--storage", str(storage), *short, *flags]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=200, check=False)


def weights(folder: Path) -> str:
    newest = valid_checkpoints(folder / "checkpoints")[0][-1]
    return hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()


def owned_by(storage: Path) -> list[int]:
    """Processes of the private cluster that trains into `storage`, where that is marked as their owner."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environ = (entry / "environ").read_bytes()
        except OSError:
            continue
        if f"RAYPAML_TEST_OWNER={storage}".encode() in environ:
            found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def undisturbed(tiny_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two workers and what it printed; of all processes of the tests, the first to ask trains it."""
    base = tmp_path_factory.getbasetemp()
    storage = (base.parent if "PYTEST_XDIST_TESTRUNUID" in os.environ else base) / "undisturbed"
    storage.mkdir(exist_ok=True)
    printed = storage / "printed"
    with (storage / "lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.is_file():
            patch.setenv("RAYPAML_TEST_OWNER", str(storage))
            done = run(*command(tiny_digits, storage, "--workers", "2", "--name", "a"))
            assert done.returncode == 0, done.stderr
            printed.write_text(done.stdout)
    return storage / "a", printed.read_text()


def test_no_process_is_left_behind(undisturbed: tuple[Path, str]) -> None:
    storage = undisturbed[0].parent
    deadline = time.monotonic() + 120  # Ray's agents tell their head first, and a busy machine takes its time
    while owned_by(storage) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert owned_by(storage) == []


def test_leaves_result_metrics_predictions_config_and_prints_the_table(undisturbed: tuple[Path, str]) -> None:
    folder, printed = undisturbed
    result = json.loads((folder / "result.json").read_text())
    wanted = "mean_ap groups classes_scored convention scheme alpha delta_rel seed epochs world_size"
    assert set(wanted.split()) <= set(result)
    assert result["world_size"] == 2
    shown = re.findall(r"\d+\.\d\d", printed.splitlines()[2])
    assert [float(x) for x in shown] == [round(100 * result["groups"][g], 2) for g in GROUP_NAMES] + [
        round(100 * result["mean_ap"], 2)
    ]
    assert "convention 'paper'" in printed
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4
    assert [path.name for path in (folder / "predictions" / "test").glob("*.parquet")] == [
        "part-00000-of-00001.parquet"
    ]
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["loss"]["delta_rel"] == 1.5
    assert config["versions"]["torch"]


def test_aggregate_map_prints_the_same_table(undisturbed: tuple[Path, str]) -> None:
    folder, printed = undisturbed
    tool = Path(__file__).parent.parent / "tools" / "aggregate_map.py"
    table = printed.split("\n\nReport:")[0]
    assert run(sys.executable, str(tool), str(folder)).stdout.startswith(table + "\n")


def test_report_is_one_file_with_pictures_and_needs_no_network(undisturbed: tuple[Path, str]) -> None:
    page = (undisturbed[0] / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") > 10
    # groups, two of calibration, four of training, time, cost, two of rejections, pointing game
    assert page.count("<svg") == 12
    links = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']*)", page)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert re.search(r"(red|green|blue|yellow|pink) \d · 0\.\d\d", page)


@pytest.mark.cluster
def test_relative_paths_mean_on_workers_what_they_mean_here(tiny_digits: Path, tmp_path: Path) -> None:
    """Weights, storage and cache are named from the folder in which the command is given."""
    torch.manual_seed(1)
    save_file(build_backbone("small").state_dict(), tmp_path / "start.safetensors")
    flags = ("--workers", "2", "--name", "r", "--epochs", "2", "--freeze-backbone", "1", "--no-flip")
    asked = command(tiny_digits, Path("here"), *flags, "--weights", "start.safetensors", "--feature-cache", "kept")
    done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here" / "r" / "result.json").is_file()
    assert list((tmp_path / "kept").glob("*/train-*.npy"))


def data_of(folder: Path) -> Path:
    """The data set of a run, which another process of the tests may have drawn."""
    return Path(json.loads((folder / "config.json").read_text())["config"]["data"]["data"])


def test_the_same_name_again_prints_the_table_without_training(undisturbed: tuple[Path, str]) -> None:
    folder, printed = undisturbed
    again = run(*command(data_of(folder), folder.parent, "--name", "a"))
    assert (again.returncode, again.stdout) == (0, printed)
    assert "epoch" not in again.stderr


def test_the_same_name_with_other_settings_is_refused(undisturbed: tuple[Path, str]) -> None:
    folder, _ = undisturbed
    other = run(*command(data_of(folder), folder.parent, "--name", "a", "--alpha", "3"))
    assert other.returncode == 2
    assert other.stderr.count("\n") == 1
    assert "alpha=5.0 (asked: 3.0); give this one another --name" in other.stderr


@pytest.fixture
def started(tiny_digits: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run with many checkpoints, already beyond its first epoch, whose steps are slow: it lasts on any machine."""
    arguments = command(tiny_digits, tmp_path, "--workers", "2", "--name", "b", "--checkpoint-steps", "1", SLOW)
    told = os.environ | until(tmp_path / "enough")
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=told)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "b" / "checkpoints").glob("0001-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield process
    process.kill()
    process.communicate()


def test_killed_and_given_again_finishes_with_the_undisturbed_weights(
    started: subprocess.Popen[str], tmp_path: Path, tiny_digits: Path, undisturbed: tuple[Path, str]
) -> None:
    started.kill()
    started.wait()
    assert not (tmp_path / "b" / "result.json").exists()
    again = run(*command(tiny_digits, tmp_path, "--workers", "1", "--name", "b", SLOW))  # on another number of workers
    assert again.returncode == 0, again.stderr
    assert "continues from epoch" in again.stderr
    assert weights(tmp_path / "b") == weights(undisturbed[0])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_continue(
    number: signal.Signals, code: int, started: subprocess.Popen[str], tmp_path: Path
) -> None:
    started.send_signal(number)
    _, said = started.communicate(timeout=60)
    assert started.returncode == code, said
    assert f"{PROG} --name b --storage {tmp_path}" in said
    assert "Traceback" not in said
    state = read_state(valid_checkpoints(tmp_path / "b" / "checkpoints")[0][-1])
    assert state.epoch >= 1


def test_an_error_on_a_worker_is_one_message(tiny_digits: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_digits, data)
    shard = data / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[1500] ^= 1  # inside an image: the size stays, the CRC does not
    shard.write_bytes(content)
    done = run(*command(data, tmp_path, "--workers", "2", "--name", "c"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert re.search(r"train-000000.tar: image 'train-\d{6}' at byte \d+ does not match its CRC-32", done.stderr)
