"""The reproduction of published rows, on stand-ins of the true form: commands, hours, refusals, verdicts."""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from raypaml import shard, train
from raypaml.data.data_folder import open_folder
from raypaml.recipes import recipe, resolve
from tests import standins
from tests.openimages_release import Release
from tools.papers import reproduce
from tools.papers.published_rows import PUBLISHED

STANDINS: dict[str, Callable[[Path], list[str]]] = {
    "voc": standins.voc,
    "coco": standins.coco,
    "nus": standins.nus,
    "cub": standins.cub,
}


def asked(monkeypatch: pytest.MonkeyPatch, *flags: str) -> SimpleNamespace:
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *flags])
    return SimpleNamespace(**vars(reproduce.parse()))


@pytest.mark.parametrize(
    "data", ["voc", "nus", *(pytest.param(name, marks=pytest.mark.cluster) for name in ("coco", "cub"))]
)
def test_every_command_parses_and_shards_the_released_form(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, published = STANDINS[data](tmp_path / "files"), PUBLISHED[data]
    flags = asked(monkeypatch, data, *found, "--seeds", "0", "--storage", str(tmp_path / "out"))
    rows = [next(iter(published.rows)), ("ll_cp", 5.0)]
    sharding, *runs = reproduce.commands(published, flags, rows)
    assert shard.main([*sharding[1:], "--resize", "32", "--workers", "1"]) == 0
    folder = open_folder(tmp_path / "out" / data)
    assert {split: len(index) for split, index in folder.splits.items()} == {"train": 32, "validation": 8, "test": 24}
    assert len(folder.vocabulary) == published.classes
    for run, (scheme, alpha) in zip(runs, rows, strict=True):
        config, _ = train.parse(run[1:])
        assert (config.recipe, config.loss.scheme, config.model.alpha) == (published.recipe, scheme, alpha)
        assert config.data.data == str(tmp_path / "out" / data)


def test_openimages_is_found_in_the_released_form(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ["--files", str(release.metadata), "--images", str(release.images), "--seeds", "0"]
    flags = asked(monkeypatch, "openimages", *found, "--storage", str(tmp_path))
    sharding, *_ = reproduce.commands(PUBLISHED["openimages"], flags, [("ll_cp", 5.0)])
    assert "--resize 224" in shlex.join(sharding)
    assert shard.main([*sharding[1:], "--dry-run"]) == 0
    assert "train" in capsys.readouterr().err


def test_hours_are_those_of_the_counted_operations() -> None:
    # ResNet-50 at 448 px: 4 times the 4.09 GMAC at 224 px (torchvision's figure), a training step three times that
    forward = 2 * 4 * 4.09e9
    voc = PUBLISHED["voc"]
    expected = (10 * (4574 * 3 + 4574 / 4) + 5823) * forward / 1e14 / 3600
    assert reproduce.gpu_hours(voc, 100.0) == pytest.approx(expected, rel=0.03)


def test_a_row_that_is_not_published_is_refused() -> None:
    assert reproduce.read_rows("ll_r:1,ll_r:5", "voc") == [("ll_r", 1.0), ("ll_r", 5.0)]
    for row in ("an:5", "ll_r", "ll_r:five"):
        with pytest.raises(ValueError, match=f"rows: '{row}': is not published for voc; known: full:1, an:1"):
            reproduce.read_rows(row, "voc")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--seeds", "a"), "seeds='a': give whole numbers, each once"),
        (("--seeds", "0,0"), "seeds='0,0': give whole numbers, each once"),
        (("--tflops", "0"), "tflops=0: must be above 0"),
        (("--tflops", "nan"), "tflops=nan: must be above 0"),
        (("--images", "DIR"), "images: the images of voc are among its files"),
        (("--run",), "run: give --files"),
        (("--", "--seed", "1"), "--seed: follows from DATA, --rows"),
        (("--", "--data=x"), "--data=x: follows from DATA, --rows"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    flags: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=said):
        asked(monkeypatch, "voc", *flags)


def test_flags_of_the_runs_are_those_of_train(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        asked(monkeypatch, "voc", "--", "--epoch", "1")
    assert "--epoch: no such flag; did you mean --epochs?" in capsys.readouterr().err


def record(train: int = 4574, test: int = 5823, classes: int = 20, **changes: object) -> dict[str, object]:
    config = resolve(recipe("voc2012_single"), changes).to_dict()
    return {"config": config, "data": {"num_classes": classes, "samples": {"train": train, "test": test}}}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (record(), []),
        (record(train=32), ["32 train images instead of 4,574"]),
        (record(classes=19), ["19 classes instead of 20"]),
        (record(epochs=1), ["epochs 1 instead of 10"]),
        (record(scheme="em"), []),  # as published for it
        (record(scheme="gr", epochs=10), ["epochs 10 instead of 8"]),
        (record(backbone="small", lr=1e-3), ["backbone 'small' instead of 'resnet50'", "lr 0.001 instead of 1e-05"]),
        (record(weights="", delta_rel=5.0), ["weights '' instead of 'imagenet-v1'", "delta_rel 5.0 instead of 0.5"]),
        (record(alpha=1.0, seed=2, workers=4, lanes=4, precision="bfloat16"), []),
    ],
)
def test_what_is_not_as_published_is_named(found: dict[str, object], said: list[str]) -> None:
    assert reproduce.differences(PUBLISHED["voc"], found) == said


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ((88.9, 89.1, 89.3), "reproduced (-0.19)"),
        ((90.4, 90.5), "reproduced (+1.16)"),
        ((87.0, 88.0), "not reproduced: 1.79 below"),
        ((91.0,), "not reproduced: 1.71 above"),
    ],
)
def test_the_verdict_is_that_of_the_mean_over_seeds(
    scores: tuple[float, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = ",".join(str(seed) for seed in range(len(scores)))
    flags = asked(monkeypatch, "voc", "--seeds", seeds, "--storage", str(tmp_path))
    for seed, score in enumerate(scores):
        run = tmp_path / f"voc-ll_r-alpha5-seed{seed}"
        run.mkdir()
        (run / "result.json").write_text(json.dumps({"mean_ap": score / 100}))
        (run / "config.json").write_text(json.dumps(record()))
    found = reproduce.judge(PUBLISHED["voc"], flags, ("ll_r", 5.0))
    assert found["verdict"] == said
    assert found["mean_ap"] == pytest.approx(statistics.fmean(scores))
    assert said in reproduce.as_text([found])


@pytest.mark.cluster
def test_from_released_files_to_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = standins.voc(tmp_path / "files")
    small = (
        "--backbone",
        "small",
        "--weights",
        "",
        "--epochs",
        "2",
        "--global-batch-size",
        "8",
        "--loader-workers",
        "0",
    )
    rows = ("--rows", "ll_r:5", "--seeds", "0", "--storage", str(tmp_path / "out"), "--run")
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "voc", *found, *rows, "--", *small])
    reproduce.main()
    first = capsys.readouterr().out
    assert "no verdict: 32 train images instead of 4,574; 24 test images" in first
    assert "backbone 'small' instead of 'resnet50'" in first
    reproduce.main()  # goes on: nothing is trained again
    assert first.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]
    assert json.loads((tmp_path / "out" / "voc.json").read_text())[0]["published"] == 89.29
