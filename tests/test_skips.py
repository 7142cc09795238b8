"""Broken samples within a budget: the same ones left out on any number of workers and after any restart, by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raypaml.config import TrainConfig
from raypaml.data.index import open_index
from raypaml.data.plan import Plan
from raypaml.data.shards import SPLITS
from raypaml.evaluation.parts import open_set
from raypaml.run_report.conclude import conclude_run
from raypaml.runs.skips import check_budget
from raypaml.training.loop import train
from tests import conftest
from tests.conftest import run_distributed
from tests.test_loop import config, history, predictions, train_here, weights

BROKEN = {"train": (3, 40, 41, 77), "validation": (0,), "test": (5,)}


@pytest.fixture(scope="module")
def damaged(tiny_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits with a few flipped bytes; all shards keep their size."""
    folder = Path(shutil.copytree(tiny_digits, tmp_path_factory.mktemp("damaged") / "data"))
    for split, rows in BROKEN.items():
        damage(folder, split, rows)
    return folder


def damage(folder: Path, split: str, rows: Any) -> None:
    index = open_index(folder / f"{split}.arrow")
    for row in rows:
        path = folder / index.shards[index.shard[row]]
        content = bytearray(path.read_bytes())
        content[index.offset[row] + 30] ^= 1
        path.write_bytes(content)


def skipping(**values: Any) -> TrainConfig:
    return config(skip_budget=0.05, **values)


@pytest.fixture(scope="module")
def undisturbed(damaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("skipping")
    assert train_here(0, 1, skipping(), damaged, run, None)
    return run


def test_every_epoch_says_what_it_expected_saw_and_skipped(undisturbed: Path, damaged: Path) -> None:
    for record in history(undisturbed):
        assert (record["expected"], record["samples"], record["skipped"]) == (96, 92, 4)
        assert record["validation_skipped"] == 1
    lines = [json.loads(line) for line in (undisturbed / "skipped.jsonl").read_text().splitlines()]
    index = open_index(damaged / "train.arrow")
    first = [line for line in lines if line["epoch"] == 0]
    assert len(lines) == 3 * len(first)
    for line, row in zip(sorted(first, key=lambda line: str(line["key"])), BROKEN["train"], strict=True):
        assert line["key"] == index.keys(np.array([row]))[0]
        assert (line["shard"], line["offset"]) == ("train-000000.tar", index.offset[row])
        assert line["reason"] == "does not match its CRC-32"


def test_a_prediction_set_names_what_it_skipped(undisturbed: Path) -> None:
    found = open_set(undisturbed / "predictions" / "test")
    assert found.samples == 40
    assert [line["key"] for line in found.skipped] == ["test-000005"]
    keys = {key for _, rows in found.batches() for key in rows["key"].to_pylist()}
    assert len(keys) == 39
    assert "test-000005" not in keys


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_workers_skips_the_same_and_computes_the_same(
    world_size: int, damaged: Path, tmp_path: Path, undisturbed: Path
) -> None:
    run_distributed(train_here, world_size, skipping(), damaged, tmp_path, None)
    assert weights(tmp_path) == weights(undisturbed)
    assert predictions(tmp_path) == predictions(undisturbed)
    assert (tmp_path / "skipped.jsonl").read_text() == (undisturbed / "skipped.jsonl").read_text()


def test_skips_are_named_in_the_same_order_however_often_ranks_agree(
    damaged: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock decides how often."""
    monkeypatch.setattr("raypaml.training.loop.REPORT_SECONDS", 0.0)
    train_here(0, 1, skipping(), damaged, tmp_path, None)
    assert (tmp_path / "skipped.jsonl").read_text() == (undisturbed / "skipped.jsonl").read_text()


def test_interrupted_on_two_workers_and_continued_on_one_it_is_the_same(
    damaged: Path, tmp_path: Path, undisturbed: Path
) -> None:
    settings = skipping(checkpoint_steps=1)
    assert run_distributed(train_here, 2, settings, damaged, tmp_path, 2) == [False, False]
    assert train_here(0, 1, settings, damaged, tmp_path, None)
    assert weights(tmp_path) == weights(undisturbed)
    assert sorted((tmp_path / "skipped.jsonl").read_text().splitlines()) == sorted(
        (undisturbed / "skipped.jsonl").read_text().splitlines()
    )


def test_a_batch_without_one_sound_sample_is_passed_over(tiny_digits: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_digits, tmp_path / "data"))
    settings = config(skip_budget=0.5, global_batch_size=4, lanes=4, epochs=1)
    batch = Plan(num_samples=96, global_batch_size=4, lanes=4).epoch(0, 0, 1)[1].rows
    damage(folder, "train", batch.tolist())
    assert train(settings, folder, tmp_path / "run", torch.device("cpu"), lambda _: False)
    (record,) = history(tmp_path / "run")
    assert (record["samples"], record["skipped"]) == (92, 4)


def test_above_the_budget_it_ends_with_counts_and_names(damaged: Path, tmp_path: Path) -> None:
    said = (
        r"train: 4 broken samples found, skip_budget=0\.03 of 96 allows 2; repair the shards or raise --skip-budget\. "
        r"The first: train-000000\.tar: image 'train-000003' at byte \d+ does not match its CRC-32; "
    )
    with pytest.raises(ValueError, match=said):
        train_here(0, 1, config(skip_budget=0.03), damaged, tmp_path, None)


def test_without_a_budget_the_first_broken_sample_is_an_error(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"train-000000\.tar: image 'train-0000\d\d' at byte \d+ does not match its CRC"
    ):
        train_here(0, 1, config(), damaged, tmp_path, None)


def test_a_budget_is_a_share_of_the_split() -> None:
    one = [{"shard": "t.tar", "key": "a", "offset": 512, "reason": "is cut short"}]
    check_budget(one, "test", 1000, 0.001)
    with pytest.raises(ValueError, match=r"test: 1 broken samples found, skip_budget=0\.001 of 999 allows 0"):
        check_budget(one, "test", 999, 0.001)


def test_the_splits_of_these_tests_are_all_damaged() -> None:
    assert set(BROKEN) == set(SPLITS)


def test_reports_and_probes_leave_broken_images_out(damaged: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(damaged, tmp_path / "data"))
    damage(folder, "test", [0])
    settings = skipping(data=str(folder), storage=str(tmp_path), name="run", workers=1, epochs=2)
    job = conftest.train_here(settings)
    assert conclude_run(job)["skipped"] == 2
    assert "Maps of 38 evenly spaced test images" in (job.folder / "report.html").read_text()
    watched = conftest.train_here(settings.override({"name": "watched", "reference": str(job.folder)}))
    assert all(
        "share_of_epoch" in record["drift"] for record in history(watched.folder)
    )  # its probe has a broken image
