"""The experiment on a handful of scenes: its figures are those of its runs, and what is finished is not repeated."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from raypaml.data.data_folder import open_folder
from raypaml.evaluation.measures import alpha_curve
from raypaml.evaluation.parts import open_set
from raypaml.runs import models
from raypaml.runs.history import read_history

pytestmark = pytest.mark.timeout(900)  # 22 trainings, small as they are, on a machine that may be busy
TINY = ("--seeds", "0,1", "--epochs", "2", "--scenes", "96", "--images", "9", "--storage")


def one_after_the_other(_jobs: int, call: Any, *arguments: Any) -> None:
    for each in zip(*arguments, strict=True):
        call(*each)


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    """The experiment with one rejecting scheme and one delta_rel beside the others', all in this process."""
    with pytest.MonkeyPatch.context() as patch:
        runs, command = (importlib.import_module(f"tools.papers.{name}") for name in ("experiment_runs", "experiment"))
        patch.setattr(runs, "LATER", ("ll_r",))
        for module in (runs, command):
            patch.setattr(module, "SWEEP", (2.0,))
            patch.setattr(module, "SWEEP_SEEDS", 1)
        patch.setattr(command, "beside_each_other", one_after_the_other)
        yield command


def run(tool: ModuleType, *flags: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["experiment.py", *map(str, flags)])
        tool.main()


@pytest.fixture(scope="module")
def finished(tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("experiment")
    run(tool, *TINY, storage)
    return storage


def line(finished: Path, hiding: str, title: str) -> dict[str, Any]:
    found = json.loads((finished / "experiment.json").read_text())["tables"][hiding]
    return next(each for each in found if each["title"] == title)


def results(finished: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((finished / "runs" / f"{name}-seed{seed}" / "result.json").read_text()) for seed in (0, 1)]


def test_rows_are_means_of_the_runs(finished: Path) -> None:
    for hiding in ("single_positive", "verified"):
        for title, name in (("AN", "an-alpha1"), ("AN + BoostLU", "an-alpha5"), ("LL-R + BoostLU", "ll_r-alpha5")):
            runs, found = results(finished, f"{hiding}-{name}"), line(finished, hiding, title)
            assert found["seeds"] == 2
            assert found["values"]["All"] == pytest.approx(100 * np.mean([run["mean_ap"] for run in runs]))
            assert found["values"]["G2"] == pytest.approx(100 * np.mean([run["groups"]["G2"] for run in runs]))


def test_boostlu_at_inference_is_the_same_checkpoint_evaluated_at_alpha_five(finished: Path, tool: ModuleType) -> None:
    scores = []
    for seed in (0, 1):
        folder = finished / "runs" / f"verified-an-alpha1-seed{seed}"
        data = open_folder(json.loads((folder / "config.json").read_text())["data"]["folder"])
        curve = alpha_curve(open_set(folder / "predictions" / "test"), data.vocabulary, [1, 5])
        scores.append(100 * curve["5"])
    assert line(finished, "verified", "AN, BoostLU at inference")["values"]["All"] == pytest.approx(np.mean(scores))


def test_full_labels_are_trained_once_and_grouped_by_each_hiding(finished: Path, tool: ModuleType) -> None:
    names = {path.name for path in (finished / "runs").iterdir()}
    assert not any(name.startswith("verified-full") for name in names)
    rows = [line(finished, hiding, "full labels")["values"] for hiding in ("single_positive", "verified")]
    assert rows[0]["All"] == rows[1]["All"]
    setting = tool.Setting(storage=finished, epochs=2, scenes=96)
    groups = open_folder(setting.data("verified")).vocabulary.class_group
    stored = [
        json.loads((finished / "runs" / f"single_positive-full-alpha1-seed{s}" / "ap.json").read_text()) for s in (0, 1)
    ]
    rarest = [np.nanmean(np.array(found["1"], np.float64)[groups == 1]) for found in stored]
    assert rows[1]["G1"] == pytest.approx(100 * np.mean(rarest))


def test_a_shared_warmup_gives_the_weights_of_a_run_of_its_own(
    finished: Path, tool: ModuleType, tmp_path: Path
) -> None:
    config = tool.Setting(storage=finished, epochs=2, scenes=96).config("single_positive", "ll_r", 5.0, 1)
    alone = config.override({"storage": str(tmp_path)})
    tool.train_alone(alone)
    first, second = (
        load_file(models.tested_checkpoint(tool.folder_of(each)) / "model.safetensors") for each in (config, alone)
    )
    assert all((first[name] == second[name]).all() for name in first)
    shared = read_history(tool.folder_of(config))
    assert shared[0] == read_history(finished / "runs" / "single_positive-an-alpha5-seed1")[0]  # its seconds too


def test_the_page_is_whole_and_says_each_claim(finished: Path) -> None:
    page = (finished / "experiment.html").read_text()
    links = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']*)", page)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert page.count("data:image/jpeg;base64,") == 2 * 10 * 7  # hidings, two images a group, six models and the image
    stored = json.loads((finished / "experiment.json").read_text())
    for claim in stored["claims"]["verified"]:
        assert claim["statement"] in page
        assert claim["verdict"] in ("holds", "does not hold", "undecided")
        assert (
            len(claim["values"]) == 2 or "attributions" in claim["statement"]
        )  # of models this young none is positive
    assert sorted(stored["sweep"]) == ["3", "6"]


def test_the_same_command_again_trains_nothing(
    finished: Path, tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (finished / "experiment.json").read_bytes()
    monkeypatch.setattr(tool, "train_alone", None)
    run(tool, *TINY, finished)
    assert (finished / "experiment.json").read_bytes() == before


def test_other_settings_do_not_continue_there(finished: Path, tool: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"started with delta_rel=3.0 \(asked: 1.5\), epochs=2 \(asked: 3\)"):
        run(tool, *TINY, finished, "--epochs", 3)
