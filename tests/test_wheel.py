"""The wheel, installed into a folder of its own and used from another one, without a checkout: every command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raypaml.data.digits import digits_folder

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel; what it depends on is this environment's."""
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(wheels), str(ROOT)], check=True, timeout=280)
    (wheel,) = wheels.glob("raypaml-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=280)
    return site


def raypaml(site: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The console script of the wheel, run in a folder."""
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, str(site / "bin" / "raypaml"), *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_it_lists_its_commands_and_where_its_files_are(site: Path, tmp_path: Path) -> None:
    done = raypaml(site, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train " in done.stdout
    assert "shard " in done.stdout
    for name in ("clusters/aws.yaml", "clusters/policies/head.json", "tune/alpha.yaml"):
        assert str(site / "raypaml" / "share") in done.stdout
        assert (site / "raypaml" / "share" / name).is_file()
    assert (site / "raypaml" / "py.typed").is_file()


def test_it_knows_the_search_spaces(site: Path, tmp_path: Path) -> None:
    done = raypaml(site, tmp_path, "tune", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: raypaml tune")
    data = digits_folder(num_scenes={"train": 16, "validation": 8, "test": 8})
    done = raypaml(site, tmp_path, "tune", "digits", "--search", "alhpa", "--data", data)
    assert done.returncode == 2
    *notes, line = done.stderr.splitlines()
    assert not [note for note in notes if "OMP_NUM_THREADS" not in note], done.stderr  # of this process's environment
    assert "no such space; did you mean 'alpha'?" in line


REST = """
import importlib, sys
for command, *flags in (
    ("evaluate", "runs/mine", "--choose-alpha"),
    ("aggregate", "runs/mine", "--alpha", "chosen"),
    ("predict", "runs/mine", "photos", "--top", "1", "--out", "found.csv"),
    ("export", "runs/mine", "--formats", "safetensors,onnx"),
    ("audit", "runs/mine", "--top", "3"),
):
    if importlib.import_module(f"raypaml.{command}").main(flags):
        sys.exit(command)
print(importlib.import_module("raypaml").__file__)
"""
"""The commands after training, in one process, which imports PyTorch once."""


def test_own_photos_become_a_model_that_is_used(site: Path, tmp_path: Path) -> None:
    draw_photos(tmp_path)
    sharding = ["table", "photos/labels.csv", "--images", "photos", "--resize", 32, "--workers", 1, "--out", "data"]
    done = raypaml(site, tmp_path, "shard", *sharding)
    assert done.returncode == 0, done.stderr
    short = ["digits", "--data", "data", "--workers", 1, "--epochs", 2, "--warmup-epochs", 1]
    short += ["--delta-rel", 10, "--global-batch-size", 8]
    done = raypaml(site, tmp_path, "train", *short, "--name", "mine")
    assert done.returncode == 0, done.stderr
    done = raypaml(site, tmp_path, "tune", *short, "--search", "alpha=2|5", "--searcher", "grid")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs").glob("*/best.json"))) == 1
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", REST]
    rest = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert rest.returncode == 0, rest.stderr
    assert rest.stdout.splitlines()[-1] == str(site / "raypaml" / "__init__.py")
    assert len((tmp_path / "found.csv").read_text().splitlines()) == 1 + PHOTOS
    for name in (
        "report.html",
        "alpha_of_use.json",
        "audit/index.html",
        "export/model_card.md",
        "export/predict_onnx.py",
    ):
        assert (tmp_path / "runs" / "mine" / name).is_file(), name


PHOTOS = 48


def draw_photos(folder: Path) -> None:
    """Own photos and their table: in training one label each, elsewhere all."""
    (folder / "photos").mkdir()
    rows = ["image,labels,negatives,split"]
    for number in range(PHOTOS):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.jpg")
        split = ("train", "train", "validation", "test")[number % 4]
        label, other = ("cat", "dog") if number % 8 < 4 else ("dog", "cat")
        rows.append(f"{number}.jpg,{label},{'' if split == 'train' else other},{split}")
    (folder / "photos" / "labels.csv").write_text("\n".join(rows) + "\n")


def test_it_shards_a_table_and_names_the_command_that_is_there(site: Path, tmp_path: Path) -> None:
    rows = ["image,labels,split"]
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
        rows.append(f"{number}.jpg,{('cat', 'dog')[number % 2]},{('train', 'validation', 'test')[number % 3]}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    flags = ("--images", ".", "--resize", 32, "--complete", "--workers", 1, "--out", "out")
    done = raypaml(site, tmp_path, "shard", "table", "labels.csv", *flags)
    assert done.returncode == 0, done.stderr
    assert raypaml(site, tmp_path, "shard", "verify", "out").returncode == 0
    for index in (tmp_path / "out").glob("*.arrow"):
        index.unlink()
    done = raypaml(site, tmp_path, "shard", "verify", "out")
    assert done.returncode == 2
    assert "write it with raypaml shard index DIR" in done.stderr
