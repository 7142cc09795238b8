"""Maps watched against a reference while training: the figures are the analysis's own, and training is the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raypaml.config import TrainConfig
from raypaml.data.data_folder import open_folder
from raypaml.data.plan import Plan
from raypaml.explanations.comparing import explain_steps
from raypaml.explanations.drift import make_probe
from raypaml.recipes import recipe
from raypaml.runs import models as run_models
from raypaml.runs.history import read_history
from raypaml.training.job import prepare_job
from tests.conftest import train_here


def config_of(data: Path, storage: Path, **values: object) -> TrainConfig:
    common = {"data": str(data), "storage": str(storage), "epochs": 2, "warmup_epochs": 1, "workers": 1}
    return recipe("digits").override({**common, **values})


def test_a_run_is_watched_and_not_changed(trained: tuple[Path, str], tiny_digits: Path, tmp_path: Path) -> None:
    plain = train_here(config_of(tiny_digits, tmp_path, name="plain")).folder
    config = config_of(tiny_digits, tmp_path, name="watched", reference=str(trained[0]), probe_images=13)
    watched = train_here(config).folder
    weights = [load_file(run_models.tested_checkpoint(run) / "model.safetensors") for run in (plain, watched)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    history = read_history(watched)
    assert "drift" not in read_history(plain)[0]

    data = open_folder(tiny_digits)
    model, reference = (
        run_models.tested_model(run, config.model, len(data.vocabulary)) for run in (watched, trained[0])
    )
    rows = np.unique(np.linspace(0, 39, 13).astype(int))
    parts = Plan(num_samples=40, global_batch_size=1, lanes=1, shuffle=False).epoch(0, 0, 1)
    pairs = explain_steps(model, reference, data, "validation", [parts[row] for row in rows], torch.device("cpu"))
    positive = pairs.positive
    best = json.loads((run_models.tested_checkpoint(watched) / "state.json").read_text())["epoch"] - 1
    found = history[best]["drift"]
    assert found["rank_correlation"] == pytest.approx(np.nanmedian(pairs.rank_correlation[positive]), abs=1e-3)
    assert found["top"] == pytest.approx(np.median(pairs.top[positive]), rel=1e-4)
    assert found["pointing_game"] == pytest.approx(np.nanmean(pairs.pointing), abs=1e-9)
    epoch_seconds = history[best]["seconds"] - (history[best - 1]["seconds"] if best else 0)
    assert found["share_of_epoch"] == pytest.approx(found["seconds"] / epoch_seconds, rel=0.05, abs=1e-3)


def test_a_model_does_not_drift_from_itself(trained: tuple[Path, str], tiny_digits: Path, tmp_path: Path) -> None:
    config = config_of(tiny_digits, tmp_path, reference=str(trained[0]))
    data = open_folder(tiny_digits)
    probe = make_probe(config, data, torch.device("cpu"))
    assert probe is not None
    assert sum(len(part.rows) for part in probe.steps) == 40
    model = run_models.tested_model(trained[0], config.model, len(data.vocabulary))
    for each in (model, probe.reference):
        each.head.bias.data += 3.0  # all of the map is positive
    probe.reference.alpha = 1.0
    found = probe.measure(model, 1.0)
    assert found["rank_correlation"] == pytest.approx(1.0)
    assert found["scale_ratio"] == pytest.approx(1.0)
    assert found["scale_ratio_boosted"] == pytest.approx(5.0)
    assert found["top"] == found["top_reference"]


def test_a_reference_that_is_none_is_said_before_the_start(tiny_digits: Path, tmp_path: Path) -> None:
    config = config_of(tiny_digits, tmp_path, reference=str(tmp_path))
    with pytest.raises(ValueError, match=r"reference=.*: neither the folder of a run nor one of its checkpoints"):
        prepare_job(config, lambda _: None)
    with pytest.raises(ValueError, match="probe_images=0: must be at least 1"):
        config_of(tiny_digits, tmp_path, probe_images=0).check()
