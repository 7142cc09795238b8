"""What was sharded trains: the recipe for Open Images on the test release, by training.loop, without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raypaml.labels import GROUP_NAMES
from raypaml.recipes import recipe
from raypaml.run_report.conclude import conclude_run
from tests.conftest import train_here
from tests.openimages_release import NO_LABEL, NO_POSITIVE, TRAINABLE, Release
from tests.shard_tool import shard


@pytest.fixture(scope="module")
def sample(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard(release, tmp_path_factory.mktemp("sample") / "data", "--limit", 64, "--resize", 32)


def test_openimages_trains_on_what_was_sharded(sample: Path, tmp_path: Path) -> None:
    values = {
        "backbone": "resnet18",
        "weights": "",
        "epochs": 2,
        "workers": 1,
        "global_batch_size": 16,
        "delta_rel": 1.0,
    }
    values |= {"loader_workers": 0, "data": str(sample), "storage": str(tmp_path), "name": "run", "device": "cpu"}
    job = train_here(recipe("openimages_v3").override(values))
    result = conclude_run(job)
    assert result["classes_scored"] < len(TRAINABLE)  # of NO_LABEL nothing is known
    assert result["groups"].keys() == set(GROUP_NAMES)
    assert 0 < result["mean_ap"] < 1
    lines = (job.folder / "metrics.jsonl").read_text().splitlines()
    assert 0 < json.loads(lines[-1])["validation_mean_ap"] < 1


def test_classes_without_labels_are_in_the_vocabulary_all_the_same(sample: Path) -> None:
    text = (sample / "vocabulary.csv").read_text()
    assert f"{NO_LABEL},Class {NO_LABEL[3:]},0,0,1\n" in text
    assert f"{NO_POSITIVE}," in text
