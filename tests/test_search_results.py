"""What a search leaves, how it goes on, and what is said at its end; the trials are trained here, without Ray."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats

import raypaml
from raypaml import train as command
from raypaml.config import EARLIER
from raypaml.data.data_folder import open_folder
from raypaml.evaluation.measures import EvaluationOptions, evaluate_set
from raypaml.evaluation.parts import open_set
from raypaml.recipes import recipe
from raypaml.reports.tables import seed_interval
from raypaml.search.importance import importance
from raypaml.search.proposals import Proposals
from raypaml.search.queue import Queue
from raypaml.search.search_flags import open_queue
from raypaml.search.search_folder import Outcome, SearchPlan, extend, note, open_search, outcome, search_as_begun
from raypaml.search.search_page import write_search_page
from raypaml.search.search_progress import SearchDisplay
from raypaml.search.search_result import _meaning, conclude_search, trial_table
from raypaml.search.trials import Trial, random_trials
from raypaml.tune import parse
from tests.test_search_runs import ALPHAS, EPOCHS, make, run
from tests.whole_records import EPOCH_RECORD, RESULT

USUAL = parse([])[1].settings


@pytest.fixture(scope="module")
def searched(evaluated_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchPlan, list[Trial]]:
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


def test_a_search_goes_on_with_what_is_left(searched: tuple[SearchPlan, list[Trial]]) -> None:
    search, trials = searched
    assert [outcome(search, trial).state for trial in trials] == [
        "finished", "finished", "stopped", "failed", "planned",
    ]  # fmt: skip
    assert Queue(search, trials).waiting == trials[3:]


def test_a_search_that_an_earlier_version_began_goes_on_as_it_began(tmp_path: Path) -> None:
    search = SearchPlan(base=recipe("digits").override({"storage": str(tmp_path)}), spaces=())
    open_search(search, 4)
    path = search.folder / "search.json"
    stored = json.loads(path.read_text())
    path.write_text(
        json.dumps(stored | {"question": {k: v for k, v in stored["question"].items() if k not in EARLIER}})
    )
    begun = search_as_begun(search, search.base)
    assert {name: begun.base.flat()[name] for name in EARLIER} == EARLIER
    assert (begun.folder, open_search(begun, 3)) == (search.folder, 4)
    base = search.base.override({"name": search.default_name, "threads": 2})
    other = search_as_begun(dataclasses.replace(search, base=base), base)
    with pytest.raises(ValueError, match=r"started with threads=0 \(asked: 2\)"):
        open_search(other, 3)


def test_a_folder_is_of_one_question(searched: tuple[SearchPlan, list[Trial]], tmp_path: Path) -> None:
    search, _ = searched
    assert open_search(search, 3) == 5
    extend(search, 7)
    assert open_search(search, 3) == 7
    other = dataclasses.replace(search, base=search.base.override({"lr": 1e-3}))
    with pytest.raises(ValueError, match=r"started with lr=0.004 \(asked: 0.001\); give this search another --name"):
        open_search(other, 3)
    assert other.default_name != search.default_name
    stranger = dataclasses.replace(search, base=search.base.override({"storage": str(tmp_path)}))
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and not of a search"):
        open_search(stranger, 3)


def test_a_finished_search_is_extended_and_an_unfinished_one_goes_on_first(tiny_digits: Path, tmp_path: Path) -> None:
    search = make(tiny_digits, tmp_path, "alpha=1:10,delta_rel=1:4")
    said: list[str] = []

    def asked(**flags: int) -> list[Trial]:
        return open_queue(search, dataclasses.replace(USUAL, **{"trials": 3} | flags), said.append)[0].trials

    first = asked()
    assert asked(add=2) == first
    assert said == ["--add 2: this search is not finished yet; it goes on, then give --add again"]
    for number, trial in enumerate(first):
        note(search, trial, "stopped" if number else "error", {"error": "x"})
    assert asked(add=2)[:3] == first
    assert len(asked(add=2)) == 5  # the two are not run yet: it goes on with them
    assert len(asked()) == 5
    assert len(asked(trials=6)) == 6
    grid = dataclasses.replace(search, searcher="grid", base=search.base.override({"name": "g"}))
    with pytest.raises(ValueError, match="add=2: a grid has a fixed number of trials; give --points"):
        open_queue(grid, dataclasses.replace(USUAL, add=2), said.append)


def test_repeats_of_the_finalists_follow_when_all_else_has_ended(searched: tuple[SearchPlan, list[Trial]]) -> None:
    search, trials = searched
    queue = Queue(search, trials[:3], seeds=3)
    found = [trial.name for trial in iter(queue.next, None)]
    wanted = {f"{trial.name},seed={seed}" for seed in (1, 2) for trial in trials[:2]}
    assert len(found) == 2  # the starting point and the best of the others share a warm-up, each seed its own
    assert {*found, *(trial.name for trial in queue.waiting)} == wanted


def test_what_a_search_leaves(searched: tuple[SearchPlan, list[Trial]]) -> None:
    search, trials = searched
    outcomes = [outcome(search, trial) for trial in trials]
    verdict = conclude_search(search, outcomes)
    write_search_page(search, outcomes, verdict)
    rows = list(csv.DictReader((search.folder / "trials.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["finished", "finished", "stopped", "failed", "planned"]
    assert float(rows[1]["test_mean_ap"]) == outcomes[1].test_mean_ap
    assert rows[3]["error"] == "rank 0: logits are not finite"
    page = (search.folder / "report.html").read_text()
    assert page.count("<svg") == 5  # map of scores, three of curves, alpha
    assert "src=" not in page
    assert "rank 0: logits are not finite" in page
    assert "failed: " + trials[3].name in trial_table(search, outcomes)
    best = max(outcomes[:2], key=lambda found: found.score)
    config = command.parse(["--config", str(search.folder / "best.json"), "--lr", "0.5"])[0]
    assert config.model.alpha == dict(best.trial.values)["alpha"]
    assert (config.optim.lr, config.run.name, config.run.workers, config.run.storage) == (0.5, "", 2, "runs")


def copy_of_search(folder: Path, to: Path) -> None:
    """A search of five trials whose spaces have the units of tune/*.yaml, without what other tests concluded."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("best.json", "report.html"))
    stored = json.loads((to / "search.json").read_text())
    for space, unit in zip(stored["question"]["spaces"], ("factor", "percent of all entries per epoch"), strict=True):
        space["unit"] = unit
    (to / "search.json").write_text(json.dumps(stored | {"trials": 5}))


def test_a_search_is_an_object_in_a_program(searched: tuple[SearchPlan, list[Trial]], tmp_path: Path) -> None:
    asked, trials = searched
    copy_of_search(asked.folder, tmp_path / "s")
    search = raypaml.Search.open(tmp_path / "s", progress=False)
    stored = json.loads((tmp_path / "s" / "search.json").read_text())
    assert json.loads(json.dumps(search.plan.question)) == stored["question"]
    shutil.copytree(search.plan.run_folder(trials[1]), search.folder / "trials" / f"{trials[1].name},seed=1")
    assert [found.trial for found in search.outcomes] == [
        *trials,
        dataclasses.replace(trials[1], seed=1, repeats=True),
    ]
    assert search.trials["state"].to_pylist() == ["finished", "finished", "stopped", "failed", "planned", "finished"]
    best = max(search.outcomes[:2], key=lambda found: found.score)
    assert search.trials["alpha"].to_pylist()[:5] == [dict(trial.values)["alpha"] for trial in trials]
    assert search.best.folder == search.folder / "trials" / best.trial.name
    assert search.best.result is not None
    assert (search.best.result["mean_ap"], search.best_settings) == (best.test_mean_ap, dict(best.trial.values))
    assert (search.name, search.is_finished, search.result) == ("s", False, None)
    with pytest.raises(raypaml.UserError, match=r"best\.json: no such file"):
        _ = search.best_config
    verdict = search.verdict
    assert search.report() == {
        "trial": best.trial.name,
        "validation_mean_ap": best.score,
        "verdict": verdict,
        "folder": str(search.folder),
    }
    assert {name: search.best_config.flat()[name] for name in search.best_settings} == search.best_settings
    found = f"best {best.trial.name}, validation mAP {100 * best.score:.2f}"
    states = "3 finished, 1 stopped, 1 failed, 1 planned"
    assert repr(search) == f"<Search {search.folder}: digits, alpha=1:10, delta_rel=1:4: 6 trials; {states}; {found}>"


def test_a_search_that_has_ended_is_given_again_without_ray(
    searched: tuple[SearchPlan, list[Trial]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked, trials = searched
    copy_of_search(asked.folder, tmp_path / "s")
    plan = dataclasses.replace(asked, base=asked.base.override({"storage": str(tmp_path)}))
    for trial in trials[3:]:
        shutil.copytree(plan.run_folder(trials[2]), plan.run_folder(trial), dirs_exist_ok=True)
    settings: dict[str, Any] = {"search": ["alpha=1:10", "delta_rel=1:4"], "share": 4, "trials": 3, "progress": False}
    search = raypaml.Search.run(plan.base, **settings)
    assert (search.folder, search.is_finished, search.stopped) == (tmp_path / "s", True, None)
    assert search.trials["state"].to_pylist() == ["finished"] * 2 + ["stopped"] * 3
    assert "points, 95 %" in search.verdict or "Nothing tried is better" in search.verdict
    refused: list[tuple[dict[str, Any], str]] = [
        ({"search": "alhpa"}, "did you mean 'alpha'"),
        ({"searcher": "best"}, "searcher='best': must be one of random, grid, tpe"),
        ({"trials": 0}, "trials=0: must be at least 1"),
        ({"trials": 1.5}, "trials=1.5: must be int, not float"),
        ({"tracker": "mlflow"}, "tracker='mlflow': has no effect on trials"),
        ({"epoch": 3}, "epoch=3: no such setting; did you mean 'epochs'"),
        ({"lr": 0.1}, r"started with lr=0.004 \(asked: 0.1\); give this search another"),
        ({"add": 1, "searcher": "grid", "name": "g"}, "add=1: a grid has a fixed number of trials"),
    ]
    for changed, message in refused:
        with pytest.raises(raypaml.UserError, match=message):
            raypaml.Search.run(plan.base, **settings | changed)
    with pytest.raises(raypaml.UserError, match="not the folder of a search"):
        raypaml.Search.open(tmp_path)
    for damaged in ("{", '{"question": {}, "trials": 3}', "[]", json.dumps({"question": plan.question})):
        (tmp_path / "search.json").write_text(damaged)
        with pytest.raises(raypaml.UserError, match=r"search\.json: not the record of a search"):
            raypaml.Search.open(tmp_path)
    assert raypaml.Search.suggest(plan.base, progress=False).low > 0
    assert capfd.readouterr() == ("", "")


def test_the_alpha_curve_needs_no_training(searched: tuple[SearchPlan, list[Trial]]) -> None:
    search, trials = searched
    found = outcome(search, trials[0])
    predictions = open_set(search.run_folder(trials[0]) / "predictions" / "validation")
    vocabulary = open_folder(Path(search.base.data.data)).vocabulary
    for alpha in ALPHAS:
        mean = evaluate_set(predictions, vocabulary, EvaluationOptions(alpha=alpha)).means("paper")
        assert mean is not None
        assert found.curve[alpha] == mean["All"]
    assert found.curve[5.0] == pytest.approx(found.score, abs=1e-12)


def test_a_better_trial_is_judged_on_the_test_split(searched: tuple[SearchPlan, list[Trial]]) -> None:
    search, trials = searched
    outcomes = [outcome(search, trial) for trial in trials[:2]]
    outcomes[1].history[-1]["validation_mean_ap"] = 0.99
    verdict = conclude_search(search, outcomes)
    assert verdict.best is outcomes[1]
    first, second = (one.test_mean_ap or 0.0 for one in outcomes[:2])
    assert verdict.difference == pytest.approx(second - first)
    assert verdict.interval is not None
    assert verdict.interval[0] < verdict.difference < verdict.interval[1]
    assert _meaning(*verdict.interval) in verdict.text
    outcomes[0].history[-1]["validation_mean_ap"] = 1.0
    repeats = [dataclasses.replace(found.trial, seed=1, repeats=True) for found in outcomes]
    tested = zip(repeats, (0.5, 0.6), strict=True)
    outcomes += [Outcome(trial=trial, state="finished", test_mean_ap=ap) for trial, ap in tested]
    said = conclude_search(search, outcomes).text
    assert "Nothing tried is better than the starting point" in said
    assert f"Over 2 seeds {trials[1].name} differs from the starting point by" in said
    assert "+10.00)" in said


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((0.001, 0.02), "it is better"),
        ((-0.02, -0.001), "it is worse, so keep the"),
        ((-0.01, 0.01), "not established"),
    ],
)
def test_what_an_interval_means(interval: tuple[float, float], said: str) -> None:
    assert said in _meaning(*interval)


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
        record = EPOCH_RECORD | {"validation_mean_ap": 1 / float(dict(trial.values)["delta_rel"])}
        (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        (folder / "result.json").write_text(json.dumps(RESULT))

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


def test_the_table_of_trials_fits_eighty_columns(searched: tuple[SearchPlan, list[Trial]]) -> None:
    search, trials = searched
    text = io.StringIO()
    with SearchDisplay(Console(file=text, force_terminal=True, width=80, color_system=None)) as display:
        display.begin(search, [outcome(search, trial) for trial in trials])
        display._row(50 * "x").state = "running"
        display.start(trials[0])
    *_, shown = text.getvalue().split("trial  ", 1)
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown))
    assert max(map(len, lines)) <= 80
    assert any(re.match(r"x+…  running", line) for line in lines)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_display_is_a_table_on_a_terminal_and_plain_lines_elsewhere(
    terminal: bool, searched: tuple[SearchPlan, list[Trial]]
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
    assert bool(re.search("of them *$", said, re.MULTILINE)) == terminal
    if terminal:
        row = next(line for line in said.splitlines()[::-1] if trials[4].name in line)
        assert row.split()[-6:] == ["running", "1/5", "50.00", "50.00", "1,234", "25%"]
    else:
        assert f"{trials[4].name}: epoch 1/5  validation mAP 50.00  rejected 1,234" in said
        assert f"{trials[2].name}: stopped after epoch 5: behind the others" in said
        assert f"{trials[3].name}: failed: rank 0: logits are not finite" in said
