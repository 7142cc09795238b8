"""Schemes, backbones and metrics of one's own, from a module that `--import` names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from raypaml import aggregate, extensions, train
from raypaml.augmentation.augmentations import AUGMENTATIONS
from raypaml.config import TrainConfig
from raypaml.losses.schemes import SCHEMES, register_scheme
from raypaml.metrics.average_precision import rank_entries
from raypaml.metrics.own_metrics import METRICS, own_metrics, register_metric
from raypaml.model.backbones import OWN_BACKBONES, build_backbone, register_backbone
from raypaml.run_report.conclude import conclude_run
from raypaml.runs.run_folder import read_config
from tests.conftest import train_here

MODULE = '''
"""Own parts of the tests."""

from collections import OrderedDict

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn.functional import softplus

import raypaml
from raypaml.training.scheme_state import SchemeState


def softer(logits, labels, *, weight, seen):
    assert seen >= 0
    return torch.where(labels == 1, softplus(-logits), weight * softplus(logits))


class Counting(SchemeState):
    def __init__(self, start):
        self.seen = torch.zeros((), dtype=torch.int64)

    def known(self, rows, labels):
        return {"seen": float(self.seen)}

    def close(self, epoch):
        self.seen += 1

    def tensors(self):
        return {"seen": self.seen}

    def restore(self, kept):
        self.seen = kept["seen"]


def tiny():
    net = nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), nn.ReLU())
    return raypaml.Backbone(OrderedDict(net=net), num_channels=16, stride=8)


def darker(images, draws):
    return (images * torch.from_numpy(draws.uniform(1))[..., None, None]).to(torch.uint8)


def area_under_roc(scores, positive):
    return roc_auc_score(positive, scores) if 0 < positive.sum() < len(positive) else np.nan


raypaml.register_scheme(
    raypaml.Scheme(
        name="softer", about="A loss of the tests.", loss="NAME:softer", state="NAME:Counting",
        settings=(raypaml.Setting("weight", 0.5, "weight of assumed negatives"),),
    )
)
raypaml.register_backbone("tiny", tiny)
raypaml.register_augmentation(raypaml.Augmentation(name="darker", about="Darker.", change="NAME:darker"))
raypaml.register_metric("area_under_roc", area_under_roc)
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the working directory that registers four things of its own; they are gone after the test."""
    name = f"own_parts_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE.replace("NAME", name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(extensions, "_named", [])
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield name
    for registry, key in (
        (SCHEMES, "softer"),
        (OWN_BACKBONES, "tiny"),
        (METRICS, "area_under_roc"),
        (AUGMENTATIONS, "darker"),
    ):
        registry.pop(key, None)
    sys.modules.pop(name, None)


def asked(module: str, data: Path, *more: str) -> TrainConfig:
    flags = ("--data", str(data), "--scheme", "softer", "--backbone", "tiny", "--epochs", "2", "--storage", "runs")
    flags += ("--augment", "darker")
    config, _ = train.parse(["digits", *flags, "--import", module, "--name", "own", "--warmup-epochs", "1", *more])
    return config


def test_own_parts_train_are_recorded_and_measured(module: str, tiny_digits: Path, tmp_path: Path) -> None:
    config = asked(module, tiny_digits, "--scheme-settings", "weight=0.25")
    assert config.run.imports == module
    job = train_here(config)
    conclude_run(job)
    assert read_config(job.folder / "config.json").run.imports == module
    figures = json.loads((job.folder / "result.json").read_text())["metrics"]["area_under_roc"]
    aggregate.main([str(job.folder), "--csv", "classes.csv"])
    by_class = np.genfromtxt(tmp_path / "classes.csv", delimiter=",", names=True, dtype=None, encoding=None)
    assert np.nanmean(by_class["area_under_roc"]) == pytest.approx(figures["All"])
    assert 0 < figures["All"] < 1
    assert "area_under_roc" in (job.folder / "report.html").read_text()


