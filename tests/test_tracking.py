"""Trackers: what they are told is what training recorded, and nothing they do stops it."""

from __future__ import annotations

import math
import os
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from raypaml.reports import tracking
from raypaml.reports.progress import Display
from raypaml.reports.tracking import Tracking, tracked_values
from raypaml.runs.events import EpochReport, Event, Message, StepReport

OF_ALL = {"epoch": 1, "step": 3, "steps": 10, "epochs": 2, "rejected": 4, "samples_left": 9}
COST = {"data_wait_share": 0.5, "memory_bytes": 1}
STEP = StepReport(**OF_ALL, loss=0.5, images_per_second=20.0, learning_rate=0.5, rejection_rate=0.0625, **COST)
OF_STEP = {"step/loss": 0.5, "step/images_per_second": 20.0, "step/learning_rate": 0.5, "step/rejection_rate": 0.0625}
RECORD = {"epoch": 1, "loss": 0.25, "rejected": 7, "corrected": 0, "seconds": 2.0, "samples": 96}
RECORD |= {"validation_mean_ap": 0.75, "validation_groups": {"G1": 0.5}, "rejection_precision": None}
RECORD |= {"rejection_recall": 0.125, "epoch_seconds": 1.5, "images_per_second": 64.0, "data_wait_share": 0.25}
RECORD |= {"rejection_rate": 0.03125, "learning_rate": 0.5, "head_learning_rate": 5.0}
RECORD |= {"collective_share": 0.5, "peak_memory_bytes": 2 * 10**9, "model_flop_utilisation": None}
EVENTS: list[Event] = [Message("continues"), STEP, EpochReport(RECORD, 2)]
EXPECTED = {"epoch/loss": 0.25, "epoch/rejected": 7.0, "epoch/corrected": 0.0, "epoch/training_seconds": 2.0}
EXPECTED |= {"epoch/validation_mean_ap": 0.75, "epoch/validation_G1": 0.5, "epoch/rejection_recall": 0.125}
EXPECTED |= {"epoch/epoch_seconds": 1.5, "epoch/images_per_second": 64.0, "epoch/data_wait_share": 0.25}
EXPECTED |= {"epoch/collective_share": 0.5, "epoch/peak_memory_bytes": 2e9, "epoch/rejection_rate": 0.03125}
EXPECTED |= {"epoch/learning_rate": 0.5, "epoch/head_learning_rate": 5.0}
RESULT: dict[str, Any] = {"mean_ap": 0.5, "groups": {"G1": 0.25, "G2": math.nan}, "epochs_trained": 2}
RESULT |= {"metrics": {"f1": {"G1": 0.5, "All": 0.75}}, "chosen_alpha": {"mean_ap": 0.625}}
TESTED = {"test/mean_ap": 0.5, "test/G1": 0.25, "test/f1": 0.75, "test/mean_ap_at_chosen_alpha": 0.625}
SETTINGS = {"alpha": 5.0, "scheme": "ll_r", "reproducible": True}


def tell(told: Tracking | None, page: Path) -> None:
    """A whole run, with its result and its report."""
    assert told is not None
    page.write_text("the report")
    for event in EVENTS:
        told.update(event)
    told.conclude(RESULT, page)
    told.close()


def test_events_become_curves() -> None:
    assert [tracked_values(event) for event in EVENTS] == [
        None,
        (OF_STEP, 13),
        (EXPECTED, 2),
    ]


class Slow:
    def __init__(self, release: threading.Event):
        self.release, self.seen = release, list[Any]()

    def log(self, values: Any, step: int) -> None:
        self.release.wait(20)
        self.seen.append((values, step))

    def keep(self, page: Path) -> None:
        self.seen.append(page)

    def close(self, *, finished: bool) -> None:
        self.seen.append(f"closed, {finished=}")


def test_a_display_tells_its_tracker_all() -> None:
    release = threading.Event()
    release.set()
    slow = Slow(release)
    with Display() as display:
        display.tracking = Tracking(lambda: slow, display.say)
        display.update(STEP)
        display.conclude(RESULT, Path("report.html"))
    assert slow.seen == [tracked_values(STEP), (TESTED, 2), Path("report.html"), "closed, finished=True"]


def test_a_tracker_is_told_that_a_run_was_stopped() -> None:
    release = threading.Event()
    release.set()
    slow = Slow(release)
    Tracking(lambda: slow, print).close()
    assert slow.seen == ["closed, finished=False"]


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
    hanging._waiting.put(None)
    hanging._thread.join(10)


def test_a_tracker_that_was_too_slow_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "WAITING", 2)
    release, said = threading.Event(), list[str]()
    slow = Slow(release)
    full = Tracking(lambda: slow, said.append)
    for _ in range(9):
        full.update(STEP)
    threading.Timer(0.1, release.set).start()
    full.close()
    assert slow.seen[-1] == "closed, finished=False"
    assert len(said) == 1


def test_a_tracker_that_fails_is_named_and_left_alone() -> None:
    said: list[str] = []

    def make() -> Any:
        raise OSError("no disk")

    failing = Tracking(make, said.append)
    failing.update(STEP)
    failing.close()
    assert said == ["the tracker failed, training goes on without it: no disk"]


