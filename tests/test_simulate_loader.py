"""tools/bench/simulate_loader.py: its figures against counting by hand, and an index of its own that opens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raypaml.data.index import open_index
from raypaml.data.plan import Plan
from tools.bench.simulate_loader import dealt, shard_sizes, shares, simulate, write_big_index

SIZES = shard_sizes(3000, 20)


def plan(window: int) -> Plan:
    return Plan(
        num_samples=3000, global_batch_size=64, lanes=8, window=window, shard_sizes=tuple(SIZES.tolist()), seed=0
    )


def test_shards_are_uneven_and_hold_everything() -> None:
    assert SIZES.sum() == 3000
    assert SIZES.max() > 1.5 * SIZES.min() > 0


def test_a_row_says_what_counting_says() -> None:
    _, share, excess, by_rank, by_thread, read, cache = simulate(plan(2), 4, 2, 3)
    counts = [sum(len(part.rows) for part in plan(2).epoch(0, rank, 4)) for rank in range(4)]
    assert by_rank == f"{min(counts):,} to {max(counts):,}"
    assert sum(counts) == 3000
    low, high = (int(value) for value in by_thread.split(" to "))
    assert low <= 3000 / 12 <= high <= low + 16
    assert 0 < float(excess.rstrip("%")) < float(share.rstrip("%")) < 100
    assert 1 <= float(read.split(", ")[1]) < 2  # of the least: two nodes, a few shards read by both
    assert cache.endswith(" GB")


def test_a_permutation_makes_every_node_read_everything() -> None:
    found = simulate(plan(0), 4, 2, 3)
    assert found[0] == "permutation"
    assert found[5].endswith(", 2.000")
    assert abs(float(found[2].rstrip("%"))) < 0.5


def test_loader_threads_share_out_every_sample() -> None:
    assert dealt(np.array([32, 32, 7]), 4) == [17, 18, 18, 18]
    assert sum(dealt(np.array([100, 3]), 8)) == 103


@pytest.fixture
def big(tmp_path: Path) -> Path:
    write_big_index(tmp_path / "train.arrow", SIZES)
    return tmp_path / "train.arrow"


def test_the_index_it_writes_is_sound(big: Path) -> None:
    index = open_index(big)
    assert index.shard_sizes == tuple(SIZES.tolist())
    assert index.label_cells(np.array([0, 2999]))[1].tolist() == [1] * 6 + [0] * 10


def test_every_process_of_a_node_says_what_an_index_costs_it(big: Path) -> None:
    found = shares(big, 2, 2)
    assert found.shape == (2, 2)
    assert (found < 50).all()  # MB; the index has half of one