def test_a_run_goes_on_only_where_its_module_is_named_again(
    module: str, tiny_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_here(asked(module, tiny_digits))
    monkeypatch.delitem(sys.modules, module)  # as in a new process
    with pytest.raises(ValueError, match=f"give --import {module} again, for a module is never imported because"):
        train.parse(["--name", "own", "--storage", "runs"])[0].check()
    del SCHEMES["softer"], OWN_BACKBONES["tiny"], METRICS["area_under_roc"], AUGMENTATIONS["darker"]
    train.parse(["--name", "own", "--storage", "runs", "--import", module])[0].check()


def test_a_module_that_cannot_be_imported_is_one_line(module: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--import nowhere: cannot be imported \(ModuleNotFoundError: No module"):
        train.parse(["--import", "nowhere"])
    (tmp_path / "failing_parts.py").write_text("\n1 / 0\n")
    with pytest.raises(ValueError, match=r"ZeroDivisionError: division by zero, .*failing_parts\.py:2\)$"):
        train.parse(["--import", "failing_parts"])


@pytest.mark.parametrize("given", ["", "my_parts.py", "os,"])
def test_what_is_no_name_of_a_module_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="give the name of a module, such as my_parts, not a file"):
        train.parse(["--import", given])


def test_a_name_that_is_not_registered_is_refused_with_the_way_to_register_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        train.parse(["--scheme", "softer"])
    assert capsys.readouterr().err.endswith("; one of your own: --import MODULE\n")


def test_a_module_that_exits_is_an_error(module: str, tmp_path: Path) -> None:
    (tmp_path / "exiting_parts.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(ValueError, match=r"--import exiting_parts: cannot be imported \(SystemExit: 3, "):
        train.parse(["--import", "exiting_parts"])


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: None, "its function returned NoneType; return raypaml.Backbone"),
        (lambda: 1 / 0, "it could not be built \\(ZeroDivisionError: division by zero"),
    ],
)
def test_a_backbone_that_is_none_is_refused(build: Any, said: str) -> None:
    register_backbone("odd", build)
    try:
        with pytest.raises(ValueError, match=f"backbone='odd': {said}"):
            build_backbone("odd")
    finally:
        del OWN_BACKBONES["odd"]


def test_the_example_of_the_readme_trains(module: str, tiny_digits: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "raypaml" / "README.md").read_text().partition("# my_parts.py")[2]
    (tmp_path / "my_parts.py").write_text(text.partition("```")[0].partition("\n")[2])
    command = text.partition("```\nraypaml train ")[2].partition("\n")[0].split()
    more = (
        "--data",
        str(tiny_digits),
        "--epochs",
        "1",
        "--warmup-epochs",
        "1",
        "--storage",
        str(tmp_path),
        "--name",
        "r",
    )
    try:
        job = train_here(train.parse([*command, *more])[0])
        assert conclude_run(job)["metrics"]["best_score"]["All"] is not None
    finally:
        sys.modules.pop("my_parts", None)
        OWN_BACKBONES.pop("patches", None)
        METRICS.pop("best_score", None)


def test_metrics_see_each_class_best_score_first() -> None:
    rng = np.random.default_rng(0)
    classes, scores, positive = rng.integers(0, 5, 300), rng.normal(size=300), rng.random(300) < 0.3
    classes[classes == 3] = 2  # a class without entries
    METRICS["auc"] = lambda scores, positive: float(roc_auc_score(positive, scores))
    METRICS["first"] = lambda scores, _: float(scores[0])
    try:
        found = own_metrics(rank_entries(classes, scores, positive, 5))
    finally:
        del METRICS["auc"], METRICS["first"]
    for k in range(5):
        mine = classes == k
        expected = roc_auc_score(positive[mine], scores[mine]) if mine.any() else np.nan
        assert found["auc"][k] == pytest.approx(expected, nan_ok=True)
        assert found["first"][k] == pytest.approx(scores[mine].max() if mine.any() else np.nan, nan_ok=True)


def test_a_metric_that_fails_is_named() -> None:
    METRICS["bad"] = lambda scores, _: float(scores[99])
    try:
        with pytest.raises(ValueError, match="metric bad: failed for class 0 with 2 observed entries"):
            own_metrics(rank_entries([0, 0], [1.0, 2.0], [True, False], 1))
    finally:
        del METRICS["bad"]


def test_names_that_are_taken_are_refused() -> None:
    with pytest.raises(ValueError, match="scheme ll_r: there is one"):
        register_scheme(SCHEMES["ll_r"])
    for name in ("small", "resnet50", "timm:resnet50"):
        with pytest.raises(ValueError, match=f"backbone {name}: there is one"):
            register_backbone(name, OWN_BACKBONES["small"])
    for name in ("", "mean_ap"):
        with pytest.raises(ValueError, match=f"metric '{name}': "):
            register_metric(name, lambda scores, _: float(len(scores)))


@pytest.mark.cluster
def test_workers_and_tasks_of_ray_import_it_too(module: str, tiny_digits: Path, tmp_path: Path) -> None:
    def raypaml(command: str, *flags: str) -> subprocess.CompletedProcess[str]:
        arguments = [str(Path(sys.executable).with_name("raypaml")), command, *flags]
        return subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, timeout=240, check=False)

    flags = ("--data", str(tiny_digits), "--epochs", "1", "--name", "own", "--workers", "2")
    done = raypaml("train", "digits", *flags, "--scheme", "softer", "--backbone", "tiny", "--import", module)
    assert done.returncode == 0, done.stderr
    assert "area_under_roc" in done.stdout
    done = raypaml("evaluate", "runs/own", "--split", "validation", "--workers", "2", "--import", module)
    assert done.returncode == 0, done.stderr
    done = raypaml("predict", "runs/own", str(tmp_path))
    assert done.returncode == 2
    assert "backbone='tiny': no such backbone" in done.stderr
    assert "--import MODULE" in done.stderr