def test_what_is_done_again_after_a_loss_is_not_logged_again(tmp_path: Path) -> None:
    """In the same process, and in the next one; other axes and later places are logged."""
    release = threading.Event()
    release.set()
    slow = Slow(release)
    for epochs in ((1, 2, 2), (2, 3)):
        again = Tracking(lambda: slow, print, tmp_path / "logs" / "slow.json")
        again.update(STEP)
        for epoch in epochs:
            again.update(EpochReport(RECORD | {"epoch": epoch - 1}, 3))
        again.conclude(RESULT | {"epochs_trained": epochs[-1]}, tmp_path)
        again.close()
    points = [(next(iter(one[0])).partition("/")[0], one[1]) for one in slow.seen if isinstance(one, tuple)]
    assert points == [("step", 13), ("epoch", 1), ("epoch", 2), ("test", 2), ("epoch", 3), ("test", 3)]


def test_a_damaged_note_of_what_was_logged_is_named(tmp_path: Path) -> None:
    (tmp_path / "slow.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"slow\.json: not a note of what was logged \(.*\); remove it"):
        Tracking(lambda: Slow(threading.Event()), print, tmp_path / "slow.json")


def test_a_tracker_that_is_slow_to_begin_is_said_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_SLOW", 0.05)
    release, said = threading.Event(), list[str]()

    def make() -> Any:
        while not said:
            release.wait(0.01)
        raise OSError("no server\nat all")

    Tracking(make, said.append).close()
    assert said == [
        "the tracker has not started after 0.05 seconds; training goes on, and events wait to be logged",
        "the tracker failed, training goes on without it: no server",
    ]


def test_tensorboard_gets_the_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    tell(tracking.tracking("tensorboard", tmp_path, SETTINGS, print), tmp_path / "report.html")
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {*EXPECTED, *OF_STEP, *TESTED}
    assert [(one.step, one.value) for one in found.Scalars("epoch/validation_mean_ap")] == [(2, 0.75)]
    assert [(one.step, one.value) for one in found.Scalars("test/mean_ap")] == [(2, 0.5)]
    plugin = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    kept = HParamsPluginData.FromString(plugin).session_start_info.hparams
    assert (kept["alpha"].number_value, kept["scheme"].string_value, kept["reproducible"].number_value) == (
        5,
        "ll_r",
        1,
    )
    ended = found.SummaryMetadata("_hparams_/session_end_info").plugin_data.content
    assert HParamsPluginData.FromString(ended).session_end_info.status == Status.Value("STATUS_SUCCESS")


@pytest.mark.filterwarnings("ignore")  # of its packages, about each other
def test_mlflow_gets_the_curves_in_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "")
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    said: list[str] = []
    monkeypatch.setattr(tracking, "_PATIENCE", 250)
    monkeypatch.setattr(tracking, "_SLOW", 250)  # MLflow makes its tables first
    tell(tracking.tracking("mlflow", tmp_path, SETTINGS, said.append), tmp_path / "report.html")
    longer = tracking.tracking("mlflow", tmp_path, SETTINGS | {"alpha": 4.0, "epochs": 30}, said.append)
    assert longer is not None
    longer.close()  # the run goes on with other settings, and is stopped
    assert said == []
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("raypaml")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    assert run.data.params == {"alpha": "5.0", "scheme": "ll_r", "reproducible": "True", "epochs": "30"}
    assert run.data.tags["alpha"] == "4.0"
    assert run.data.metrics.keys() == {*EXPECTED, *OF_STEP, *TESTED}
    assert [one.path for one in client.list_artifacts(run.info.run_id)] == ["report.html"]
    assert run.info.artifact_uri.startswith((tmp_path / "mlflow").as_uri())
    found = client.get_metric_history(run.info.run_id, "epoch/validation_mean_ap")
    assert [(one.value, one.step) for one in found] == [(0.75, 2)]


def test_weights_and_biases_is_offline_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    run = types.SimpleNamespace(
        log=calls.append,
        finish=lambda exit_code: calls.append(f"finished, {exit_code=}"),
        define_metric=lambda name, step_metric: calls.append((name, step_metric)),
        log_artifact=lambda artifact: calls.append(vars(artifact)),
    )
    artifact = types.SimpleNamespace()
    artifact.add_file = lambda path: setattr(artifact, "path", path)
    fake = types.ModuleType("wandb")
    fake.init = lambda **how: (calls.append((how["mode"], how["resume"], how["config"])), run)[1]  # type: ignore[attr-defined]
    fake.Artifact = lambda name, type: (setattr(artifact, "name", (name, type)), artifact)[1]  # type: ignore[attr-defined]  # noqa: A006
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    tell(tracking.tracking("wandb", tmp_path, SETTINGS, print), tmp_path / "report.html")
    assert calls[:4] == [("offline", "allow", SETTINGS), ("step/*", "step"), ("epoch/*", "epoch"), ("test/*", "epoch")]
    assert calls[4:7] == [OF_STEP | {"step": 13}, EXPECTED | {"epoch": 2}, TESTED | {"epoch": 2}]
    assert calls[7]["path"] == str(tmp_path / "report.html")
    assert calls[7]["name"] == (f"{tmp_path.name}-report", "report")
    assert calls[8:] == ["finished, exit_code=0"]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"tracker=wandb: not installed; .*python.* -m pip install 'raypaml\[wandb\]'"):
        tracking.tracking("wandb", tmp_path, {}, print)
    assert tracking.tracking("none", tmp_path, {}, print) is None
