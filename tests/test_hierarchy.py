"""A positive implies its ancestors: beside a brute force, from both file forms, and in what the command writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from raypaml.data.data_folder import open_folder
from raypaml.labels import POSITIVE
from raypaml.preparation.findings import Findings
from raypaml.preparation.hierarchy import ancestors, expand, implied_columns, read_hierarchy
from raypaml.preparation.requests import SplitLabels, as_requests
from tools.shard_dataset import main

ANIMALS = {"dog": {"mammal"}, "cat": {"mammal"}, "mammal": {"animal"}, "bat": {"mammal", "flyer"}}
NAMES = ("dog", "cat", "bat", "animal", "flyer", "car")  # mammal is outside the vocabulary


def split_of(rows: Sequence[tuple[list[int], list[int], list[int] | None]]) -> SplitLabels:
    positives, negatives, truth = zip(*rows, strict=True)
    columns = {
        "key": pa.array([f"k{number}" for number in range(len(rows))]),
        "positives": pa.array(positives, pa.list_(pa.int32())),
        "negatives": pa.array(negatives, pa.list_(pa.int32())),
        "truth": pa.array(truth, pa.list_(pa.int32())),
    }
    return SplitLabels(as_requests(pa.table(columns)), {}, Findings())


@st.composite
def labelled(draw: st.DrawFn) -> tuple[list[int], list[int], list[int] | None]:
    signs = draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=len(NAMES), max_size=len(NAMES)))
    positive, negative = ([k for k, sign in enumerate(signs) if sign == wanted] for wanted in (1, 0))
    if draw(st.booleans()):
        return positive, negative, None
    hidden = [k for k, sign in enumerate(signs) if sign == -1]
    return positive, negative, sorted(positive + [k for k in hidden if draw(st.booleans())])


def above_columns(columns: list[int]) -> set[int]:
    return {NAMES.index(one) for k in columns for one in ancestors(ANIMALS, NAMES[k]) if one in NAMES}


@given(rows=st.lists(labelled(), min_size=1, max_size=6))
@settings(deadline=None, max_examples=150)
def test_expansion_is_that_of_a_loop(rows: list[tuple[list[int], list[int], list[int] | None]]) -> None:
    found = expand(split_of(rows), NAMES, ANIMALS)
    implied, against = [], 0
    for key, (positive, negative, truth), row in zip(
        [f"k{n}" for n in range(len(rows))], rows, found.table.to_pylist(), strict=True
    ):
        above, whole = above_columns(positive), truth
        if truth is not None:
            whole = sorted({*truth, *above_columns(truth)})
            negative = [k for k in negative if k not in whole]
        new = sorted(above - set(positive) - set(negative))
        against += len((above - set(positive)) & set(negative))
        implied += [{"key": key, "class": k} for k in new]
        assert row["positives"] == sorted({*positive, *new})
        assert row["negatives"] == negative
        assert row["truth"] == whole
    assert found.implied is not None
    assert found.implied.to_pylist() == implied
    assert found.findings.counts["labels implied by the hierarchy"] == len(implied)
    assert found.findings.counts["implied labels against a verified negative, left out"] == against


def test_a_verified_negative_stands_and_what_is_above_it_is_still_implied() -> None:
    chain = {"dog": {"mammal"}, "mammal": {"animal"}}
    found = expand(split_of([([0], [1], None)]), ("dog", "mammal", "animal"), chain)
    (row,) = found.table.to_pylist()
    assert (row["positives"], row["negatives"]) == ([0, 2], [1])


def test_ways_may_lead_through_classes_outside_the_vocabulary() -> None:
    assert [columns.tolist() for columns in implied_columns(ANIMALS, NAMES)] == [[3], [3], [3, 4], [], [], []]


def test_the_json_of_open_images(tmp_path: Path) -> None:
    tree = {
        "LabelName": "/m/0bl9f",
        "Subcategory": [
            {"LabelName": "animal", "Subcategory": [{"LabelName": "mammal", "Subcategory": [{"LabelName": "dog"}]}]},
            {"LabelName": "flyer", "Subcategory": [{"LabelName": "bat"}]},
            {"LabelName": "mammal", "Subcategory": [{"LabelName": "bat"}], "Part": [{"LabelName": "nose"}]},
        ],
    }
    (tmp_path / "h.json").write_text(json.dumps(tree))
    parents = read_hierarchy(tmp_path / "h.json")
    assert ancestors(parents, "dog") == {"mammal", "animal", "/m/0bl9f"}
    assert parents["bat"] == {"flyer", "mammal"}
    assert "nose" not in parents


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_bytes('\ufeffchild,parent\r\ndog, mammal\r\n"a, b",mammal\r\n'.encode())
    assert read_hierarchy(tmp_path / "h.csv") == {"dog": {"mammal"}, "a, b": {"mammal"}}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("h.csv", "a,b\nx,y\n", r"columns \['a', 'b'\], expected at least child, parent"),
        ("h.csv", "child,parent\nx\n", r"cannot be read .*; expected the columns child,parent"),
        ("h.json", "[1]", r"cannot be read .*; expected nested LabelName and Subcategory"),
        ("h.json", "{", r"cannot be read .*; expected nested LabelName and Subcategory"),
        (
            "h.json",
            '{"LabelName": "animal", "Subcategory": [{"LabelName": ["dog", "cat"]}]}',
            r"cannot be read \(unhashable type: 'list'\); expected nested LabelName and Subcategory",
        ),
        ("h.csv", "child,parent\nx,y\ny,x\n", r"x is its own ancestor; break the circle"),
    ],
)
def test_bad_files(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_hierarchy(tmp_path / name)
    with pytest.raises(ValueError, match=r"nowhere.csv: cannot be read"):
        read_hierarchy(tmp_path / "nowhere.csv")


def test_the_command_expands_after_hiding_and_keeps_what_was_implied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["image,labels"]
    for number in range(20):
        Image.fromarray(np.full((8, 8, 3), 10 * number, np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{'dog' if number % 2 else 'car'}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    (tmp_path / "classes.txt").write_text("dog\nanimal\ncar\n")
    (tmp_path / "h.csv").write_text("child,parent\ndog,mammal\nmammal,animal\n")
    arguments = ["table", tmp_path / "t.csv", "--classes", tmp_path / "classes.txt", "--complete", "--resize", "8"]
    arguments += ["--hide", "single-positive", "--hierarchy", tmp_path / "h.csv", "--out", tmp_path / "out"]
    monkeypatch.setattr("sys.argv", ["shard_dataset", *map(str, arguments), "--workers", "1"])
    assert main() == 0
    index = open_folder(tmp_path / "out").splits["train"]
    every = np.arange(len(index))
    observed, truth = index.labels(every) == POSITIVE, index.truth(every) == POSITIVE
    assert (observed[:, 1] == observed[:, 0]).all()
    assert (observed == truth).all()
    dogs = int(observed[:, 0].sum())
    card = json.loads((tmp_path / "out" / "data_card.json").read_text())
    assert card["splits"]["train"]["classes"]["implied"] == [0, dogs, 0]
    assert card["splits"]["train"]["doctor"]["labels implied by the hierarchy"]["count"] == dogs
    assert "hierarchy" in card["parameters"]
    implied = pq.read_table(tmp_path / "out" / "implied-train.parquet").to_pylist()
    keys = np.array(index.keys(every))[observed[:, 0]]
    assert sorted(row["key"] for row in implied) == sorted(keys)
    assert {row["class"] for row in implied} == {1}
