"""The ledger of a run, epoch by epoch and step by step: which keys it trained on, on any workers, after any stop."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from raypaml.config import TrainConfig
from raypaml.data.digits import CLASS_IDS, NAMES, scenes
from raypaml.data.index import open_index
from raypaml.data.plan import Plan
from raypaml.data.shards import write_dataset
from raypaml.training import loop
from raypaml.training.step import train_step
from tests.conftest import TINY, run_distributed
from tests.test_loop import config, history, train_here, weights

STEPS = 3 * 3
"""Of three epochs of 96 samples in batches of 32."""

Ledger = dict[tuple[int, int], list[str]]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny digits in shards of 20, the last one shorter."""
    out = tmp_path_factory.mktemp("sharded")
    write_dataset(out, {s: scenes(s, "single_positive", 0, n) for s, n in TINY.items()}, CLASS_IDS, NAMES, 20)
    return out


def windowed(**values: Any) -> TrainConfig:
    return config(shuffle_window=2, checkpoint_steps=1, **values)


def train_noting(rank: int, world_size: int, settings: TrainConfig, data: Path, run: Path, stop_at: int | None) -> bool:
    """As `train_here`; every rank notes the keys of every step."""

    def noting(worker: Any, batch: Any) -> None:
        train_step(worker, batch)
        run.mkdir(exist_ok=True)
        with (run / f"ledger-{world_size}-{rank}.jsonl").open("a") as file:
            file.write(json.dumps([worker.state.epoch, worker.state.step, batch.keys]) + "\n")

    before, loop.train_step = loop.train_step, noting
    try:
        return train_here(rank, world_size, settings, data, run, stop_at)
    finally:
        loop.train_step = before


def ledger(run: Path) -> Ledger:
    """All ranks' keys by (epoch, step), sorted."""
    found: Ledger = defaultdict(list)
    for path in run.glob("ledger-*.jsonl"):
        for line in path.read_text().splitlines():
            epoch, step, keys = json.loads(line)
            found[epoch, step] += keys
    return {cursor: sorted(keys) for cursor, keys in found.items()}


@pytest.fixture(scope="module")
def undisturbed(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed")
    assert train_noting(0, 1, windowed(), sharded, run, None)
    return run


def test_the_ledger_is_the_plan(sharded: Path, undisturbed: Path) -> None:
    index = open_index(sharded / "train.arrow")
    assert index.shard_sizes == (20, 20, 20, 20, 16)
    plan = Plan(num_samples=96, global_batch_size=32, lanes=4, window=2, shard_sizes=index.shard_sizes)
    planned = {(e, s): sorted(index.keys(part.rows)) for e in range(3) for s, part in enumerate(plan.epoch(e, 0, 1))}
    assert ledger(undisturbed) == planned
    everything = sorted(index.keys(plan.order(0)))
    for epoch in range(3):
        assert sorted(key for step in range(3) for key in planned[epoch, step]) == everything


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_every_number_of_workers_consumes_the_same_global_batches_and_trains_the_same(
    world_size: int, sharded: Path, tmp_path: Path, undisturbed: Path
) -> None:
    run_distributed(train_noting, world_size, windowed(loader_workers=int(world_size == 2)), sharded, tmp_path, None)
    assert ledger(tmp_path) == ledger(undisturbed)
    assert weights(tmp_path) == weights(undisturbed)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_without_exact_gradients_too_the_loss_is_the_same(world_size: int, sharded: Path, tmp_path: Path) -> None:
    settings = windowed(reproducible=False, epochs=1, scheme="an")
    assert train_noting(0, 1, settings, sharded, tmp_path / "one", None)
    run_distributed(train_noting, world_size, settings, sharded, tmp_path / "many", None)
    assert ledger(tmp_path / "many") == ledger(tmp_path / "one")
    ((one,), (many,)) = history(tmp_path / "one"), history(tmp_path / "many")
    assert many["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.parametrize("seed", [1, 2])
def test_stopped_anywhere_on_two_and_continued_on_three_then_one_it_is_the_undisturbed_run(
    seed: int, sharded: Path, tmp_path: Path, undisturbed: Path
) -> None:
    first, second = sorted(random.Random(seed).sample(range(1, STEPS - 1), 2))
    assert run_distributed(train_noting, 2, windowed(), sharded, tmp_path, first) == [False] * 2
    assert run_distributed(train_noting, 3, windowed(loader_workers=seed - 1), sharded, tmp_path, second) == [False] * 3
    assert train_noting(0, 1, windowed(), sharded, tmp_path, None)
    assert ledger(tmp_path) == ledger(undisturbed)
    assert weights(tmp_path) == weights(undisturbed)
    assert [r["samples"] for r in history(tmp_path)] == [96] * 3
