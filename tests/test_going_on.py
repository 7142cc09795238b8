"""A run goes on with another length, and is then the longer run, where nothing of it moves over the whole length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from raypaml.config import EXECUTION_FIELDS, TrainConfig
from raypaml.data.data_folder import open_folder
from raypaml.losses.schemes import scheme_names, scheme_of
from raypaml.recipes import recipe
from raypaml.run_report.conclude import conclude_run
from raypaml.runs.history import read_history
from raypaml.runs.run_folder import check_same_run, claim, stored_config
from raypaml.runs.run_length import LENGTH_FIELDS, is_finished, lengths, lengths_text
from raypaml.training import loop
from raypaml.training.going_on import going_on
from raypaml.training.job import prepare_job
from raypaml.training.learning_rates import learning_rate
from raypaml.training.loop import train
from tests.conftest import MEASURED, newest_files, train_here
from tests.reported import place_of
from tests.whole_records import EPOCH_RECORD

VALUES = {"warmup_epochs": 1, "delta_rel": 2.0, "workers": 1, "lr_schedule": "constant", "reproducible": False}
STEPS = 3
"""Of an epoch of 96 images in batches of 32."""


def config(data: Path, storage: Path, **values: Any) -> TrainConfig:
    return recipe("digits").override(VALUES | {"data": str(data), "storage": str(storage), "name": "run"} | values)


def records(run: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in read_history(run)]


@pytest.fixture(scope="module")
def grown(tiny_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 1 epoch with a result, and then of 2, of which the result is not made yet."""
    asked = config(tiny_digits, tmp_path_factory.mktemp("grown"), epochs=1)
    folder = train_here(asked).folder
    (folder / "result.json").write_text('{"epochs": 1}')
    (folder / "report.html").write_text("of 1 epoch")
    return train_here(asked.override({"epochs": 2})).folder


def stopped(asked: TrainConfig) -> None:
    """Train a run until its second step, where it is told to stop."""
    job = prepare_job(asked, lambda _: None)
    claim(job.folder, job.config, job.data)
    cpu = torch.device("cpu")
    assert not train(job.config, job.data.address, job.folder, cpu, lambda event: place_of(event) == (0, 2))


