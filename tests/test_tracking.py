"""Trackers: what they are told is what training recorded, and nothing they do stops it."""

from __future__ import annotations

import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from raypaml.reports import tracking
from raypaml.reports.progress import Display
from raypaml.reports.tracking import Tracking, tracked_values

STEP = {"epoch": 1, "step": 3, "steps": 10, "epochs": 2, "loss": 0.5, "rejected": 4, "samples_left": 9}
STEP |= {"images_per_second": 20.0}
RECORD = {"epoch": 1, "loss": 0.25, "rejected": 7, "corrected": 0, "seconds": 2.0, "samples": 96}
RECORD |= {"validation_mean_ap": 0.75, "validation_groups": {"G1": 0.5}, "rejection_precision": None}
RECORD |= {"rejection_recall": 0.125, "epoch_seconds": 1.5, "images_per_second": 64.0, "data_wait_share": 0.25}
RECORD |= {"collective_share": 0.5, "peak_memory_bytes": 2 * 10**9, "model_flop_utilisation": None}
EVENTS: list[dict[str, Any]] = [{"event": "continues"}, STEP, {"record": RECORD, "epochs": 2}]
EXPECTED = {"epoch/loss": 0.25, "epoch/rejected": 7.0, "epoch/corrected": 0.0, "epoch/training_seconds": 2.0}
EXPECTED |= {"epoch/validation_mean_ap": 0.75, "epoch/validation_G1": 0.5, "epoch/rejection_recall": 0.125}
EXPECTED |= {"epoch/epoch_seconds": 1.5, "epoch/images_per_second": 64.0, "epoch/data_wait_share": 0.25}
EXPECTED |= {"epoch/collective_share": 0.5, "epoch/peak_memory_bytes": 2e9}


def test_events_become_curves() -> None:
    assert [tracked_values(event) for event in EVENTS] == [
        None,
        ({"step/loss": 0.5, "step/images_per_second": 20.0}, 13),
        (EXPECTED, 2),
    ]


class Slow:
    def __init__(self, release: threading.Event):
        self.release, self.seen = release, list[Any]()

    def log(self, values: Any, step: int) -> None:
        self.release.wait(20)
        self.seen.append((values, step))

    def close(self) -> None:
        self.seen.append("closed")


def test_a_display_tells_its_tracker_all() -> None:
    release = threading.Event()
    release.set()
    slow = Slow(release)
    with Display() as display:
        display.tracking = Tracking(lambda: slow, display.say)
        display.update(STEP)
    assert slow.seen == [tracked_values(STEP), "closed"]


def test_a_tracker_that_hangs_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_PATIENCE", 0.2)
    monkeypatch.setattr(tracking, "WAITING", 5)
    release, said = threading.Event(), list[str]()
    hanging = Tracking(lambda: Slow(release), said.append)
    for _ in range(20):
        hanging.update(STEP)  # returns at once
    hanging.close()
    assert any("the tracker hangs" in line for line in said)
    assert any("too slow" in line and "dropped" in line for line in said)
    release.set()
    hanging._thread.join(10)


def test_a_tracker_that_fails_is_named_and_left_alone() -> None:
    said: list[str] = []

    def make() -> Any:
        raise OSError("no disk")

    failing = Tracking(make, said.append)
    failing.update(STEP)
    failing.close()
    assert said == ["the tracker failed, training goes on without it: no disk"]


def test_tensorboard_gets_the_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = tracking.tracking("tensorboard", tmp_path, {"alpha": 5}, print)
    assert told is not None
    for event in EVENTS:
        told.update(event)
    told.close()
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {*EXPECTED, "step/loss", "step/images_per_second"}
    assert [(one.step, one.value) for one in found.Scalars("epoch/validation_mean_ap")] == [(2, 0.75)]


@pytest.mark.filterwarnings("ignore")  # of its packages, about each other
def test_mlflow_gets_the_curves_in_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    said: list[str] = []
    told = tracking.tracking("mlflow", tmp_path, {"alpha": 5}, said.append)
    assert told is not None
    for event in EVENTS:
        told.update(event)
    monkeypatch.setattr(tracking, "_PATIENCE", 250)
    told.close()
    assert said == []
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("raypaml")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.params) == ("FINISHED", {"alpha": "5"})
    found = client.get_metric_history(run.info.run_id, "epoch/validation_mean_ap")
    assert [(one.value, one.step) for one in found] == [(0.75, 2)]


def test_weights_and_biases_is_offline_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    run = types.SimpleNamespace(log=calls.append, finish=lambda: calls.append("finished"))
    fake = types.ModuleType("wandb")
    fake.init = lambda **how: (calls.append(how["mode"]), run)[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    told = tracking.tracking("wandb", tmp_path, {}, print)
    assert told is not None
    told.update(STEP)
    told.close()
    assert calls == ["offline", {"step/loss": 0.5, "step/images_per_second": 20.0, "step": 13}, "finished"]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"tracker=wandb: not installed; .*python.* -m pip install 'raypaml\[wandb\]'"):
        tracking.tracking("wandb", tmp_path, {}, print)
    assert tracking.tracking("none", tmp_path, {}, print) is None
