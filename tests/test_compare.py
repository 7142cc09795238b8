"""compare_data: every difference planted is found, counted and named, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypaml.data.index import open_index
from raypaml.data.shards import Sample, write_dataset
from raypaml.labels import Vocabulary
from raypaml.preparation.compare import compare_folders, compare_split
from tools.compare_data import main

CLASSES = ("a", "b", "c")


def sample(key: str, positive: str = "", negative: str = "", image: bytes = b"") -> Sample:
    return Sample(key=key, image=image or key.encode(), positive=tuple(positive), negative=tuple(negative))


def data_set(folder: Path, train: list[Sample], class_ids: tuple[str, ...] = CLASSES) -> Path:
    folder.mkdir()
    write_dataset(folder, {"train": train, "test": [sample("t")]}, class_ids, class_ids)
    return folder


def counts(comparison: dict[str, Any]) -> dict[str, int]:
    return {name: found["count"] for name, found in comparison.items() if found["count"]}


def test_equal_data_sets_have_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = [sample("x", "a", "b"), sample("y", "c")]
    a, b = data_set(tmp_path / "a", train), data_set(tmp_path / "b", train[::-1])  # in another order
    monkeypatch.setattr("sys.argv", ["compare_data", str(a), str(b)])
    assert main() == 0


def test_every_kind_of_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a = data_set(tmp_path / "a", [sample("x", "a", "b"), sample("y", "c"), sample("z", "a"), sample("gone", "b")])
    b = data_set(
        tmp_path / "b",
        [sample("x", "ab"), sample("y", "", "c"), sample("z", image=b"other"), sample("new")],
        ("c", "b", "a", "d"),
    )
    found = compare_folders(a, b)
    assert counts(found["vocabulary"]) == {"classes only in B": 1, "classes in another order": 1}
    assert counts(found["train"]) == {
        "samples in both": 3,
        "samples only in A": 1,
        "samples only in B": 1,
        "images that differ": 1,
        "labels positive in A, negative in B": 1,
        "labels negative in A, positive in B": 1,
        "labels positive in A, unobserved in B": 1,
    }
    assert found["train"]["samples only in A"]["examples"] == ["gone"]
    assert found["train"]["samples only in B"]["examples"] == ["new"]
    assert found["train"]["labels positive in A, negative in B"]["examples"] == ["y c"]
    assert found["train"]["labels positive in A, unobserved in B"]["examples"] == ["z a"]
    monkeypatch.setattr("sys.argv", ["compare_data", str(a), str(b), "--json", str(tmp_path / "d.json")])
    assert main() == 1
    assert "images that differ: 1  such as z" in capsys.readouterr().out
    assert json.loads((tmp_path / "d.json").read_text()) == found


def test_a_missing_split_or_folder_is_said(tmp_path: Path) -> None:
    a, b = (data_set(tmp_path / name, [sample("x", "a")]) for name in "ab")
    (b / "test.arrow").unlink()
    assert compare_folders(a, b)["test"] == {"split only in A": {"count": 1}}
    with pytest.raises(ValueError, match="nowhere: no such folder; give two prepared data sets"):
        compare_folders(a, tmp_path / "nowhere")


label = st.sampled_from(["", "positive", "negative"])
labels = st.dictionaries(st.sampled_from("pqrs"), st.tuples(*[label] * len(CLASSES)), min_size=1)


@settings(max_examples=25, deadline=None)
@given(labels, labels)
def test_label_differences_equal_a_comparison_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, Any], two: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("compare")
    sets = []
    for name, chosen in (("a", one), ("b", two)):
        train = [
            sample(
                key,
                *(
                    "".join(c for c, v in zip(CLASSES, value, strict=True) if v == kind)
                    for kind in ("positive", "negative")
                ),
            )
            for key, value in chosen.items()
        ]
        sets.append(open_index(data_set(folder / name, train) / "train.arrow"))
    vocabulary = Vocabulary.read(folder / "a" / "vocabulary.csv")
    expected: dict[str, int] = {}
    for key in one.keys() & two.keys():
        for x, y in zip(one[key], two[key], strict=True):
            if x != y:
                kind = f"labels {x or 'unobserved'} in A, {y or 'unobserved'} in B"
                expected[kind] = expected.get(kind, 0) + 1
    found = counts(compare_split(*sets, vocabulary, vocabulary))
    assert {name: count for name, count in found.items() if name.startswith("labels")} == expected
    assert found.get("samples only in A", 0) == len(one.keys() - two.keys())