@pytest.fixture(scope="module")
def whole(tiny_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2 epochs from the start."""
    return train_here(config(tiny_digits, tmp_path_factory.mktemp("whole"), epochs=2)).folder


def test_a_finished_run_that_grows_is_the_longer_run(grown: Path, whole: Path) -> None:
    assert newest_files(grown) == newest_files(whole)
    assert records(grown) == records(whole)


@pytest.mark.usefixtures("one_thread")
def test_a_stopped_run_that_grows_is_the_longer_run(
    whole: Path, tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    asked = config(tiny_digits, tmp_path, epochs=1)
    stopped(asked)
    run = train_here(asked.override({"epochs": 2})).folder
    assert [(one["epoch"], one["step"]) for one in lengths(run)] == [(0, 0), (0, 2)]
    assert newest_files(run) == newest_files(whole)
    assert records(run) == records(whole)


def test_a_learning_rate_that_had_come_down_is_that_of_the_longer_run(tiny_digits: Path, tmp_path: Path) -> None:
    short = config(tiny_digits, tmp_path, epochs=1, lr_schedule="cosine")
    train_here(short)
    longer = short.override({"epochs": 2})
    had = [record["learning_rate"] for record in read_history(train_here(longer).folder)]
    shares = learning_rate(short.optim, STEPS - 1, STEPS), learning_rate(longer.optim, 2 * STEPS - 1, STEPS)
    assert had == [short.optim.lr * share for share in shares]


def test_the_record_says_which_epochs_had_which_length_and_the_result_is_made_again(
    grown: Path, tiny_digits: Path
) -> None:
    asked = stored_config(grown)
    assert asked is not None
    assert asked.optim.epochs == 2
    assert not is_finished(grown, asked)  # though it had finished
    job = prepare_job(config(tiny_digits, grown.parent, epochs=2), lambda _: None)
    result = conclude_run(job)
    assert (result["epochs"], result["epochs_trained"]) == (2, 2)
    assert json.loads((grown / "result-1.json").read_text())["epochs"] == 1
    assert (grown / "report-1.html").read_text() == "of 1 epoch"
    same = {"patience": 0, "stop_below": 0.0, "step": 0}
    first, second = {"epoch": 0, "epochs": 1, "result": "result-1.json"}, {"epoch": 1, "epochs": 2, "result": ""}
    assert result["lengths"] == lengths(grown) == [first | same, second | same]
    said = "Trained from epoch 1 as a run of 1 epoch; from epoch 2 as a run of 2 epochs."
    assert lengths_text(result["lengths"]) == said
    assert said in (grown / "report.html").read_text()
    assert is_finished(grown, job.config)
    assert not is_finished(grown, job.config.override({"epochs": 3}))


def begun(folder: Path, asked: TrainConfig, data: Path, checkpoint: str, scores: list[float]) -> None:
    """A run as it looks after some epochs; its checkpoint counts as whole."""
    claim(folder, asked, open_folder(data))
    (folder / "checkpoints" / checkpoint).mkdir(parents=True)
    lines = (EPOCH_RECORD | {"epoch": epoch, "validation_mean_ap": score} for epoch, score in enumerate(scores))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def _whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raypaml.runs.checkpoint.valid_checkpoints", lambda folder: (sorted(folder.glob("[0-9]*")), []))


@pytest.mark.usefixtures("_whole")
@pytest.mark.parametrize("schedule", ["constant", "trapezoid", "cosine", "one-cycle"])
def test_what_moves_with_the_length_is_said_with_its_values(schedule: str, tiny_digits: Path, tmp_path: Path) -> None:
    short = config(tiny_digits, tmp_path, epochs=18, lr_schedule=schedule, lr_warmup="2 steps", delta_rel=0.25)
    long, run = short.override({"epochs": 30}), tmp_path / "run"
    begun(run, short, tiny_digits, "0018-000000", [0.5] * 18)
    was, now = (learning_rate(each.optim, 18 * STEPS, STEPS) for each in (short, long))
    rate = f"the {schedule} learning rate is {now:.3g} of its highest, and not {was:.3g}"
    expected = "the learning rate of the next step is the same" if schedule == "constant" else rate
    rest = "rejection rises as before, to 7.25 % of all entries in the last epoch"
    said = f"{run}: 30 epochs instead of 18 epochs, from epoch 19 on; {expected}; {rest}"
    assert going_on(run, long, STEPS) == said
    assert going_on(run, short, STEPS) == ""
    claim(run, long, open_folder(tiny_digits))
    assert [(length["epoch"], length["epochs"]) for length in lengths(run)] == [(0, 18), (18, 30)]


@pytest.mark.usefixtures("_whole")
def test_less_than_what_is_done_is_refused_with_the_values(tiny_digits: Path, tmp_path: Path) -> None:
    asked, run = config(tiny_digits, tmp_path, epochs=18), tmp_path / "run"
    begun(run, asked, tiny_digits, "0005-000002", [0.5] * 5)
    with pytest.raises(ValueError, match=r"epochs=5: .*run has trained 5 epochs and 2 steps; give 6 or more, or anoth"):
        prepare_job(asked.override({"epochs": 5}), lambda _: None)
    assert "from epoch 6, step 3 on" in going_on(run, asked.override({"epochs": 6}), STEPS)
    (run / "checkpoints" / "0005-000002").rename(run / "checkpoints" / "0005-000000")
    assert going_on(run, asked.override({"epochs": 5}), STEPS).endswith(
        "all of them are trained, and the best is tested"
    )


@pytest.mark.usefixtures("_whole")
def test_a_run_that_its_patience_ended_goes_on_only_with_more_of_it(tiny_digits: Path, tmp_path: Path) -> None:
    asked, run = config(tiny_digits, tmp_path, epochs=8, patience=2), tmp_path / "run"
    begun(run, asked, tiny_digits, "0004-000000", [0.1, 0.5, 0.2, 0.3])
    why = r"epochs=20: .*would train none of them, for it is stopped after epoch 4 of 20: .*; give --patience 0"
    with pytest.raises(ValueError, match=why):
        going_on(run, asked.override({"epochs": 20}), STEPS)
    longer = asked.override({"epochs": 20, "patience": 5})
    assert "20 epochs, patience 5 instead of 8 epochs, patience 2, from epoch 5" in going_on(run, longer, STEPS)


@pytest.mark.usefixtures("_whole")
def test_a_run_that_a_callback_ended_goes_on_only_with_more_epochs(tiny_digits: Path, tmp_path: Path) -> None:
    asked, run = config(tiny_digits, tmp_path, epochs=8), tmp_path / "run"
    begun(run, asked, tiny_digits, "0001-000000", [0.1])
    stop = {"why": "callback Enough", "epochs": 8}
    (run / "metrics.jsonl").write_text(json.dumps(EPOCH_RECORD | {"validation_mean_ap": 0.1, "stop": stop}) + "\n")
    why = r"epochs=8: .*would train none of them, for it is stopped after epoch 1 of 8: callback Enough; give more --ep"
    with pytest.raises(ValueError, match=why):
        going_on(run, asked.override({"patience": 2}), STEPS)
    assert "9 epochs instead of 8 epochs, from epoch 2 on" in going_on(run, asked.override({"epochs": 9}), STEPS)


def test_only_the_length_may_change_and_a_search_or_study_is_not_extended(tiny_digits: Path, tmp_path: Path) -> None:
    asked, data = config(tiny_digits, tmp_path, epochs=2), open_folder(tiny_digits)
    claim(tmp_path / "run", asked, data)
    longer, both = asked.override({"epochs": 3}), (*EXECUTION_FIELDS, *LENGTH_FIELDS)
    check_same_run(tmp_path / "run", longer, data, both)
    with pytest.raises(ValueError, match=r"epochs=2 \(asked: 3\)"):
        check_same_run(tmp_path / "run", longer, data)
    with pytest.raises(ValueError, match=r"started with lr=.* \(asked: 0\.5\)"):
        check_same_run(tmp_path / "run", longer.override({"lr": 0.5}), data, both)


def test_the_record_of_an_earlier_version_gets_no_settings_that_it_lacks(tiny_digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    claim(run, config(tiny_digits, tmp_path, epochs=2), open_folder(tiny_digits))
    record = json.loads((run / "config.json").read_text())
    for name in ("patience", "stop_below", "threads"):
        del record["config"]["optim"][name]
    (run / "config.json").write_text(json.dumps(record))
    claim(run, config(tiny_digits, tmp_path, epochs=3), open_folder(tiny_digits))
    optim = json.loads((run / "config.json").read_text())["config"]["optim"]
    assert optim["epochs"] == 3
    assert not {"patience", "stop_below", "threads"} & set(optim)


def test_schemes_that_move_over_the_whole_run_are_known() -> None:
    assert [name for name in scheme_names() if scheme_of(name).follows_length] == ["em_apl", "gr"]
