"""A data set that was prepared anew where a run's data lay: the run says so, or does not go on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from raypaml.config import TrainConfig
from raypaml.data.data_folder import open_folder
from raypaml.data.digits import digits_folder
from raypaml.recipes import recipe
from raypaml.runs.run_folder import changed_data, claim
from raypaml.training.job import prepare_job
from tests.conftest import TINY


@pytest.fixture
def begun(tiny_digits: Path, tmp_path: Path) -> TrainConfig:
    """The configuration of a run that has begun on a copy of the data."""
    data = shutil.copytree(tiny_digits, tmp_path / "data")
    config = recipe("digits").override({"data": str(data), "storage": str(tmp_path), "name": "run", "workers": 1})
    claim(tmp_path / "run", config, open_folder(data))
    return config


def put_instead(config: TrainConfig, data: Path) -> None:
    shutil.copytree(data, config.data.data, dirs_exist_ok=True)


def said(config: TrainConfig) -> list[str]:
    lines: list[str] = []
    prepare_job(config, lines.append)
    return [line for line in lines if "changed" in line]


def test_the_same_data_written_again_are_no_change(begun: TrainConfig, tiny_digits: Path) -> None:
    put_instead(begun, tiny_digits)
    assert said(begun) == []


def test_other_labels_are_said(begun: TrainConfig, tmp_path: Path) -> None:
    put_instead(begun, digits_folder(num_scenes=TINY, seed=1))
    splits = "; ".join(f"the index of {split} is another one" for split in ("train", "validation", "test"))
    assert said(begun) == [f"{tmp_path}/data: changed since {tmp_path}/run was started: {splits}"]


def test_a_split_of_another_length_is_said_alone(begun: TrainConfig, tmp_path: Path) -> None:
    data = open_folder(digits_folder(num_scenes=TINY | {"test": 30}))
    told = f"{data.path}: changed since {tmp_path}/run was started: test has 30 samples, not 40"
    assert changed_data(tmp_path / "run", data, ["test"]) == told
    assert changed_data(tmp_path / "run", data, ["validation"]) == ""


def test_another_number_of_training_samples_is_refused(begun: TrainConfig, tmp_path: Path) -> None:
    put_instead(begun, digits_folder(num_scenes=TINY | {"train": 90}))
    with pytest.raises(ValueError, match=r"run: the run was started with 96 training samples, .*data now has 90; put"):
        said(begun)
