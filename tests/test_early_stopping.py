"""Runs that end before their last epoch: by which rule, what they leave, and that it does not depend on the workers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from raypaml.config import TrainConfig
from raypaml.data.data_folder import open_folder
from raypaml.run_report.conclude import conclude_run
from raypaml.runs.checkpoint import valid_checkpoints
from raypaml.runs.events import Event, Message, StepReport
from raypaml.runs.run_folder import claim
from raypaml.settings import OptimConfig
from raypaml.training import loop
from raypaml.training.early_stopping import early_stop
from raypaml.training.job import Job
from raypaml.training.worker import Worker
from tests.conftest import newest_files, run_distributed
from tests.test_loop import config

SCORES = (0.20, 0.50, 0.48, 0.49, 0.10, 0.9, 0.9, 0.9)
PATIENT = {"epochs": len(SCORES), "patience": 2, "optimizer": "sgd", "weight_decay": 1e-3, "lr_schedule": "cosine"}
PATIENT |= {"checkpoint_steps": 1}


def ended(scores: list[float], **values: Any) -> int:
    """Epochs that a run of these validation mAPs trains."""
    optim, history = OptimConfig(epochs=len(scores), **values), [{"validation_mean_ap": score} for score in scores]
    return next((done for done in range(1, len(scores)) if early_stop(history[:done], optim)), len(scores))


def test_an_epoch_without_a_figure_is_not_the_best_so_far() -> None:
    nan = float("nan")
    assert ended([nan, 0.1, 0.2, 0.3, 0.4], patience=2, stop_below=1) == 5
    assert ended([nan] * 5, patience=1, stop_below=1) == 5
    assert ended([0.3, nan, 0.2, 0.1], patience=2) == 3


def as_large_loss_matters(scores: list[float], points: float) -> int:
    """The rule of its train.py: above the best so far, else more than so many points below it."""
    best = 0.0
    for done, score in enumerate(scores, 1):
        if best < 100 * score:
            best = 100 * score
        elif best - 100 * score > points:
            return done
    return len(scores)


def as_keras(scores: list[float], patience: int) -> int:
    """The rule of its EarlyStopping: so many epochs in a row that are no better than the best before them."""
    best, waited = -1.0, 0
    for done, score in enumerate(scores, 1):
        waited = 0 if score > best else waited + 1
        best = max(best, score)
        if waited >= patience:
            return done
    return len(scores)


def test_both_rules_are_those_of_others() -> None:
    random.seed(0)
    seen = set[int]()
    for _ in range(300):
        scores = [round(random.random() / 10, 2) for _ in range(8)]
        for rule in (2, 3):
            seen.add(ended(scores, stop_below=float(rule)))
            assert ended(scores, stop_below=float(rule)) == as_large_loss_matters(scores, rule)
            assert ended(scores, patience=rule) == as_keras(scores, rule)
        assert ended(scores) == 8
    assert seen == set(range(2, 9))


def test_it_is_said_why() -> None:
    history = [{"validation_mean_ap": score} for score in SCORES]
    waited = "stopped after epoch 4 of 8: validation mAP has not been above epoch 2's 50.00 for 2 epochs (patience)"
    assert early_stop(history[:4], OptimConfig(epochs=8, patience=2)) == waited
    fell = "stopped after epoch 5 of 8: validation mAP 10.00 is more than 3 points below epoch 2's 50.00 (stop_below)"
    assert early_stop(history[:5], OptimConfig(epochs=8, stop_below=3, patience=3)) == fell
    assert not early_stop(history[:5], OptimConfig(epochs=5, stop_below=3))  # it has trained all


def train_scored(
    rank: int, world_size: int, settings: TrainConfig, data: Path, run: Path, stop_at: int | None
) -> list[str]:
    """Train on a rank, with the validation mAPs `SCORES`; what was said. `stop_at`: steps after which to stop."""
    torch.set_num_threads(1)
    said, record = list[str](), loop.epoch_record

    def report(event: Event) -> bool:
        said.extend([event.text] if isinstance(event, Message) else [])
        return isinstance(event, StepReport) and stop_at is not None and event.steps_done >= stop_at

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "epoch_record", lambda worker, *given: record(worker, *given) | _score(worker))
        assert loop.train(settings, data, run, torch.device("cpu"), report) == (stop_at is None)
    return said


def _score(worker: Worker) -> dict[str, Any]:
    return {"validation_mean_ap": SCORES[worker.state.epoch]}


def test_a_run_that_stopped_early_is_finished_and_says_so(tiny_digits: Path, tmp_path: Path) -> None:
    said = "stopped after epoch 4 of 8: validation mAP has not been above epoch 2's 50.00 for 2 epochs (patience)"
    settings = config(**PATIENT, name="run", storage=str(tmp_path), data=str(tiny_digits), history=False)
    run, data = tmp_path / "run", open_folder(tiny_digits)
    claim(run, settings, data)
    train_scored(0, 1, settings, tiny_digits, run, 7)  # in the third epoch
    assert said in train_scored(0, 1, settings, tiny_digits, run, None)
    again = train_scored(0, 1, settings, tiny_digits, run, None)
    assert again[:2] == ["continues from epoch 5, step 1 with 1 worker", said]
    assert [path.name for path in valid_checkpoints(run / "checkpoints")[0]] == ["0002-000000", "0004-000000"]
    result = conclude_run(Job(settings, data, run))
    assert (result["epochs"], result["epochs_trained"], result["best_epoch"]) == (8, 4, 1)
    assert json.loads((run / "result.json").read_text())["stopped_early"] == said
    assert f"s of training, {said.replace(chr(39), '&#39;')}." in (run / "report.html").read_text()


@pytest.mark.cluster
def test_two_workers_stop_with_the_weights_of_one_that_was_interrupted(tiny_digits: Path, tmp_path: Path) -> None:
    settings = config(**PATIENT)
    train_scored(0, 1, settings, tiny_digits, tmp_path / "one", 7)
    train_scored(0, 1, settings, tiny_digits, tmp_path / "one", None)
    run_distributed(train_scored, 2, settings, tiny_digits, tmp_path / "two", None)
    assert newest_files(tmp_path / "two") == newest_files(tmp_path / "one")
