"""alpha_of_use.json and card.json, damaged one field at a time: one line that names the file and the remedy."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from raypaml.inference import exporting
from raypaml.inference.classifier import Classifier
from raypaml.inference.model_card import Card, digest
from raypaml.labels import Vocabulary
from raypaml.model.backbones import build_backbone
from raypaml.model.cam import CamClassifier
from raypaml.runs.alpha_of_use import AlphaChoice, ModelClasses

IDS = ("a", "b", "c")
CLASSES = ModelClasses(Vocabulary.digest_of(IDS), 3)
CANDIDATE = {"way": "class", "alphas": [1, 2.5], "held_out": 0.5, "gain": 0.1, "noise": 0.0, "wins": True}
CHOICE: dict[str, Any] = {
    "format": 1,
    "way": "class",
    "alpha": [1, 2.5, 2.5],
    "training_alpha": 5.0,
    "thresholds": [0.1, -1.0, 3],
    "pooled_thresholds": [2],
    "model": "0" * 64,
    "checkpoint": "0001-000000",
    "vocabulary": CLASSES.vocabulary,
    "labels": "complete",
    "observed_share": 1.0,
    "images": 20,
    "few_positives": [0, 2],
    "candidates": [CANDIDATE],
}
WRONG_OF_BOTH = [
    {"thresholds": [0.1]},
    {"thresholds": [0.1, "a", 1]},
    {"thresholds": [0.1, math.nan, 1]},
    {"thresholds": [0.1, math.inf, 1]},
    {"thresholds": [0.1, True, 1]},
    {"thresholds": 0.5},
    {"alpha": True},
    {"alpha": "2"},
    {"alpha": 10**400},
    {"alpha": 1e39},  # no float32
    {"alpha": math.nan},
    {"alpha": [0.5, 1, 1]},
    {"alpha": [2, 2]},
    {"alpha": None},
    {"vocabulary": "00"},
    {"vocabulary": 3},
    {"training_alpha": 0},
    {"format": 9},
    {"format": True},
    {"format": [1]},
    {"more": 1},
]
WRONG_CHOICES = [
    {"way": "foo"},
    {"way": ["class"]},
    {"way": "one"},
    {"way": "training", "alpha": 2},
    {"pooled_thresholds": [3]},
    {"pooled_thresholds": [-1]},
    {"few_positives": ["x"]},
    {"model": 7},
    {"checkpoint": None},
    {"labels": "maybe"},
    {"observed_share": "x"},
    {"observed_share": 1.5},
    {"images": -3},
    {"images": 2.5},
    {"candidates": 5},
    {"undecided": 1},
    {"candidates": [{}]},
    {"candidates": [CANDIDATE | {"way": "foo"}]},
    {"candidates": [CANDIDATE | {"alphas": [0]}]},
    {"candidates": [CANDIDATE | {"gain": math.nan}]},
]
WRONG_CARDS = [
    {"alpha_origin": 3},
    {"alpha_chosen": "yes"},
    {"names": ["a", "b"]},
    {"names": "abc"},
    {"class_ids": [1, 2, 3]},
    {"height": 0},
    {"height": "64"},
    {"width": 10**9},
    {"weights": 5},
    {"metrics": []},
    {"origin": "here"},
    {"origin": {"config": 5}},
    {"origin": {"config": {"optim": {"precision": "float8"}}}},
    {"origin": {"config": {"optim": {"reproducible": 1}}}},
    {"training_alpha": None, "alpha": [1, 2, 2]},
]


def choice_file(folder: Path) -> tuple[Path, dict[str, Any]]:
    path = folder / "alpha_of_use.json"
    path.write_text(json.dumps(CHOICE))
    return path, CHOICE


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    card = Card(
        class_ids=list(IDS),
        names=list(IDS),
        vocabulary=CLASSES.vocabulary,
        backbone="small",
        alpha=[1, 2.5, 2.5],
        training_alpha=5.0,
        thresholds=[0.1, -1.0, 3],
        height=64,
        width=64,
        weights="",
        metrics={"mean_ap": math.nan},
        origin={"run": "r", "config": {"optim": {"precision": "bfloat16", "lr": 1}}},
    )
    exporting.save_weights(Classifier(CamClassifier(build_backbone("small"), 3, card.alpha), card), folder)
    return folder, json.loads((folder / "card.json").read_text())


def refused_choice(path: Path) -> str:
    with pytest.raises(ValueError, match="evaluate --choose-alpha again") as found:
        AlphaChoice.read(path, CLASSES)
    return str(found.value)


def refused_card(path: Path) -> str:
    with pytest.raises(ValueError, match="export it again") as found:
        Card.read(path.parent)
    return str(found.value)


def check_line(said: str, path: Path) -> None:
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert len(said) < len(str(path)) + 400


@pytest.mark.parametrize("change", WRONG_OF_BOTH + WRONG_CHOICES, ids=str)
def test_a_damaged_choice_is_refused_in_one_line(change: dict[str, Any], tmp_path: Path) -> None:
    path, good = choice_file(tmp_path)
    assert AlphaChoice.read(path, CLASSES).alpha == good["alpha"]
    path.write_text(json.dumps(good | change))
    check_line(refused_choice(path), path)


@pytest.mark.parametrize("change", WRONG_OF_BOTH + WRONG_CARDS, ids=str)
def test_a_damaged_card_is_refused_in_one_line(change: dict[str, Any], export: tuple[Path, dict[str, Any]]) -> None:
    path, good = export[0] / "card.json", export[1]
    path.write_text(json.dumps(good))
    assert Card.read(path.parent).alpha == good["alpha"]
    path.write_text(json.dumps(good | change))
    check_line(refused_card(path), path)


def test_files_that_are_no_records_are_refused_in_one_line(tmp_path: Path, export: tuple[Path, dict[str, Any]]) -> None:
    path, good = choice_file(tmp_path)
    whole = json.dumps(good).encode()
    contents = [
        b"",
        b"\xff\xfe\0\x80",
        b"[1, 2]",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 5000,
        whole[:300],
        b"null",
    ]
    for content in contents:
        for one, refused in ((path, refused_choice), (export[0] / "card.json", refused_card)):
            one.write_bytes(content)
            check_line(refused(one), one)
    path.unlink()
    with pytest.raises(FileNotFoundError):  # what cannot be read is not damaged
        AlphaChoice.read(path, CLASSES)


def test_no_field_of_another_kind_is_accepted(tmp_path: Path) -> None:
    path, values = choice_file(tmp_path)[0], [None, True, -1, 10**30, "x", [], [[]], {}, [None], [1, "x"], -math.inf]
    accepted = []
    for name, value in product(CHOICE, values):
        path.write_text(json.dumps(CHOICE | {name: value}))
        try:
            AlphaChoice.read(path, CLASSES)
            accepted.append({name: value})
        except ValueError as error:
            check_line(str(error), path)
    meant = [{"alpha": 10**30}, {"training_alpha": 10**30}, {"thresholds": None}, {"pooled_thresholds": []}]
    meant += [{"model": "x"}, {"checkpoint": "x"}, {"few_positives": []}, {"candidates": []}]
    assert accepted == meant


@pytest.mark.parametrize("name", list(CHOICE))
def test_no_field_may_be_missing(name: str, tmp_path: Path) -> None:
    path, good = choice_file(tmp_path)
    path.write_text(json.dumps({key: value for key, value in good.items() if key != name}))
    assert f"({name} is missing)" in refused_choice(path)


def test_the_weights_beside_a_card_are_those_it_names(export: tuple[Path, dict[str, Any]]) -> None:
    (export[0] / "card.json").write_text(json.dumps(export[1]))
    assert Card.read(export[0]).weights == digest(export[0] / "model.safetensors")
