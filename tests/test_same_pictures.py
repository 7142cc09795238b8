"""One picture many times, and the same picture in two splits, are counted and named; nothing else is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from raypaml import shard
from raypaml.data.index import open_index
from raypaml.preparation.data_card import same_pictures_in
from raypaml.preparation.same_pictures import Repeats, Shared, repeats, shared
from tests.odd_images import encoded, picture

LINES = [
    "train: 14 images show only 2 pictures; perhaps placeholders of lost photographs: that of FIRST 12 times; also: ",
    "train and test: 3 images of test (30.0 %) show a picture that is in train too: PAIRS",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve placeholders and a pair in train; in test one of these placeholders and two photos of train."""
    folder, rng = tmp_path_factory.mktemp("same"), np.random.default_rng(0)
    photos = [encoded(picture(rng, (24, 16))) for _ in range(40)]
    splits = {
        "train": [photos[0]] * 12 + [photos[1]] * 2 + photos[2:20],
        "validation": photos[20:30],
        "test": [photos[0], photos[2], photos[3], *photos[30:37]],
    }
    for split, contents in splits.items():
        (folder / "in" / split / "cat").mkdir(parents=True)
        for number, content in enumerate(contents):
            (folder / "in" / split / "cat" / f"{split}{number:02d}.jpg").write_bytes(content)
    flags = ["folder", str(folder / "in"), "--out", str(folder / "out"), "--resize", "none", "--workers", "1"]
    assert shard.main(flags) == 0
    return folder / "out"


def test_repeats_and_shared_pictures_are_counted_and_named(data: Path) -> None:
    indexes = {split: open_index(data / f"{split}.arrow") for split in ("train", "validation", "test")}
    found = repeats(indexes["train"])
    (most,) = found.most
    assert (found.pictures, found.images, most[1]) == (2, 14, 12)
    assert found.others in ([("train12", 2)], [("train13", 2)])
    assert most[0] in {f"train{n:02d}" for n in range(12)}
    assert repeats(indexes["test"]) == repeats(indexes["validation"]) == Repeats(0, 0, [], [])
    (both,) = shared(indexes)
    assert (both.first, both.second, both.images) == ("train", "test", 3)
    names = {theirs: mine for mine, theirs in both.pairs}
    assert {"test01": names["test01"], "test02": names["test02"]} == {"test01": "train14", "test02": "train15"}
    assert names["test00"] in {f"train{n:02d}" for n in range(12)}
    assert isinstance(both, Shared)


def expected(said: str) -> list[str]:
    lines = [line for line in said.splitlines() if "show" in line]
    assert len(lines) == 2
    assert lines[0].startswith(LINES[0].split("FIRST")[0])
    assert re.search(r": that of train(0\d|1[01]) 12 times; also: that of train1[23] 2 times$", lines[0])
    assert lines[1].startswith(LINES[1].split("PAIRS")[0])
    return lines


def test_preparation_verification_and_card_say_so(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shard.main(["verify", str(data)]) == 0
    lines = expected(capsys.readouterr().err)
    own = ["folder", "--out", str(data), "--workers", "1"]
    assert shard.main([*own, "--verify"]) == 0
    assert expected(capsys.readouterr().err) == lines
    assert shard.main([*own, str(data.parent / "in"), "--resize", "none"]) == 0  # finished before
    assert expected(capsys.readouterr().err) == lines
    assert json.loads((data / "data_card.json").read_text())["same_pictures"] == lines
    assert same_pictures_in(data) == lines
    card = json.loads((data / "data_card.json").read_text())
    del card["same_pictures"]
    (data / "data_card.json").write_text(json.dumps(card))
    assert same_pictures_in(data) == lines
    assert all(f"- {line}\n" in (data / "data_card.md").read_text() for line in lines)
