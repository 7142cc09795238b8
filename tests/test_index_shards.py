"""tools/index_shards.py as a user runs it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

TOOL = Path(__file__).parent.parent / "tools" / "index_shards.py"


def index(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), str(folder)], capture_output=True, text=True, check=False)


@pytest.fixture
def tars(tiny_digits: Path, tmp_path: Path) -> Path:
    """The shards and the vocabulary, without indexes."""
    folder = tmp_path / "data"
    shutil.copytree(tiny_digits, folder, ignore=shutil.ignore_patterns("*.arrow"))
    return folder


def rows(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def test_it_writes_the_same_indexes_again(tars: Path, tiny_digits: Path) -> None:
    done = index(tars)
    assert done.returncode == 0, done.stderr
    assert "train: 96 samples in 1 shard" in done.stdout
    for name in ("train.arrow", "validation.arrow", "test.arrow", "vocabulary.csv"):
        assert (tars / name).read_bytes() == (tiny_digits / name).read_bytes()


def test_without_a_vocabulary_the_classes_are_those_that_training_samples_name(tars: Path) -> None:
    (tars / "vocabulary.csv").unlink()
    for split in ("validation", "test"):  # theirs name all 50 classes
        shutil.copy(tars / "train-000000.tar", tars / f"{split}-000000.tar")
    assert index(tars).returncode == 0
    header, *lines = (tars / "vocabulary.csv").read_text().splitlines()
    ids = [line.split(",")[0] for line in lines]
    assert header.startswith("class_id,")
    assert ids == sorted(ids)
    assert 30 < len(ids) <= 50
    assert len(rows(tars / "test.arrow")) == 96


def test_a_missing_split_is_one_line(tars: Path) -> None:
    (tars / "test-000000.tar").unlink()
    done = index(tars)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no test-*.tar" in done.stderr
    assert not (tars / "train.arrow").exists()
