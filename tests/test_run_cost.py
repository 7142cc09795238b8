"""What a run cost: worker-hours by epoch and by point, with those lost to restarts, and what --plan says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from raypaml.config import TrainConfig
from raypaml.recipes import recipe
from raypaml.run_report.conclude import conclude_run
from raypaml.runs import worker_time
from raypaml.runs.events import EpochReport, Event
from raypaml.runs.history import read_history
from raypaml.runs.run_cost import MIXED, cost_text, run_cost
from raypaml.runs.run_files import WORKER_TIME
from raypaml.runs.run_folder import claim
from raypaml.runs.worker_time import (
    Attempt,
    HeldTime,
    TimeRecord,
    begin_command,
    held_seconds,
    joined_time,
    read_worker_time,
    worker_counts,
)
from raypaml.training.job import plan_job, prepare_job
from raypaml.training.loop import train
from tests.conftest import run_distributed, train_here
from tests.whole_records import EPOCH_RECORD

HOUR = 3600.0


def attempt(command: float, workers: int, began: float, seen: float, **other: Any) -> Attempt:
    values: Any = {"device": "cuda", "lost": 0.0} | other
    return Attempt(command=command, workers=workers, began=began, seen=seen, **values)


def record(*attempts: Attempt, before: float = 0.0) -> TimeRecord:
    return TimeRecord(command=0.0, before=before, is_estimate=False, attempts=list(attempts))


def test_workers_are_counted_as_many_as_there_were() -> None:
    # 2 workers for 100 s; 20 s later, in the same command, 8 for 50 s; the next day, by a new command, 4 for 10 s
    attempts = (attempt(1, 2, 0, 100), attempt(1, 8, 120, 170), attempt(2, 4, 86_400, 86_410))
    assert held_seconds(record(*attempts)) == 2 * 100 + 8 * 20 + 8 * 50 + 4 * 10
    assert worker_counts(attempts) == [2, 8, 4]
    assert held_seconds(record(before=7.0)) == 7.0
    assert held_seconds(record(attempt(1, 2, 100, 90))) == 0.0  # a clock that was set back


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test sets."""
    now = [1000.0]
    monkeypatch.setattr(worker_time.time, "time", lambda: now[0])
    return now


def test_what_a_restart_loses(tmp_path: Path, clock: list[float]) -> None:
    begin_command(tmp_path)
    first = HeldTime(tmp_path, 2, "cuda", 1000.0)
    first.restored(0.0, 0.0, 0.0, again=False)
    clock[0] = 1060.0
    saved = first.look(), first.lost
    assert saved == (120.0, 0.0)
    clock[0] = 1090.0
    first.note()  # and it is killed; its last state was saved 30 s ago
    second = HeldTime(tmp_path, 8, "cuda", 1100.0)
    clock[0] = 1105.0
    second.restored(*saved, 60.0, again=False)
    lost = 2 * 30 + 8 * 10 + 8 * 5
    assert (second.lost, second.look()) == (lost, 120 + lost)
    clock[0] = 1111.0
    second.note()  # killed before it saved anything: all of it is lost too
    third = HeldTime(tmp_path, 2, "cuda", 1111.0)
    third.restored(*saved, 60.0, again=False)
    assert third.lost == lost + 8 * 6
    clock[0] = 1121.0
    third.restored(*saved, 60.0, again=True)  # it goes back to the checkpoint itself
    assert third.lost == lost + 8 * 6 + 2 * 10


def test_a_command_that_continues_does_not_pay_for_the_night(tmp_path: Path, clock: list[float]) -> None:
    begin_command(tmp_path)
    HeldTime(tmp_path, 1, "cpu", 1000.0).write()
    clock[0] = 90_000.0
    begin_command(tmp_path)
    clock[0] = 90_010.0
    held = HeldTime(tmp_path, 1, "cpu", 90_008.0)
    held.restored(0.0, 0.0, 0.0, again=False)
    assert (held.look(), held.lost) == (2.0, 2.0)


def test_states_of_earlier_versions_and_shared_warm_ups(tmp_path: Path, clock: list[float]) -> None:
    begin_command(tmp_path)
    HeldTime(tmp_path, 3, "cpu", 1000.0).restored(0.0, 0.0, 50.0, again=False)  # an earlier version trained for 50 s
    earlier = read_worker_time(tmp_path)
    assert earlier is not None
    assert (earlier["before"], earlier["is_estimate"]) == (150.0, True)
    clock[0] = 1001.0
    again = HeldTime(tmp_path, 3, "cpu", 1001.0)
    again.restored(0.0, 0.0, 50.0, again=False)
    assert again.lost == 3.0  # the second since the first start, and not the 150 before it


def test_copies_of_two_machines_are_joined() -> None:
    one, two = attempt(1, 2, 0, 10), attempt(1, 2, 0, 30)
    both = joined_time(record(one), record(two, attempt(1, 4, 40, 50)))
    assert [(a["began"], a["seen"]) for a in both["attempts"]] == [(0, 30), (40, 50)]


def test_a_damaged_record_is_a_line_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / WORKER_TIME).write_text('{"command": 1}')
    with pytest.raises(
        ValueError, match=r"worker_time.json: not the record .*before is missing.*; remove it; what came"
    ):
        begin_command(tmp_path)


def epoch(number: int, score: float, held: float | None, trained: float = HOUR) -> dict[str, Any]:
    counted = {"held_worker_seconds": held, "trained_worker_seconds": trained} if held is not None else {}
    return EPOCH_RECORD | {"epoch": number, "validation_mean_ap": score, "seconds": HOUR * (number + 1)} | counted


