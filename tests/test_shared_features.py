"""Kept features of several runs and of the test split: computed once, by one of them, and never after a stop."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from raypaml.config import TrainConfig
from raypaml.model.cam import CamClassifier
from raypaml.runs import feature_computing, kept_features
from raypaml.runs.events import Activity, Event
from raypaml.runs.shared_lock import SharedLock
from raypaml.training import loop
from tests.processes import CONTEXT
from tests.reported import text_of
from tests.test_features import cached, config, digest, lines, train_here  # noqa: F401

CPU = torch.device("cpu")


def shared(folder: Path, **values: Any) -> TrainConfig:
    return config(feature_cache=str(folder), epochs=1, freeze_backbone=1, **values)


@pytest.fixture(scope="module")
def computed(tiny_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and, in `features`, what it computed of all splits."""
    folder = tmp_path_factory.mktemp("computed")
    train_here(0, 1, shared(folder / "features"), tiny_digits, folder / "run")
    return folder


# --- The lock ---------------------------------------------------------------------------------------------------------


def test_a_killed_holder_leaves_the_lock_free(tmp_path: Path) -> None:
    path = tmp_path / "train.lock"
    process = CONTEXT.Process(target=_hold, args=(path, tmp_path / "held"), daemon=True)
    process.start()
    deadline = time.monotonic() + 30
    while not (tmp_path / "held").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    lock = SharedLock(path)
    assert not lock.take("mine")
    assert lock.holder().startswith("another run (")
    assert f"process {process.pid})" in lock.holder()
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert lock.take("mine")
    assert lock.holder().startswith("mine (")
    assert not SharedLock(path).take("a third")  # nor does it change the name
    assert lock.holder().startswith("mine (")
    lock.release()
    assert SharedLock(path).take("a third")


def _hold(path: Path, held: Path) -> None:
    assert SharedLock(path).take("another run")
    held.touch()
    time.sleep(60)


def test_a_run_waits_for_the_other_and_takes_what_it_computed(
    computed: Path, tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_computing, "WAIT_SECONDS", 0.01)
    (kept,) = (computed / "features").rglob("train-00000.npy")
    mine = tmp_path / "features" / kept.parent.name
    mine.mkdir(parents=True)
    other = SharedLock(mine / "train.lock")
    assert other.take("run other")
    events: list[Event] = []

    def report(event: Event) -> bool:
        events.append(event)
        if (
            isinstance(event, Activity) and "waiting for run other (" in event.text
        ):  # it has waited for a while; the other one ends
            keep = shutil.ignore_patterns("*.lock")
            shutil.copytree(computed / "features", tmp_path / "features", dirs_exist_ok=True, ignore=keep)
            other.release()
        return False

    monkeypatch.setattr(CamClassifier, "features", _refused)
    assert loop.train(shared(tmp_path / "features"), tiny_digits, tmp_path / "run", CPU, report)
    waiting = [line for line in lines(events) if "features" in line]
    assert len(waiting) == 1
    assert waiting[0].startswith("features of train: waiting for run other (")
    assert waiting[0].endswith("), which computes them")


def _refused(*_: Any) -> Any:
    raise AssertionError("the backbone computes again")


def test_who_waits_for_another_run_can_be_stopped(tiny_digits: Path, tmp_path: Path, computed: Path) -> None:
    (kept,) = (computed / "features").rglob("train-00000.npy")
    mine = tmp_path / "features" / kept.parent.name
    mine.mkdir(parents=True)
    assert SharedLock(mine / "train.lock").take("run other")
    stop = lambda event: "waiting" in text_of(event)  # noqa: E731
    assert not loop.train(shared(tmp_path / "features"), tiny_digits, tmp_path / "run", CPU, stop)
    assert not list(mine.glob("*.npy"))


