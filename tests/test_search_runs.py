"""Trials trained without Ray: a shared warm-up changes nothing; the order in which the queue starts them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from raypaml.config import TrainConfig
from raypaml.evaluation.measures import alpha_curve
from raypaml.evaluation.parts import open_set
from raypaml.files import write_json
from raypaml.recipes import recipe
from raypaml.run_report.conclude import conclude_run
from raypaml.runs.checkpoint import valid_checkpoints
from raypaml.runs.events import EpochReport, Event
from raypaml.runs.run_folder import claim
from raypaml.search.queue import Queue
from raypaml.search.search_folder import SearchPlan, outcome
from raypaml.search.search_result import cost
from raypaml.search.spaces import parse_search
from raypaml.search.trials import Trial, random_trials
from raypaml.search.warmup import AFTER_WARMUP, keep, start_from, warmup_key
from raypaml.training.job import prepare_job
from raypaml.training.loop import train
from tests.conftest import MEASURED

pytestmark = pytest.mark.usefixtures("one_thread")
EPOCHS = 5
ALPHAS = (1.0, 5.0)


def base(data: Path, storage: Path, **values: Any) -> TrainConfig:
    short = {"epochs": EPOCHS, "warmup_epochs": 2, "delta_rel": 2.0, "workers": 1, "name": "s"}
    return recipe("digits").override(short | {"data": str(data), "storage": str(storage)} | values)


def make(data: Path, storage: Path, text: str, share: int = 4, **values: Any) -> SearchPlan:
    config = base(data, storage, **values)
    return SearchPlan(base=config, spaces=tuple(parse_search(text, config, {}, None)), share=share)


def run(search: SearchPlan, trial: Trial, marks: set[int]) -> int:
    """Train a trial as raypaml.tune does, in this process; returns the number of epochs that were trained."""
    job = prepare_job(search.config(trial), lambda _: None)
    claim(job.folder, job.config, job.data)
    trained = 0

    def report(event: Event) -> bool:
        nonlocal trained
        if isinstance(event, EpochReport):
            trained += 1
            if event.record["epoch"] + 1 in marks:
                keep(job.folder, search.warmups(trial), event.record["epoch"] + 1)
        return False

    if marks and (shared := start_from(search.warmups(trial), job.folder, job.config.loss.warmup_epochs)):
        write_json(job.folder / "shared.json", {"epochs": shared})
    splits = ("validation", "test")
    assert train(job.config, job.data.path, job.folder, torch.device("cpu"), report, splits, commit_first=bool(marks))
    predictions = open_set(job.folder / "predictions" / "validation")
    write_json(job.folder / "alpha_curve.json", alpha_curve(predictions, job.data.vocabulary, ALPHAS))
    conclude_run(job)
    return trained


def left(folder: Path) -> dict[str, Any]:
    """All that a run computed: weights of every checkpoint it kept, records, predictions, result; no times."""
    valid, damaged = valid_checkpoints(folder / "checkpoints")
    assert not damaged
    found: dict[str, Any] = {
        path.name: hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest() for path in valid
    }
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found["records"] = [{k: v for k, v in record.items() if k not in MEASURED} for record in records]
    found |= {path.name: path.read_bytes() for path in (folder / "predictions").rglob("*.parquet")}
    result = json.loads((folder / "result.json").read_text())
    return found | {"result": {k: v for k, v in result.items() if k not in ("training_seconds", "cost")}}


# --- The shared warm-up ---------------------------------------------------------------------------------------------


def test_a_shared_warm_up_saves_its_epochs_and_changes_no_bit(tiny_digits: Path, tmp_path: Path) -> None:
    spaces = "delta_rel=1:4,scheme=ll_r|ll_ct|ll_cp|an,warmup_epochs=1:3"
    shared = make(tiny_digits, tmp_path / "shared", spaces)
    alone = make(tiny_digits, tmp_path / "alone", spaces)
    points = [(2.0, "ll_r", 3), (4.0, "ll_ct", 2), (1.0, "ll_cp", 3), (1.0, "an", 1)]
    trials = [Trial(tuple(zip(shared.fields, point, strict=True)), 0) for point in points]
    trained = [run(shared, trial, {1, 2, 3}) for trial in trials]
    assert [run(alone, trial, set()) for trial in trials] == [EPOCHS] * 4
    assert trained == [EPOCHS, EPOCHS - 2, EPOCHS - 3, EPOCHS - 1]
    for trial in trials:
        assert left(shared.run_folder(trial)) == left(alone.run_folder(trial))
    outcomes = [outcome(shared, trial) for trial in trials]
    assert [found.shared for found in outcomes] == [0, 2, 3, 1]
    spent, unshared = cost(shared, outcomes), cost(alone, [outcome(alone, trial) for trial in trials])
    assert (spent.epochs, spent.shared) == (sum(trained), 6)
    assert (unshared.epochs, unshared.shared) == (4 * EPOCHS, 0)


def test_only_fields_without_effect_before_the_first_rejection_share() -> None:
    one = recipe("digits")
    same = {"delta_rel": 1.0, "schedule": "samples", "warmup_epochs": 3, "rejection_scope": "rank", "scheme": "ll_cp"}
    same["rejection_rounding"] = "half_up"
    assert set(AFTER_WARMUP) < set(same)
    assert warmup_key(one.override(same | {"name": "x", "workers": 3})) == warmup_key(one)
    for name, value in {"alpha": 4.0, "lr": 1.0, "seed": 1, "epochs": 19, "scheme": "full", "data": "x"}.items():
        assert warmup_key(one.override({name: value})) != warmup_key(one)


def test_a_warm_up_is_kept_whole_and_goes_only_into_a_new_run(tmp_path: Path) -> None:
    source, warmups = tmp_path / "run", tmp_path / "warmups"
    (source / "checkpoints" / "0002-000000").mkdir(parents=True)
    (source / "metrics.jsonl").write_text("a\nb\n")
    keep(source, warmups, 2)
    (source / "metrics.jsonl").write_text("later\n")
    keep(source, warmups, 2)  # the first stays
    new = tmp_path / "new"
    new.mkdir()
    assert start_from(warmups, new, 1) == 0
    assert start_from(warmups, new, 3) == 2
    assert (new / "metrics.jsonl").read_text() == "a\nb\n"
    assert (new / "checkpoints" / "0002-000000").is_dir()
    assert start_from(warmups, new, 3) == 0


# --- The queue ------------------------------------------------------------------------------------------------------


def test_one_trial_trains_the_warm_up_and_the_others_wait_for_it(tiny_digits: Path, tmp_path: Path) -> None:
    search = make(tiny_digits, tmp_path, "alpha=1:10,delta_rel=1:4")
    trials = random_trials(search.base, search.spaces, 6, share=3, seed=0)
    queue = Queue(search, trials)
    assert [queue.next(), queue.next(), queue.next()] == [trials[0], trials[3], None]
    assert queue.marks(trials[0]) == {2}
    (search.warmups(trials[0]) / "after-2").mkdir(parents=True)
    assert [queue.next(), queue.next(), queue.next()] == [trials[1], trials[2], None]
    queue.done(trials[3])  # it failed, so the next of its group trains the warm-up
    assert [queue.next(), queue.next()] == [trials[4], None]
    for trial in trials[:5]:
        queue.done(trial)
    assert not queue.is_finished
    assert queue.next() == trials[5]
    queue.done(trials[5])
    assert queue.next() is None
    assert queue.is_finished


def test_the_longest_warm_up_goes_first(tiny_digits: Path, tmp_path: Path) -> None:
    search = make(tiny_digits, tmp_path, "warmup_epochs=1:4")
    trials = [Trial((("warmup_epochs", epochs),), 0) for epochs in (2, 1, 4)]
    queue = Queue(search, trials)
    assert [queue.next(), queue.next()] == [trials[2], None]
    assert queue.marks(trials[2]) == {1, 2, 4}
    (search.warmups(trials[0]) / "after-1").mkdir(parents=True)
    assert [queue.next(), queue.next()] == [trials[1], None]


def test_without_sharing_nobody_waits(tiny_digits: Path, tmp_path: Path) -> None:
    search = make(tiny_digits, tmp_path, "delta_rel=1:4", share=1)
    trials = random_trials(search.base, search.spaces, 3, share=1, seed=0)
    queue = Queue(search, trials)
    assert [queue.next() for _ in trials] == trials
    assert queue.marks(trials[0]) == set()
