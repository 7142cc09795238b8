"""Trials trained without Ray: a shared warm-up changes nothing, the queue's order, what is said at the end."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats

from raypaml import train as command
from raypaml.config import TrainConfig
from raypaml.data.folder import open_folder
from raypaml.predictions.parts import open_set
from raypaml.recipes import recipe
from raypaml.reports.evaluation import Questions, alpha_curve, evaluate
from raypaml.reports.search_page import write_page
from raypaml.reports.search_progress import SearchDisplay
from raypaml.reports.search_result import conclude, cost, seed_interval, table
from raypaml.search.folder import Search, extend, note, open_search, outcome
from raypaml.search.importance import importance
from raypaml.search.plan import Trial, random_trials
from raypaml.search.proposals import Proposals
from raypaml.search.queue import Queue
from raypaml.search.spaces import parse_search
from raypaml.search.warmup import AFTER_WARMUP, keep, start_from, warmup_key
from raypaml.training.checkpoint import valid_checkpoints
from raypaml.training.loop import train
from raypaml.training.run_folder import claim, write_json

EPOCHS = 5
ALPHAS = (1.0, 5.0)


def base(data: Path, storage: Path, **values: Any) -> TrainConfig:
    short = {"epochs": EPOCHS, "warmup_epochs": 2, "delta_rel": 2.0, "workers": 1, "name": "s"}
    return recipe("digits").override(short | {"data": str(data), "storage": str(storage)} | values)


def make(data: Path, storage: Path, text: str, share: int = 4, **values: Any) -> Search:
    config = base(data, storage, **values)
    return Search(base=config, spaces=tuple(parse_search(text, config, {}, None)), share=share)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(search: Search, trial: Trial, marks: set[int]) -> int:
    """Train a trial as raypaml.tune does, in this process; returns the number of epochs that were trained."""
    job = command.prepare(search.config(trial), lambda _: None)
    claim(job.folder, job.config, job.data)
    trained = 0

    def report(event: dict[str, Any]) -> bool:
        nonlocal trained
        if "record" in event:
            trained += 1
            if event["record"]["epoch"] + 1 in marks:
                keep(job.folder, search.warmups(trial), event["record"]["epoch"] + 1)
        return False

    if marks and (shared := start_from(search.warmups(trial), job.folder, job.config.loss.warmup_epochs)):
        write_json(job.folder / "shared.json", {"epochs": shared})
    assert train(job.config, job.data.path, job.folder, torch.device("cpu"), report, splits=("validation", "test"))
    predictions = open_set(job.folder / "predictions" / "validation")
    write_json(job.folder / "alpha_curve.json", alpha_curve(predictions, job.data.vocabulary, ALPHAS))
    command.conclude(job)
    return trained


def left(folder: Path) -> dict[str, Any]:
    """All that a run computed: weights of every checkpoint it kept, records, predictions, result; no times."""
    valid, damaged = valid_checkpoints(folder / "checkpoints")
    assert not damaged
    found: dict[str, Any] = {
        path.name: hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest() for path in valid
    }
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found["records"] = [{k: v for k, v in record.items() if k != "seconds"} for record in records]
    found |= {path.name: path.read_bytes() for path in (folder / "predictions").rglob("*.parquet")}
    result = json.loads((folder / "result.json").read_text())
    return found | {"result": {k: v for k, v in result.items() if k != "training_seconds"}}


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
    spent = cost(shared, outcomes)
    assert (spent.epochs, spent.shared) == (sum(trained), 6)
    assert spent.hours < cost(alone, [outcome(alone, trial) for trial in trials]).hours


def test_only_fields_without_effect_before_the_first_rejection_share() -> None:
    one = recipe("digits")
    same = {"delta_rel": 1.0, "schedule": "samples", "warmup_epochs": 3, "rejection_scope": "rank", "scheme": "ll_cp"}
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


# --- A whole search, its ends and its continuation ------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(evaluated_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Search, list[Trial]]:
    """Five trials: two finished, one of them the starting point, one stopped, one failed, one still planned."""
    search = make(evaluated_digits, tmp_path_factory.mktemp("searched"), "alpha=1:10,delta_rel=1:4")
    trials = random_trials(search.base, search.spaces, 5, share=4, seed=0)
    open_search(search, 5)
    torch.set_num_threads(1)
    for trial in trials[:2]:
        run(search, trial, {2})
    shutil.copytree(search.run_folder(trials[0]), search.run_folder(trials[2]))
    (search.run_folder(trials[2]) / "result.json").unlink()
    note(search, trials[2], "stopped", {"epochs": EPOCHS})
    note(search, trials[3], "error", {"error": "rank 0: logits are not finite"})
    return search, trials


def test_a_search_goes_on_with_what_is_left(searched: tuple[Search, list[Trial]]) -> None:
    search, trials = searched
    assert [outcome(search, trial).state for trial in trials] == [
        "finished", "finished", "stopped", "failed", "planned",
    ]  # fmt: skip
    assert Queue(search, trials).waiting == trials[3:]


def test_a_folder_is_of_one_question(searched: tuple[Search, list[Trial]], tmp_path: Path) -> None:
    search, _ = searched
    assert open_search(search, 3) == 5
    extend(search, 7)
    assert open_search(search, 3) == 7
    other = Search(base=search.base.override({"lr": 1e-3}), spaces=search.spaces)
    with pytest.raises(ValueError, match=r"started with lr=0.004 \(asked: 0.001\); give this search another --name"):
        open_search(other, 3)
    assert other.default_name != search.default_name
    stranger = Search(base=search.base.override({"storage": str(tmp_path)}), spaces=search.spaces)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and not of a search"):
        open_search(stranger, 3)


def test_repeats_of_the_finalists_follow_when_all_else_has_ended(searched: tuple[Search, list[Trial]]) -> None:
    search, trials = searched
    queue = Queue(search, trials[:3], seeds=3)
    found = [trial.name for trial in iter(queue.next, None)]
    best = max(trials[:2], key=lambda trial: outcome(search, trial).score)
    names = list(dict.fromkeys([trials[0].name, best.name]))
    started = [f"{name},seed={seed}" for seed in (1, 2) for name in names]
    assert set(found) <= set(started)
    assert set(found) | {trial.name for trial in queue.waiting} == set(started)


def test_what_a_search_leaves(searched: tuple[Search, list[Trial]]) -> None:
    search, trials = searched
    data = open_folder(Path(search.base.data.data))
    outcomes = [outcome(search, trial) for trial in trials]
    verdict = conclude(search, outcomes, data.vocabulary)
    write_page(search, outcomes, verdict)
    rows = list(csv.DictReader((search.folder / "trials.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["finished", "finished", "stopped", "failed", "planned"]
    assert float(rows[1]["test_mean_ap"]) == outcomes[1].result["mean_ap"]
    assert rows[3]["error"] == "rank 0: logits are not finite"
    page = (search.folder / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "src=" not in page
    assert "rank 0: logits are not finite" in page
    assert "failed: " + trials[3].name in table(search, outcomes)
    best = max(outcomes[:2], key=lambda found: found.score)
    config = command.parse(["--config", str(search.folder / "best.json"), "--lr", "0.5"])
    assert config.model.alpha == dict(best.trial.values)["alpha"]
    assert (config.optim.lr, config.run.name, config.run.workers, config.run.storage) == (0.5, "", 2, "runs")


def test_the_alpha_curve_needs_no_training(searched: tuple[Search, list[Trial]]) -> None:
    search, trials = searched
    found = outcome(search, trials[0])
    predictions = open_set(search.run_folder(trials[0]) / "predictions" / "validation")
    vocabulary = open_folder(Path(search.base.data.data)).vocabulary
    for alpha in ALPHAS:
        mean = evaluate(predictions, vocabulary, Questions(alpha=alpha)).means("paper")
        assert mean is not None
        assert found.curve[alpha] == mean["All"]
    assert found.curve[5.0] == pytest.approx(found.score, abs=1e-12)


def test_a_better_trial_is_judged_on_the_test_split(searched: tuple[Search, list[Trial]]) -> None:
    search, trials = searched
    outcomes = [outcome(search, trial) for trial in trials[:2]]
    vocabulary = open_folder(Path(search.base.data.data)).vocabulary
    outcomes[1].history[-1]["validation_mean_ap"] = 0.99
    verdict = conclude(search, outcomes, vocabulary)
    assert verdict.best is outcomes[1]
    assert verdict.difference == pytest.approx(outcomes[1].result["mean_ap"] - outcomes[0].result["mean_ap"])
    assert verdict.interval is not None
    assert verdict.interval[0] < verdict.difference < verdict.interval[1]
    assert ("it is not established" in verdict.text) == (verdict.interval[0] <= 0)
    outcomes[0].history[-1]["validation_mean_ap"] = 1.0
    assert "Nothing tried is better than the starting point" in conclude(search, outcomes, vocabulary).text


def test_the_interval_over_seeds_is_the_paired_t_interval() -> None:
    a, b = np.array([0.8, 0.81, 0.79]), np.array([0.78, 0.80, 0.785])
    oracle = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert seed_interval((a - b).tolist())[1:] == pytest.approx((oracle.low, oracle.high))


def test_importance_finds_the_field_that_matters(tiny_digits: Path, tmp_path: Path) -> None:
    search = make(tiny_digits, tmp_path, "alpha=1:10,delta_rel=1:4")
    outcomes = [outcome(search, trial) for trial in random_trials(search.base, search.spaces, 24, share=4, seed=0)]
    for found in outcomes:
        found.state = "finished"
        found.history = [{"epoch": 0, "validation_mean_ap": dict(found.trial.values)["delta_rel"]}]
    shares = importance(outcomes, search.spaces)
    assert shares["delta_rel"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    assert importance(outcomes[:5], search.spaces) == {}


def test_tpe_proposes_what_it_has_not_seen_and_goes_on_after_a_restart(tiny_digits: Path, tmp_path: Path) -> None:
    search = make(tiny_digits, tmp_path, "delta_rel=1:4,schedule=epoch|samples")
    open_search(search, 12)
    queue = Queue(search, random_trials(search.base, search.spaces, 1, share=4, seed=0))

    def finish(trial: Trial) -> None:
        """As a run that is better the smaller delta_rel is."""
        folder = search.run_folder(trial)
        folder.mkdir(parents=True)
        record = {"epoch": 0, "seconds": 1, "validation_mean_ap": 1 / float(dict(trial.values)["delta_rel"])}
        (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        (folder / "result.json").write_text("{}")

    for count in (8, 20):  # the second as after a restart
        proposals = Proposals(search, queue, count)
        for _ in range(count):
            proposals.propose()
            trial = queue.next()
            if trial is not None:
                finish(trial)
                queue.done(trial)
                proposals.learn(trial)
        queue = Queue(search, queue.trials)
    found = [float(dict(trial.values)["delta_rel"]) for trial in queue.trials]
    assert len(set(queue.trials)) == 20
    assert np.mean(found[10:]) < np.mean(found[:4])


@pytest.mark.parametrize("terminal", [True, False])
def test_the_display_is_a_table_on_a_terminal_and_plain_lines_elsewhere(
    terminal: bool, searched: tuple[Search, list[Trial]]
) -> None:
    search, trials = searched
    text = io.StringIO()
    outcomes = [outcome(search, trial) for trial in trials]
    with SearchDisplay(
        Console(file=text, force_terminal=terminal, width=160, highlight=False, color_system=None)
    ) as display:
        display.begin(search, outcomes)
        display.start(trials[4])
        progress = {"epoch": 1, "validation_mean_ap": 0.5, "rejected": 1234, "rejection_precision": 0.25}
        display.update(trials[4], progress)
        for found in outcomes[1:4]:
            display.end(found)
    said = text.getvalue()
    assert "5 trials planned, 3 of them ended already" in said
    assert ("of them missed" in said) == terminal
    if terminal:
        row = next(line for line in said.splitlines()[::-1] if trials[4].name in line)
        assert row.split()[-6:] == ["running", "1/5", "50.00", "50.00", "1,234", "25%"]
    else:
        assert f"{trials[4].name}: epoch 1/5  validation mAP 50.00  rejected 1,234" in said
        assert f"{trials[2].name}: stopped after epoch 5: behind the others" in said
        assert f"{trials[3].name}: failed: rank 0: logits are not finite" in said