def test_without_locks_it_is_said_and_computed(
    tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    events = train_here(0, 1, shared(tmp_path / "features"), tiny_digits, tmp_path / "run")
    assert "has no locks; another run may compute them too" in lines(events)[0]
    assert len(list(tmp_path.rglob("*.npy"))) == 3


# --- The test split ---------------------------------------------------------------------------------------------------


def test_a_second_run_never_calls_the_backbone_and_predicts_as_from_images(
    computed: Path, tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from images but for the rounding of features to 11 bits."""
    images = shared(computed / "features").override({"test_features": False})
    train_here(0, 1, images, tiny_digits, tmp_path / "images")
    monkeypatch.setattr(CamClassifier, "features", _refused)
    train_here(0, 1, shared(computed / "features"), tiny_digits, tmp_path / "features")
    assert digest(tmp_path / "features") == digest(tmp_path / "images")
    one, other = (_predictions(tmp_path / name) for name in ("features", "images"))
    assert one.drop_columns(["P", "N"]).equals(other.drop_columns(["P", "N"]))
    for part in ("P", "N"):
        np.testing.assert_allclose(one[part].to_numpy(), other[part].to_numpy(), rtol=1e-2, atol=1e-4)
        assert not np.array_equal(one[part].to_numpy(), other[part].to_numpy())


def _predictions(run: Path) -> Any:
    return pq.read_table(sorted((run / "predictions" / "test").glob("part-*")))


@pytest.mark.parametrize(
    ("values", "epoch", "kept"),
    [
        ({"feature_cache": "/f"}, 2, True),
        ({"feature_cache": "/f", "flip": True}, 2, True),  # the test's images are never mirrored
        ({"feature_cache": "/f"}, 3, False),  # the backbone has learned
        ({"feature_cache": "/f", "test_features": False}, 2, False),
        ({"feature_cache": "/f", "skip_budget": 0.1}, 2, False),
        ({"feature_cache": "run"}, 2, False),
        ({"feature_cache": "off"}, 2, False),
    ],
)
def test_when_the_test_is_predicted_from_features(values: dict[str, Any], epoch: int, kept: bool) -> None:
    assert kept_features.keeps_test_features(config(**values), epoch) == kept


def test_a_run_begun_before_the_setting_predicts_from_images() -> None:
    stored = config(feature_cache="/f").to_dict()
    assert TrainConfig.from_dict(stored).optim.test_features
    del stored["optim"]["test_features"]
    assert not TrainConfig.from_dict(stored).optim.test_features


# --- Stopping, progress, damage ---------------------------------------------------------------------------------------


def test_a_stop_is_heard_after_the_part_at_hand_and_the_rest_comes_later(
    cached: Path,  # noqa: F811
    tiny_digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (feature_computing, kept_features):
        monkeypatch.setattr(module, "PART", 32)
    monkeypatch.setattr(feature_computing, "_PART_BATCHES", 1)
    events: list[Event] = []

    def report(event: Event) -> bool:
        events.append(event)
        return isinstance(event, Activity)

    assert not loop.train(config(), tiny_digits, tmp_path, CPU, report)
    assert [path.name for path in tmp_path.rglob("*.npy")] == ["train-00000.npy"]
    assert lines(events)[1:] == ["features of train: stopped, 1 of 3 parts are kept"]
    (progress,) = (event.text for event in events if isinstance(event, Activity))
    assert progress.startswith("features of train: 32 of 96 images, ")
    assert progress.endswith(" left")
    assert "images/s, 0:0" in progress
    events = train_here(0, 1, config(), tiny_digits, tmp_path)
    assert lines(events)[0].startswith("features of train: 1 of 3 parts are there")
    counted = [event.text for event in events if isinstance(event, Activity)]
    assert [line.split(",")[0] for line in counted[:2]] == [f"features of train: {n} of 96 images" for n in (64, 96)]
    assert digest(tmp_path) == digest(cached)


def test_a_damaged_or_foreign_file_is_named(computed: Path, tiny_digits: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(computed / "features", tmp_path / "features"))
    (path,) = folder.rglob("train-00000.npy")
    content = path.read_bytes()
    for damaged in (content[:200], b"", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"train-00000\.npy: .*\(.*\).*; remove it, and it is computed again"):
            train_here(0, 1, shared(folder), tiny_digits, tmp_path / "run")
    np.save(path, np.zeros((96, 2, 1, 1), np.float32))
    with pytest.raises(ValueError, match=r"holds float32 \[96, 2, 1, 1\], not float16 \[96, D, h, w\]; remove it"):
        train_here(0, 1, shared(folder), tiny_digits, tmp_path / "run")
