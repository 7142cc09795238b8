"""Checkpoints: what is saved comes back bit for bit; a kill at any moment leaves the old one or the new one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from raypaml.data.index import Index, open_index, write_index
from raypaml.data.index_table import SCHEMA
from raypaml.labels import Vocabulary
from raypaml.runs import checkpoint_writer
from raypaml.runs.checkpoint import (
    State,
    best_checkpoint,
    is_valid,
    load_checkpoint,
    read_state,
    retain,
    valid_checkpoints,
)
from raypaml.runs.checkpoint_writer import take_snapshot, write_checkpoint
from raypaml.runs.corrections import Corrections
from tests.whole_records import EPOCH_RECORD

K = 3
FILES = ["model.safetensors", "optimizer.safetensors", "corrections.parquet", "state.json", "COMMITTED"]


def _index(path: Path, *class_ids: str) -> Index:
    zeros = np.zeros(len(class_ids), np.int64)
    vocabulary = Vocabulary(class_ids=class_ids, names=class_ids, train_positives=zeros, train_negatives=zeros)
    place = {"shard": 0, "offset": 512, "size": 1, "crc32": 0}
    rows = [place | {"key": f"s{n}", "positives": [], "negatives": [], "truth": None, "boxes": []} for n in range(50)]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    write_index(path, table, shards=["t.tar"], shard_bytes=[1024], vocabulary=vocabulary, has_truth=False)
    return open_index(path)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return _index(tmp_path / "train.arrow", "a", "b", "c")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


def _model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, K))


def _adam(model: Any) -> torch.optim.Adam:
    return torch.optim.Adam([{"params": model[:2].parameters()}, {"params": model[3].parameters(), "lr": 0.1}], lr=0.01)


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        images = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    slots = {f"{n}.{k}": v for n, state in optimizer.state_dict()["state"].items() for k, v in state.items()}
    return {name: value.clone() for name, value in (model.state_dict() | slots).items()}


def _identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def _save(folder: Path, *parts: Any) -> Path:
    return write_checkpoint(folder, take_snapshot(*parts))


def _save_epoch(folder: Path, index: Index, epoch: int, score: float | None = None, step: int = 0) -> Path:
    """A checkpoint in which the weights, the optimizer, the corrections and the state all say `epoch`."""
    model = _model()
    optimizer = _adam(model)
    _train(model, optimizer, range(1))
    for value in [*model.parameters(), *(slot["exp_avg"] for slot in optimizer.state.values())]:
        nn.init.constant_(value, epoch)
    history = [] if score is None else [EPOCH_RECORD | {"validation_mean_ap": score}]
    state = State(epoch=epoch, step=step, history=history, vocabulary=index.vocabulary_digest)
    return _save(folder, state, model, optimizer, Corrections(K, np.array([epoch, 100])), index)


def _epoch_everywhere(path: Path, index: Index) -> int:
    """What `_save_epoch` wrote, if no part of the checkpoint comes from another."""
    model = _model()
    optimizer = _adam(model)
    state, corrections = load_checkpoint(path, model, optimizer, index)
    moments = [slot["exp_avg"] for slot in optimizer.state.values()]
    assert {v for tensor in [*model.parameters(), *moments] for v in tensor.unique().tolist()} == {state.epoch}, path
    assert corrections.entries.tolist() == [state.epoch, 100]
    return state.epoch


# --- Round trip ---------------------------------------------------------------------------------------------------


def test_everything_comes_back_bit_for_bit(folder: Path, index: Index) -> None:
    model = _model()
    optimizer = _adam(model)
    _train(model, optimizer, range(3))
    history = [EPOCH_RECORD | {"validation_mean_ap": 0.1 + 0.2}]
    told = {"tally": [1 / 3, 2e-300], "seconds": 0.1, "history": history, "vocabulary": index.vocabulary_digest}
    state = State(epoch=1, step=7, **told)
    corrections = Corrections(K, np.array([5, 149, 5, 0]))
    path = _save(folder, state, model, optimizer, corrections, index)
    other = _model(seed=1)
    other_optimizer = _adam(other)
    found, overlay = load_checkpoint(path, other, other_optimizer, index)
    assert path == folder / "0001-000007"
    assert found == read_state(path) == state
    assert overlay.entries.tolist() == [0, 5, 149]
    assert _identical(_tensors(other, other_optimizer), _tensors(model, optimizer))
    assert sorted(p.name for p in path.iterdir()) == sorted(FILES)
    assert [p.name for p in folder.iterdir()] == [path.name]


def test_a_resumed_adam_continues_bit_identically(folder: Path, index: Index) -> None:
    model = _model()
    optimizer = _adam(model)
    _train(model, optimizer, range(3))
    path = _save(folder, State(vocabulary=index.vocabulary_digest), model, optimizer, Corrections(K), index)
    _train(model, optimizer, range(3, 5))
    resumed = _model(seed=9)
    resumed_optimizer = _adam(resumed)
    load_checkpoint(path, resumed, resumed_optimizer, index)
    _train(resumed, resumed_optimizer, range(3, 5))
    assert _identical(_tensors(resumed, resumed_optimizer), _tensors(model, optimizer))


def test_a_checkpoint_before_the_first_step_has_no_moments_and_no_corrections(folder: Path, index: Index) -> None:
    model = _model()
    path = _save(folder, State(vocabulary=index.vocabulary_digest), model, _adam(model), Corrections(K), index)
    optimizer = _adam(model)
    _, corrections = load_checkpoint(path, model, optimizer, index)
    assert optimizer.state_dict()["state"] == {}
    assert len(corrections.entries) == 0
    assert not (path / "corrections.parquet").exists()


def test_sgd_without_momentum_keeps_nothing(folder: Path, index: Index) -> None:
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
    _train(model, optimizer, range(2))
    path = _save(folder, State(vocabulary=index.vocabulary_digest), model, optimizer, Corrections(K), index)
    resumed = _model(seed=9)
    resumed_optimizer = torch.optim.SGD(resumed.parameters(), lr=0.01, fused=True)
    load_checkpoint(path, resumed, resumed_optimizer, index)
    _train(model, optimizer, range(2, 3))
    _train(resumed, resumed_optimizer, range(2, 3))
    assert _identical(_tensors(resumed, resumed_optimizer), _tensors(model, optimizer))


def test_another_vocabulary_is_refused_before_anything_is_loaded(folder: Path, index: Index, tmp_path: Path) -> None:
    path = _save_epoch(folder, index, 1)
    model = _model()
    before = _tensors(model, _adam(model))
    with pytest.raises(ValueError, match=r"0001-000000: trained with another vocabulary than .*other\.arrow; give the"):
        load_checkpoint(path, model, _adam(model), _index(tmp_path / "other.arrow", "a", "c", "b"))
    assert _identical(_tensors(model, _adam(model)), before)


# --- Kills --------------------------------------------------------------------------------------------------------


class Kill(BaseException):
    """The process ends here."""


def _halve(call: Callable[..., Any], path: Path, *args: Any, **options: Any) -> None:
    """Do half of a write: half the bytes of a file, one file less in a deleted folder."""
    if call.__name__ == "rmtree" and path.is_dir():
        min(path.iterdir()).unlink()
    elif call.__name__ in ("write_tensors", "write", "write_text"):
        call(*args, **options)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _kill_at(patch: pytest.MonkeyPatch, number: int, when: str) -> list[str]:
    """Kill at the number-th write to the file system; returns the list in which the writes appear."""
    writes: list[str] = []

    def write(call: Callable[..., Any], argument: int, *args: Any, **options: Any) -> Any:
        writes.append(call.__name__)
        dies = len(writes) == number
        if dies and when == "half":
            target = args[argument]  # a path, or a file that is open
            _halve(call, Path(getattr(target, "name", "") if hasattr(target, "write") else target), *args, **options)
        if not dies or when == "after":
            result = call(*args, **options)
        if dies:
            raise Kill
        return result

    writer = [(checkpoint_writer, "write_tensors", 1), (Corrections, "write", 1), (checkpoint_writer, "sync", 0)]
    for owner, name, argument in [*writer, (Path, "write_text", 0), (Path, "replace", 0), (shutil, "rmtree", 0)]:
        call = partial(write, getattr(owner, name), argument)
        patch.setattr(owner, name, lambda *args, _call=call, **options: _call(*args, **options))
    return writes


@pytest.mark.parametrize("when", ["before", "half", "after"])
def test_a_kill_at_any_write_leaves_the_old_or_the_new_checkpoint_whole(
    tmp_path: Path, index: Index, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # slow, and the writes are counted before it
    for epoch, score in ((1, 0.1), (2, 0.5), (3, None)):
        path = _save_epoch(tmp_path / "before", index, epoch, score)
    (path / "model.safetensors").write_bytes(b"")  # damaged: epoch 3 is being trained again
    newest: list[int] = []
    for number in count(1):
        folder = shutil.copytree(tmp_path / "before", tmp_path / f"killed-{number}")
        with monkeypatch.context() as patch:
            writes = _kill_at(patch, number, when)
            with suppress(Kill):
                _save_epoch(folder, index, 3, 0.6)
                retain(folder)
        valid, _ = valid_checkpoints(folder)
        assert {_epoch_everywhere(path, index) for path in valid} <= {1, 2, 3}
        newest.append(_epoch_everywhere(valid[-1], index))
        _save_epoch(folder, index, 4, 0.7)  # the next process goes on
        retain(folder)
        assert [path.name for path in folder.iterdir()] == ["0004-000000"]
        if len(writes) < number:
            break
    assert set(writes) == {"write_tensors", "write", "write_text", "replace", "sync", "rmtree"}
    assert set(newest) == {2, 3}
    assert newest == sorted(newest)  # once the new one is there it stays


# --- Damage -------------------------------------------------------------------------------------------------------


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "zero bytes": lambda content: content[:0],
    "altered": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_makes_the_run_fall_back(folder: Path, index: Index, name: str, damage: str) -> None:
    old, new = (_save_epoch(folder, index, epoch) for epoch in (1, 2))
    assert valid_checkpoints(folder) == ([old, new], [])
    content = (new / name).read_bytes()
    (new / name).write_bytes(DAMAGES[damage](content))
    assert valid_checkpoints(folder) == ([old], [new])
    (new / name).write_bytes(content)
    assert is_valid(new)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_makes_a_checkpoint_invalid(folder: Path, index: Index, name: str) -> None:
    path = _save_epoch(folder, index, 1)
    (path / name).unlink()
    assert valid_checkpoints(folder) == ([], [path])


@pytest.mark.parametrize("marker", ["{}", "[]", "3", "null", '{"model.safetensors": 1}'])
def test_a_marker_that_is_none_makes_a_checkpoint_invalid(folder: Path, index: Index, marker: str) -> None:
    path = _save_epoch(folder, index, 1)
    (path / "COMMITTED").write_text(marker)
    assert not is_valid(path)


@pytest.mark.parametrize("name", FILES[:3])
def test_a_file_of_a_right_digest_that_does_not_fit_is_named(folder: Path, index: Index, name: str) -> None:
    path, model = _save_epoch(folder, index, 1), _model()
    (path / name).write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=rf"{name}: does not fit this run \([\s\S]+\); remove the checkpoint"):
        load_checkpoint(path, model, _adam(model), index)


def test_a_run_without_checkpoints_has_none(folder: Path) -> None:
    assert valid_checkpoints(folder) == ([], [])
    retain(folder)


# --- Which to keep ------------------------------------------------------------------------------------------------


def test_checkpoints_come_oldest_first_also_past_the_padding_of_their_names(folder: Path, index: Index) -> None:
    first = _save_epoch(folder, index, 0)
    names = ["0000-999999", "0000-1000000", "0001-000000", "9999-000000", "10000-000000"]
    for name in names:
        shutil.copytree(first, folder / name)
    assert [path.name for path in valid_checkpoints(folder)[0]] == [first.name, *names]


def test_the_best_is_the_earliest_of_equals_and_the_last_where_none_has_a_score(folder: Path, index: Index) -> None:
    scores = [None, 0.2, 0.7, 0.7, 0.3]
    made = [_save_epoch(folder, index, epoch, score) for epoch, score in enumerate(scores)]
    assert best_checkpoint(made) == made[2]
    assert best_checkpoint(made[:1]) == made[0]
    unscored = [made[0], _save_epoch(folder, index, 5, 0.9, step=3)]  # in mid-epoch: not the score of these weights
    assert best_checkpoint(unscored) == unscored[1]


def test_retain_keeps_newest_and_best_and_sweeps_what_is_damaged_or_unfinished(folder: Path, index: Index) -> None:
    for epoch, score in enumerate([0.1, 0.9, 0.9, 0.2, 0.3], start=1):
        _save_epoch(folder, index, epoch, score)
    damaged = _save_epoch(folder, index, 6, 1.0)
    (damaged / "state.json").write_text(json.dumps({}))
    (folder / ".unfinished-0007-000000").mkdir()
    (folder / "notes").mkdir()
    retain(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["0002-000000", "0005-000000", "notes"]
