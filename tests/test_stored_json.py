"""JSON files that people edit: whatever stands in a field, it is what the field takes or is refused by its name."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypaml.config import TrainConfig
from raypaml.evaluation.result_records import read_result
from raypaml.preparation.data_card import read_card
from raypaml.preparation.record import read_record as read_preparation
from raypaml.runs.checkpoint import read_state
from raypaml.runs.history import read_history
from raypaml.runs.run_folder import read_config
from raypaml.runs.run_record import read_run_record
from raypaml.search.search_records import read_best, search_record
from raypaml.stored_json import parse_json
from raypaml.training.out_of_memory import read_halving
from tests.whole_records import EPOCH_RECORD, RESULT

CONFIG = TrainConfig().to_dict()
LENGTH = {"epoch": 0, "step": 0, "epochs": 3, "patience": 0, "stop_below": 0.0, "result": "result-1.json"}
EPOCH = EPOCH_RECORD | {
    "validation_mean_ap": math.nan,
    "validation_groups": {"G1": 0.5, "G2": math.nan},
    "rejections_by_class": {"class": [0, 1], "rejected": [1, 0], "rejected_missed": [0, 0], "missed": None},
    "stop": {"why": "enough", "epochs": 3},
}
RUN = {
    "config": CONFIG,
    "data": {"folder": "d", "vocabulary": "0", "num_classes": 2, "image_size": [8, 8], "samples": {"train": 3}},
    "versions": {"raypaml": "1"},
    "commit": "",
    "lengths": [LENGTH],
}
STATE = {
    "epoch": 1,
    "step": 0,
    "tally": [0.5, 1.0],
    "class_counts": [[1, 2]],
    "seconds": 2.0,
    "vocabulary": "0",
    "skipped": [[0, 7, "cannot be decoded"]],
    "history": [EPOCH],
    "kept": ["0001-000000"],
    "callbacks": {"mine": {"best": [1, {"a": None}]}},
}
HALVING = {"micro_batch_size": 4, "before": 8, "where": "rank 0", "error": "out of memory"}
SPACE = {"name": "alpha", "field": "alpha", "distribution": "log", "low": 1.0, "high": 9.0, "values": [], "unit": ""}
QUESTION = {
    "recipe": "digits",
    "spaces": [SPACE],
    "searcher": "random",
    "share": 3,
    "points": 4,
    "early": True,
    "given": {"lr": 0.1},
}
SEARCH = {"question": QUESTION | {k: v for k, v in TrainConfig().flat().items() if k != "name"}, "trials": 4}
BEST = {"found": {"trial": "t", "validation_mean_ap": 0.5, "verdict": "better", "folder": "f"}, "config": CONFIG}
PREPARATION = {
    "parameters": {"resize": "short", "size": 64, "quality": 90, "limit": None, "json": "flat"},
    "splits": {"train": {"labels": "0", "from": "files", "shard_samples": 10, "finished": True}},
}
SPLIT: dict[str, Any] = {
    "images": {"written": 1},
    "labels": {"positives": {"written": 1}},
    "official": {},
    "groups": {"G1": {"a": 1}},
    "doctor": {"x": {"count": 1, "examples": ["a"]}},
    "unusable": {"no label": ["a"]},
    "classes": {"positives written": [1, 2]},
    "shards": 1,
}
CARD = {
    "digest": "0",
    "parameters": {"size": 64},
    "in_two_splits": {},
    "same_pictures": [],
    "splits": {"train": SPLIT},
    "vocabulary": {"classes": 2, "digest": "0", "class_ids": ["a", "b"]},
}


class Kind(NamedTuple):
    """A file of a run, a search or a data set, and what reads it, given its folder."""

    name: str
    content: dict[str, Any]
    read: Callable[[Path], object]
    lacking: tuple[str, ...] = ()
    """Fields that files of earlier versions lack, and those that only some have."""


def both_of(folder: Path) -> None:
    config = read_config(folder / "config.json")
    read_run_record(folder)
    with suppress(ValueError):  # numbers out of range, which flags may still change
        config.check()


KINDS = (
    Kind("config.json", RUN, both_of, ("lengths",)),
    Kind("state.json", STATE, read_state, ("class_counts", "kept", "callbacks")),
    Kind("metrics.jsonl", EPOCH, read_history, ("rejections_by_class", "stop")),
    Kind("result.json", RESULT | {"mean_ap": math.nan, "stopped_early": None}, read_result, ("stopped_early",)),
    Kind("memory.json", HALVING, read_halving),
    Kind("search.json", SEARCH, search_record),
    Kind("best.json", BEST, read_best),
    Kind("preparation.json", PREPARATION, read_preparation),
    Kind("data_card.json", CARD, read_card, ("same_pictures",)),
)
EACH = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(content: Any, where: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of all values in a value of JSON."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in pairs:
        yield (*where, name)
        yield from places(value, (*where, name))


def dotted(place: tuple[str | int, ...]) -> str:
    """A path as messages have it."""
    return "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in place).removeprefix(".")


def changed(kind: Kind, place: tuple[str | int, ...], value: object, *, remove: bool = False) -> dict[str, Any]:
    content = copy.deepcopy(kind.content)
    inner: Any = content
    for name in place[:-1]:
        inner = inner[name]
    if remove:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return content


def said_of(kind: Kind, folder: Path, content: bytes) -> str:
    """What the reader says of a file; empty where it takes it."""
    (folder / kind.name).write_bytes(content)
    try:
        kind.read(folder)
    except ValueError as error:
        said = str(error)
        assert "\n" not in said
        assert len(said) < len(str(folder)) + 400
        return said
    return ""


@EACH
def test_a_whole_record_is_read(kind: Kind, tmp_path: Path) -> None:
    assert said_of(kind, tmp_path, json.dumps(kind.content).encode()) == ""
    assert said_of(kind, tmp_path, b"\xef\xbb\xbf" + json.dumps(kind.content).encode()) == ""  # as Windows writes it


@EACH
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_a_field_is_taken_or_refused_by_its_name(kind: Kind, data: st.DataObject, tmp_path: Path) -> None:
    place = data.draw(st.sampled_from(list(places(kind.content))))
    said = said_of(kind, tmp_path, json.dumps(changed(kind, place, data.draw(ODD))).encode())
    assert not said or (said.startswith(f"{tmp_path / kind.name}: not ") and dotted(place) in said)


@EACH
def test_no_field_is_ignored_and_none_is_missing_in_silence(kind: Kind, tmp_path: Path) -> None:
    said = said_of(kind, tmp_path, json.dumps(kind.content | {"kindd": 1}).encode())
    assert "kindd: no such field" in said
    for name in kind.content:
        said = said_of(kind, tmp_path, json.dumps(changed(kind, (name,), None, remove=True)).encode())
        assert f"{name} is missing)" in said or (not said and name in kind.lacking)


WRONG = {
    "config.loss": ([], "an object"),
    "config.data.flip": ("no", "true or false"),
    "config.optim.epochs": ("3", "a whole number, at least 0"),
    "config.optim.lr": (True, "a finite number"),
    "config.run.seed": (1.5, "a whole number, at least 0"),
    "config.model.head_init": ("xavier", "one of normal, torch"),
    "data.samples.train": (-1, "a whole number, at least 0"),
    "lengths": ({}, "a list, each an object"),
}


@pytest.mark.parametrize("where", WRONG)
def test_a_wrong_value_is_said_with_its_place_and_its_type(where: str, tmp_path: Path) -> None:
    value, kind = WRONG[where]
    said = said_of(KINDS[0], tmp_path, json.dumps(changed(KINDS[0], tuple(where.split(".")), value)).encode())
    path = tmp_path / "config.json"
    assert said == f"{path}: not the record of a run ({where}={value!r}: must be {kind})"


def test_a_mistyped_setting_is_told_the_right_one(tmp_path: Path) -> None:
    content = changed(KINDS[0], ("config", "optim", "epoch"), 3)
    said = said_of(KINDS[0], tmp_path, json.dumps(content).encode())
    assert "(config.optim.epoch: no such field; did you mean 'epochs'?)" in said
    content = changed(KINDS[0], ("config", "optim", "epochs"), 3, remove=True)
    assert "(config.optim.epochs is missing)" in said_of(KINDS[0], tmp_path, json.dumps(content).encode())


NO_RECORDS = {
    b"": "(empty)",
    b" \n": "(empty)",
    b"[1, 2]": "(no JSON object)",
    b"null": "(no JSON object)",
    b'{"a": 1': "(no JSON: ",
    b'{"a": 1, "b": {}, "a": 2}': "('a' is there twice)",
    b'{"a": "\xff"}': "(no text in UTF-8: byte 0xff at 7)",
    "{}".encode("utf-16"): "(no text in UTF-8: byte 0xff at 0)",
    b"[" * 100_000: "(nested too deeply)",
    b'{"a":' * 100_000: "(nested too deeply)",
    b'{"a": ' + b"7" * 10_000 + b"}": "(a whole number of more than 4,300 digits)",
    rb'{"a": "\ud800"}': "(half a surrogate pair, which is no character)",
}


@EACH
def test_what_is_no_record_is_refused_in_one_line(kind: Kind, tmp_path: Path) -> None:
    for content, reason in NO_RECORDS.items():
        if kind.name != "metrics.jsonl":  # has records in lines, and no line at first
            assert reason in said_of(kind, tmp_path, content)


def test_a_damaged_line_of_the_metrics_is_named(tmp_path: Path) -> None:
    lines = [json.dumps(EPOCH), json.dumps(EPOCH | {"loss": "low"})]
    said = said_of(KINDS[2], tmp_path, "\n".join(lines).encode())
    assert "(line 2.loss='low': must be a finite number)" in said


def test_a_file_is_read_up_to_its_limit_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raypaml.stored_json.LARGEST_RECORD", 1 << 20)
    with (tmp_path / "memory.json").open("wb") as file:
        file.truncate(1 << 40)  # 1 TB, of which the disk holds nothing
    with pytest.raises(ValueError, match=r"memory\.json: not .*\(more than 1,048,576 bytes\)"):
        read_halving(tmp_path)


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert parse_json(json.dumps(["\U0001f600"])) == ["\U0001f600"]
