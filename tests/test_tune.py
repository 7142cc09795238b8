"""`python -m raypaml.tune` as a user runs it: real Ray, trials beside each other, a kill in the middle."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import raypaml
from raypaml.cluster.ray_tune import _scheduler
from raypaml.data.data_folder import open_folder
from raypaml.recipes import recipe
from raypaml.run_report.conclude import conclude_run
from raypaml.runs.run_folder import claim
from raypaml.search.queue import Queue
from raypaml.search.search_flags import open_queue, plan_search
from raypaml.search.search_folder import SearchPlan, note
from raypaml.search.spaces import parse_search
from raypaml.search.trials import Trial, random_trials
from raypaml.training.job import prepare_job
from raypaml.training.loop import train
from raypaml.tune import parse
from tests.slow_steps import SLOW, until
from tests.test_api import readme_example
from tests.whole_records import EPOCH_RECORD, RESULT

SHORT = {"epochs": 4, "warmup_epochs": 2, "delta_rel": 2.0, "optimizer": "adamw", "weight_decay": 0.5}
GRID = "delta_rel=2|4,lr=0.004|1000"  # with this decay the second learning rate leads to logits that are not finite


def tune(data: Path, storage: Path, *flags: str) -> list[str]:
    short = [text for name, value in SHORT.items() for text in ("--" + name.replace("_", "-"), str(value))]
    where = ["--data", str(data), "--storage", str(storage), "--name", "s"]
    return [sys.executable, "-m", "raypaml.tune", *where, *short, *flags]


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))


def alone(data: Path, storage: Path, delta_rel: float) -> tuple[float, float]:
    """Validation and test mAP of a trial trained here, without Ray and without sharing."""
    torch.set_num_threads(1)
    values = SHORT | {"delta_rel": delta_rel, "workers": 1, "data": str(data), "storage": str(storage), "name": "a"}
    job = prepare_job(recipe("digits").override(values | {"name": f"{delta_rel}"}), lambda _: None)
    claim(job.folder, job.config, job.data)
    train(job.config, job.data.path, job.folder, torch.device("cpu"), lambda _: False)
    result = conclude_run(job)
    return result["validation_mean_ap"], result["mean_ap"]


def wait_for(condition: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while not condition.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def asha_stops(search: SearchPlan, queue: Queue, trial: Trial, scores: list[float]) -> int:
    """The epoch after which the scheduler stops a trial of these validation scores; 0: never."""
    scheduler = _scheduler(search, queue)
    running = SimpleNamespace(trial_id="x", config=trial.settings)
    scheduler.on_trial_add(None, running)
    for number, score in enumerate(scores):
        record = {"epoch": number, "validation_mean_ap": score, "rejected": 0, "rejection_precision": None}
        assert scheduler.on_trial_result(None, running, search.progress(record)) == scheduler.CONTINUE
    stopped = search.run_folder(trial) / "stopped.json"
    epoch = json.loads(stopped.read_text())["epochs"] if stopped.is_file() else 0
    stopped.unlink(missing_ok=True)
    return int(epoch)


@pytest.mark.parametrize("spaces", ["delta_rel=0.1:0.5", "warmup_epochs=1:6"])
def test_asha_judges_only_after_the_longest_warm_up_and_spares_the_starting_point(
    spaces: str, tiny_digits: Path, tmp_path: Path
) -> None:
    base = recipe("digits").override({"name": "s", "storage": str(tmp_path), "workers": 1, "data": str(tiny_digits)})
    search = SearchPlan(base=base, spaces=tuple(parse_search(spaces, base, {}, None)))
    trials = random_trials(base, search.spaces, 6, share=3, seed=0)
    for trial in trials[1:5]:  # what an earlier session left
        folder = search.run_folder(trial)
        folder.mkdir(parents=True)
        good = EPOCH_RECORD | {"rejected": 0}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(good | {"epoch": n}) + "\n" for n in range(18)))
        (folder / "result.json").write_text(json.dumps(RESULT))
    queue = Queue(search, trials)
    assert queue.waiting == [trials[0], trials[5]]
    assert asha_stops(search, queue, trials[5], [0.1] * 18) == 12  # 6 of warm-up and half of what follows
    assert asha_stops(search, queue, trials[5], [0.1] * 11 + [0.6] * 7) == 0
    assert asha_stops(search, queue, trials[5], [0.6] * 17 + [0.1]) == 0  # at its last epoch nobody is stopped
    assert asha_stops(search, queue, trials[0], [0.1] * 18) == 0
    assert asha_stops(search, queue, dataclasses.replace(trials[5], seed=1, repeats=True), [0.1] * 18) == 0


def test_without_room_for_a_decision_nobody_is_stopped(tmp_path: Path) -> None:
    base = recipe("digits").override({"name": "s", "storage": str(tmp_path), "epochs": 7})
    search = SearchPlan(base=base, spaces=tuple(parse_search("delta_rel=0.1:0.5", base, {}, None)))
    assert type(_scheduler(search, Queue(search, []))).__name__ == "FIFOScheduler"


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_killed_and_given_again_it_leaves_the_table_of_an_undisturbed_search(tiny_digits: Path, tmp_path: Path) -> None:
    asked = tune(tiny_digits, tmp_path, "--search", GRID, "--searcher", "grid", "--no-early-stop")
    trials = tmp_path / "s" / "trials"
    first = trials / "delta_rel=2,lr=0.004" / "result.json"
    process = subprocess.Popen(asked, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_for(first, process)
    process.kill()
    _, said = process.communicate()
    assert "2 at once, each with 1 CPU" in said
    both = [line for line in said.splitlines() if line.endswith((": starts", "finished")) or "failed" in line]
    assert [line.endswith(": starts") for line in both[:2]] == [True, True]
    before = first.stat().st_mtime_ns

    again = subprocess.run(asked, capture_output=True, text=True, timeout=800, check=False)
    assert again.returncode == 0, again.stderr
    assert first.stat().st_mtime_ns == before
    assert "Traceback" not in again.stderr
    found = rows(tmp_path / "s")
    assert [(row["trial"], row["state"]) for row in found] == [
        ("delta_rel=2,lr=0.004", "finished"),
        ("delta_rel=2,lr=1000", "failed"),
        ("delta_rel=4,lr=0.004", "finished"),
        ("delta_rel=4,lr=1000", "failed"),
    ]
    for row in found[::2]:
        scores = float(row["validation_mean_ap"]), float(row["test_mean_ap"])
        assert scores == alone(tiny_digits, tmp_path / "alone", float(row["delta_rel"]))
    assert re.match(r"rank 0, epoch \d+, step \d+: logits are not finite", found[1]["error"])
    assert found[1]["error"] in again.stdout
    assert int(found[2]["epochs_shared"]) == 2
    best = json.loads((tmp_path / "s" / "best.json").read_text())
    assert best["found"]["trial"] in ("delta_rel=2,lr=0.004", "delta_rel=4,lr=0.004")
    assert (tmp_path / "s" / "report.html").is_file()


@pytest.mark.cluster
def test_a_search_is_run_from_a_program(
    tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {"raypaml": raypaml}
    short = f"epochs=2, warmup_epochs=1, delta_rel=2.0, progress=False, data={str(tiny_digits)!r}"
    code = readme_example(2).replace("trials=4", f"trials=2, {short}")
    exec(code.replace("seed=1", "seed=1, epochs=1, workers=1"), given)
    assert capfd.readouterr().out == ""
    search, again = given["search"], given["again"]
    assert search.trials["state"].to_pylist() == ["finished", "finished"]
    assert (search.is_finished, search.best.is_finished) == (True, True)
    assert again.config.model.alpha == search.best_settings["alpha"]
    assert (again.config.run.seed, again.records.num_rows) == (1, 1)


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_as_many_trials_are_stopped_as_run_at_once_and_the_search_ends(tiny_digits: Path, tmp_path: Path) -> None:
    slow = ("--epochs", "40", "--warmup-epochs", "1", "--delta-rel", "0.05", SLOW)
    space = "lr=0.005|0.006|0.007|0.008|0.01|0.02|0.03"
    asked = tune(tiny_digits, tmp_path, *slow, "--search", space, "--searcher", "grid")
    _, flags = parse(asked[3:])
    search = plan_search(flags.settings, flags.base, open_folder(tiny_digits))
    queue, _ = open_queue(search, flags.settings, lambda _: None)
    good = EPOCH_RECORD | {"validation_mean_ap": 0.9, "rejected": 0}
    for trial in queue.trials[1:5]:  # left by an earlier session, and so good that whoever comes now falls behind
        note(search, trial, "stopped", {"epochs": 39})
        history = "".join(json.dumps(good | {"epoch": n}) + "\n" for n in range(39))
        (search.run_folder(trial) / "metrics.jsonl").write_text(history)
    told = os.environ | until(tmp_path / "never", 0.1)
    done = subprocess.run(asked, capture_output=True, text=True, check=False, env=told)
    assert done.returncode == 0, done.stderr
    states = {row["trial"]: row["state"] for row in rows(tmp_path / "s")}
    own = states.pop("lr=0.004")  # it is spared
    assert (own, set(states.values()), len(states)) == ("finished", {"stopped"}, 7), done.stderr
    for name in ("lr=0.01", "lr=0.02", "lr=0.03"):
        assert 20 <= len((tmp_path / "s" / "trials" / name / "metrics.jsonl").read_text().splitlines()) < 40


def test_errors_before_the_start_are_one_line(tiny_digits: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        tune(tiny_digits, tmp_path, "--search", "alhpa"), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 2
    *before, last = done.stderr.splitlines()
    said = [line.partition("  ")[2] for line in before]  # after the time
    assert said in ([], ["delta_rel 2 where digits has for ll_r 0.25"])
    assert "did you mean 'alpha'?" in last
    assert not (tmp_path / "s").exists()


def test_suggest_says_what_it_found_and_starts_nothing(tiny_digits: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *tune(tiny_digits, tmp_path, "--suggest", "--hang-seconds=9", "--tracker=tensorboard"),
            "--weights",
            "imagenet",
            "--backbone",
            "resnet50",
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "TORCH_HOME": str(tmp_path / "no_weights"), "HTTPS_PROXY": "http://127.0.0.1:9"},
    )
    assert done.returncode == 0, done.stderr  # labels are enough: no weights are loaded, and nothing is downloaded
    assert not (tmp_path / "no_weights").exists()
    assert re.search(r"missed positives: \d\.\d+% of the unobserved training entries", done.stdout)
    assert "halfway through 2 rejecting epochs" in done.stdout
    assert "--tracker has no effect on trials" in done.stderr
    assert "--hang-seconds" not in done.stderr
    assert not (tmp_path / "s").exists()