def write_time(folder: Path, *attempts: Attempt) -> None:
    (folder / WORKER_TIME).write_text(json.dumps(record(*attempts)))


def test_cost_of_epochs_and_points(tmp_path: Path) -> None:
    history: Any = [epoch(0, 0.2, 4 * HOUR), epoch(1, 0.5, 10 * HOUR), epoch(2, 0.4, 14 * HOUR)]
    write_time(tmp_path, attempt(1, 2, 0, 1 * HOUR), attempt(1, 8, HOUR, 3 * HOUR, lost=3 * HOUR))
    cost = run_cost(tmp_path, TrainConfig(), history)
    assert (cost["unit"], cost["in_all"], cost["training"], cost["lost"]) == ("GPU-hours", 18, 3, 3)
    assert (cost["starts"], cost["workers"]) == (2, [2, 8])
    assert cost["per_epoch"] == 14 / 3  # what came after the last epoch is in in_all alone
    assert (cost["points"], cost["per_point"]) == (50, 10 / 50)
    assert (cost["points_after_first"], cost["per_point_after_first"]) == (30, 6 / 30)
    assert "3 lost to 1 restart" in cost_text(cost)


@pytest.mark.parametrize(
    ("scores", "per_point", "after"),
    [((0.5, 0.4), 2 / 50, None), ((float("nan"),) * 2, None, None), ((0, 0), None, None)],
)
def test_no_gain_has_no_price(
    tmp_path: Path, scores: tuple[float, float], per_point: float | None, after: float | None
) -> None:
    history: Any = [epoch(number, score, 2 * HOUR * (number + 1)) for number, score in enumerate(scores)]
    cost = run_cost(tmp_path, TrainConfig(), history)
    assert (cost["per_point"], cost["per_point_after_first"]) == (per_point, after)


def test_runs_of_earlier_versions_are_estimated(tmp_path: Path) -> None:
    history: Any = [epoch(0, 0.2, None), epoch(1, 0.5, None)]
    config = TrainConfig().override({"workers": 4})
    cost = run_cost(tmp_path, config, history)
    assert (cost["unit"], cost["in_all"], cost["estimated"], cost["training"]) == (MIXED, 8, 8, 8)
    assert "estimated" in cost_text(cost)


def asked(data: Path, storage: Path, **values: Any) -> TrainConfig:
    fixed = {"data": str(data), "storage": str(storage), "name": "run", "workers": 1, "epochs": 3}
    return recipe("digits").override(fixed | values)


def test_a_run_that_was_killed_and_continued(tiny_digits: Path, tmp_path: Path) -> None:
    config = asked(tiny_digits, tmp_path)

    def killed(event: Event) -> bool:
        if isinstance(event, EpochReport) and event.record["epoch"] == 1:
            raise RuntimeError("killed")
        return False

    with pytest.raises(RuntimeError, match="killed"):
        train_here(config, report=killed)
    job = train_here(config)
    history = read_history(job.folder)
    held = [one["held_worker_seconds"] for one in history]
    assert held == sorted(held)
    assert all(one["workers"] == 1 and one["trained_worker_seconds"] for one in history)
    assert history[0]["lost_worker_seconds"] == 0 < history[-1]["lost_worker_seconds"]
    cost = conclude_run(job)["cost"]
    assert (cost["unit"], cost["starts"], cost["workers"]) == ("CPU worker-hours", 2, [1])
    assert cost["in_all"] > cost["training"] + cost["lost"]
    assert cost["per_epoch"] == pytest.approx(held[-1] / 3 / HOUR)

    planned = plan_job(config.override({"name": "", "epochs": 10}), lambda _: None)
    assert f"measured    {job.folder} (workers: 1)" in planned
    assert "for each of the" in planned


def test_a_plan_without_an_earlier_run_gives_no_price_of_a_point(tiny_digits: Path, tmp_path: Path) -> None:
    planned = plan_job(asked(tiny_digits, tmp_path), lambda _: None)
    assert f"hours for each point of validation mAP: not known, for {tmp_path} has no run" in planned
    (line,) = [line for line in planned.splitlines() if " 0.1 TFLOP/s" in line]
    hours, whole_run = map(float, line.split()[-2:])
    assert whole_run == pytest.approx(3 * hours, rel=0.01)
    assert not list(tmp_path.iterdir())


def _train_rank(_rank: int, _world_size: int, config: TrainConfig, folder: Path) -> None:
    train(config, config.data.data, folder, torch.device("cpu"), lambda _: False)


@pytest.mark.cluster
def test_a_run_that_goes_on_with_fewer_workers_counts_those_that_there_were(tiny_digits: Path, tmp_path: Path) -> None:
    two = asked(tiny_digits, tmp_path, workers=2, epochs=2)
    job = prepare_job(two, lambda _: None)
    claim(job.folder, job.config, job.data)
    run_distributed(_train_rank, 2, job.config, job.folder)
    job = train_here(two.override({"workers": 1, "epochs": 3}))
    history, record = read_history(job.folder), read_worker_time(job.folder)
    assert record is not None
    assert [one["workers"] for one in history] == [2, 2, 1]
    assert [one["workers"] for one in record["attempts"]] == [2, 1]
    first, second = record["attempts"]
    held = 2 * (first["seen"] - first["began"]) + second["seen"] - second["began"]
    assert held_seconds(record) == pytest.approx(held)
    # both workers' steps are counted, and never more than was held
    for before, one in zip([None, *history], history, strict=False):
        spent = one["held_worker_seconds"] - (before["held_worker_seconds"] if before else 0.0)
        assert 0.9 * one["workers"] * one["epoch_seconds"] < one["trained_worker_seconds"] < spent
    assert conclude_run(job)["cost"]["workers"] == [2, 1]
