"""The canonical order: the same global batches for every number of workers, every sample exactly once."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raypaml.data.mixing import cache_bytes, mixing
from raypaml.data.plan import AT_ONCE, MAX_LANES, Part, Plan, check_world_size, default_lanes, pieces

quick = settings(deadline=None, max_examples=60, derandomize=True)


@st.composite
def plans(draw: Any) -> Plan:
    size = draw(st.integers(1, 160))
    lanes = draw(st.sampled_from([n for n in range(1, MAX_LANES + 1) if size % n == 0]))
    shards = draw(st.lists(st.integers(0, 90), min_size=1, max_size=12).filter(any))
    return Plan(
        num_samples=sum(shards),
        global_batch_size=size,
        lanes=lanes,
        seed=draw(st.integers(0, 2**31)),
        shuffle=draw(st.booleans()),
        window=draw(st.integers(0, 4)),
        shard_sizes=tuple(shards),
    )


@st.composite
def plans_and_worlds(draw: Any) -> tuple[Plan, int, int]:
    plan = draw(plans())
    return plan, draw(st.integers(0, 50)), draw(st.integers(1, plan.lanes))


def _by_step(plan: Plan, epoch: int, world_size: int) -> list[list[Part]]:
    """[step][rank] all parts of an epoch."""
    ranks = [plan.epoch(epoch, rank, world_size) for rank in range(world_size)]
    assert {len(parts) for parts in ranks} == {plan.steps}
    return [list(parts) for parts in zip(*ranks, strict=True)]


def _joined(parts: list[Part]) -> tuple[list[int], list[bool]]:
    return [int(r) for part in parts for r in part.rows], [bool(f) for part in parts for f in part.flip]


def flips(plan: Plan, epoch: int) -> np.ndarray[Any, Any]:
    """[N] the coin of each sample, read from one worker's parts."""
    coins = np.zeros(plan.num_samples, bool)
    for part in plan.epoch(epoch, 0, 1):
        coins[part.rows] = part.flip
    return coins


@quick
@given(plans_and_worlds())
def test_every_sample_is_seen_exactly_once_per_epoch(case: tuple[Plan, int, int]) -> None:
    plan, epoch, world_size = case
    seen = [row for parts in _by_step(plan, epoch, world_size) for row in _joined(parts)[0]]
    assert sorted(seen) == list(range(plan.num_samples))


@quick
@given(plans_and_worlds())
def test_ranks_together_give_the_global_batches_of_one_worker(case: tuple[Plan, int, int]) -> None:
    plan, epoch, world_size = case
    alone, together = _by_step(plan, epoch, 1), _by_step(plan, epoch, world_size)
    assert [_joined(parts) for parts in together] == [_joined(parts) for parts in alone]
    assert [len(parts[0].rows) for parts in alone[:-1]] == [plan.global_batch_size] * (plan.steps - 1)


@pytest.mark.parametrize("world_size", range(1, MAX_LANES + 1))
def test_the_global_batches_are_the_same_for_every_number_of_workers(world_size: int) -> None:
    plan = Plan(num_samples=333, global_batch_size=128, lanes=64, seed=5)
    order = plan.order(3).tolist()
    found = [_joined(parts)[0] for parts in _by_step(plan, 3, world_size)]
    assert found == [order[:128], order[128:256], order[256:]]


@quick
@given(plans_and_worlds())
def test_first_row_and_global_rows_place_each_part_in_its_batch(case: tuple[Plan, int, int]) -> None:
    plan, epoch, world_size = case
    for parts in _by_step(plan, epoch, world_size):
        batch = _joined(parts)[0]
        for part in parts:
            assert part.global_rows == len(batch)
            assert batch[part.first_row : part.first_row + len(part.rows)] == part.rows.tolist()


@quick
@given(plans_and_worlds())
def test_the_lanes_of_a_batch_do_not_depend_on_the_workers(case: tuple[Plan, int, int]) -> None:
    plan, epoch, world_size = case
    for parts, (alone,) in zip(_by_step(plan, epoch, world_size), _by_step(plan, epoch, 1), strict=True):
        assert [size for part in parts for size in part.lane_sizes] == list(alone.lane_sizes)
        assert [sum(part.lane_sizes) for part in parts] == [len(part.rows) for part in parts]
        assert len(alone.lane_sizes) == plan.lanes
        assert max(alone.lane_sizes) - min(alone.lane_sizes) <= (alone.global_rows % plan.lanes > 0)


@quick
@given(plans_and_worlds())
def test_flips_travel_with_the_sample_not_with_the_rank(case: tuple[Plan, int, int]) -> None:
    plan, epoch, world_size = case
    coin = flips(plan, epoch)
    for parts in _by_step(plan, epoch, world_size):
        for part in parts:
            assert part.flip.tolist() == coin[part.rows].tolist()


@quick
@given(plans_and_worlds())
def test_ranks_differ_by_at_most_one_lanes_share(case: tuple[Plan, int, int]) -> None:
    plan, epoch, world_size = case
    for parts in _by_step(plan, epoch, world_size):
        sizes = [len(part.rows) for part in parts]
        share = -(-parts[0].global_rows // plan.lanes)
        rounding = parts[0].global_rows % plan.lanes > 0  # the lanes of a short batch differ by one sample
        assert max(sizes) - min(sizes) <= share + rounding


@quick
@given(plans_and_worlds())
def test_ranks_own_neighbouring_lanes_and_none_is_left_without(case: tuple[Plan, int, int]) -> None:
    plan, _, world_size = case
    bounds = [plan.bounds(rank, world_size) for rank in range(world_size)]
    assert (bounds[0][0], bounds[-1][1]) == (0, plan.lanes)
    assert all(end == first for (_, end), (first, _) in pairwise(bounds))
    assert {end - first for first, end in bounds} <= {plan.lanes // world_size, -(-plan.lanes // world_size)}


@quick
@given(plans(), st.integers(0, 20))
def test_the_order_is_a_function_of_seed_and_epoch_alone(plan: Plan, epoch: int) -> None:
    again = replace(plan, global_batch_size=1, lanes=1, window=0)
    permuted = replace(plan, window=0)
    assert permuted.order(epoch).tolist() == again.order(epoch).tolist()
    assert flips(plan, epoch).tolist() == flips(again, epoch).tolist()
    assert plan.order(epoch).tolist() == replace(plan).order(epoch).tolist()


@pytest.mark.parametrize("window", [0, 2])
def test_epochs_and_seeds_differ_in_order_and_flips(window: int) -> None:
    base = Plan(num_samples=200, shard_sizes=(50, 70, 30, 50), global_batch_size=8, lanes=8, window=window)
    plans = [replace(base, seed=seed) for seed in (0, 1)]
    orders = {tuple(plan.order(epoch).tolist()) for plan in plans for epoch in range(5)}
    coins = {tuple(flips(plan, epoch).tolist()) for plan in plans for epoch in range(5)}
    assert len(orders) == len(coins) == 10
    share = np.mean([flips(plan, epoch).mean() for plan in plans for epoch in range(20)])
    assert 0.45 < share < 0.55


def test_without_shuffle_the_order_is_that_of_the_index() -> None:
    plan = Plan(num_samples=11, global_batch_size=4, lanes=2, shuffle=False)
    parts = [plan.epoch(7, rank, 2) for rank in range(2)]
    assert [part.rows.tolist() for part in parts[0]] == [[0, 1], [4, 5], [8]]
    assert [part.rows.tolist() for part in parts[1]] == [[2, 3], [6, 7], [9, 10]]
    assert [part.first_row for part in parts[1]] == [2, 2, 1]
    assert [part.global_rows for part in parts[1]] == [4, 4, 3]


def test_a_rank_may_be_empty_in_a_short_last_batch() -> None:
    plan = Plan(num_samples=9, global_batch_size=8, lanes=8)
    last = [plan.epoch(0, rank, 8)[-1] for rank in range(8)]
    assert sorted(len(part.rows) for part in last) == [0] * 7 + [1]
    assert {part.global_rows for part in last} == {1}


@pytest.mark.parametrize(
    ("num_samples", "size", "steps"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2), (8, 4, 2), (3, 1, 3)]
)
def test_the_last_batch_may_be_short(num_samples: int, size: int, steps: int) -> None:
    plan = Plan(num_samples=num_samples, global_batch_size=size, lanes=1)
    assert plan.steps == len(plan.epoch(0, 0, 1)) == steps


@pytest.mark.parametrize(
    ("size", "lanes"), [(1, 1), (32, 32), (48, 48), (64, 64), (96, 48), (256, 64), (67, 1), (130, 26)]
)
def test_default_lanes_is_the_largest_divisor_up_to_64(size: int, lanes: int) -> None:
    assert default_lanes(size) == lanes


@pytest.mark.parametrize("world_size", [0, -1, 9, 64])
def test_more_workers_than_lanes_are_refused_with_the_remedy(world_size: int) -> None:
    said = rf"workers={world_size}: this run has 8 lanes, and every worker needs one; use 1\.\.8 workers or"
    with pytest.raises(ValueError, match=said):
        check_world_size(world_size, 8)
    with pytest.raises(ValueError, match=said):
        Plan(num_samples=10, global_batch_size=8, lanes=8).epoch(0, 0, world_size)


@pytest.mark.parametrize("lanes", [3, 64])
def test_lanes_that_do_not_divide_the_batch_are_refused(lanes: int) -> None:
    with pytest.raises(ValueError, match=rf"lanes={lanes}: must divide global_batch_size=32"):
        Plan(num_samples=10, global_batch_size=32, lanes=lanes)


# --- Any part of it alone -----------------------------------------------------------------------------------------


@quick
@given(plans_and_worlds(), st.data())
def test_a_part_is_the_same_asked_for_alone_first_or_last(case: tuple[Plan, int, int], data: Any) -> None:
    """Resuming at any step sees what reading from the start sees."""
    plan, epoch, world_size = case
    rank = data.draw(st.integers(0, world_size - 1))
    step = data.draw(st.integers(0, plan.steps - 1))
    from_the_start = list(plan.epoch(epoch, rank, world_size))
    resumed = plan.epoch(epoch, rank, world_size)[step:]
    for one, other in zip(resumed, from_the_start[step:], strict=True):
        assert (one.rows.tolist(), one.flip.tolist()) == (other.rows.tolist(), other.flip.tolist())
        assert (one.first_row, one.global_rows, one.lane_sizes) == (
            other.first_row,
            other.global_rows,
            other.lane_sizes,
        )


@quick
@given(st.integers(0, 5000), st.integers(1, 64))
def test_loader_threads_take_every_sample_of_a_part_once_in_pieces_for_all(rows: int, loader_workers: int) -> None:
    found = pieces(rows, loader_workers)
    assert [position for piece in found for position in piece] == list(range(rows))
    assert all(1 <= len(piece) <= AT_ONCE for piece in found)
    assert len(found) >= min(loader_workers, rows) // 2
    assert len({len(piece) for piece in found[:-1]}) <= 1


def test_steps_outside_the_epoch_are_no_parts() -> None:
    parts = Plan(num_samples=9, global_batch_size=4, lanes=4).epoch(0, 0, 1)
    assert parts[-1].rows.tolist() == parts[2].rows.tolist()
    for step in (3, -4):
        with pytest.raises(IndexError):
            parts[step]


# --- Windows --------------------------------------------------------------------------------------------------------


def windowed(window: int, *, shards: int = 40, epoch_seed: int = 0) -> Plan:
    sizes = np.random.default_rng(1).integers(20, 200, shards)
    return Plan(
        num_samples=int(sizes.sum()),
        shard_sizes=tuple(sizes.tolist()),
        global_batch_size=32,
        lanes=8,
        window=window,
        seed=epoch_seed,
    )


@quick
@given(plans_and_worlds())
@example((Plan(num_samples=640, shard_sizes=(300, 340), global_batch_size=2, lanes=1), 0, 1))
def test_every_shard_is_read_within_the_steps_announced_for_it(case: tuple[Plan, int, int]) -> None:
    plan, epoch, world_size = case
    shard_of = np.repeat(np.arange(len(plan.shard_sizes)), plan.shard_sizes)
    for rank in range(world_size):
        parts = plan.epoch(epoch, rank, world_size)
        spans = parts.spans()
        steps = {span.shard: range(span.first_step, span.last_step + 1) for span in spans}
        assert len(steps) == len(spans)
        assert [span.first_step for span in spans] == sorted(span.first_step for span in spans)
        for step, part in enumerate(parts):
            assert all(step in steps[shard] for shard in shard_of[part.rows].tolist())


@pytest.mark.parametrize("world_size", [1, 2, 5, 8])
def test_the_lanes_of_a_window_plan_hold_contiguous_runs_of_the_shards(world_size: int) -> None:
    """All workers together read little more than every shard once: only lanes' ends are read twice."""
    plan = windowed(4)
    read = [span.shard for rank in range(world_size) for span in plan.epoch(2, rank, world_size).spans()]
    assert set(read) == set(range(40))
    assert len(read) <= 40 + world_size - 1


def test_wider_windows_mix_better_and_a_permutation_best() -> None:
    shares = [mixing(windowed(window)).share for window in (1, 2, 4)]
    assert shares == sorted(shares, reverse=True)
    permuted = mixing(windowed(0))
    assert shares[-1] > permuted.share
    assert permuted.share == pytest.approx(permuted.permuted, rel=0.1)
    assert abs(permuted.excess) < 0.005
    in_order = replace(windowed(0), shuffle=False, global_batch_size=8)
    assert mixing(in_order).excess > 0.8


def test_mixing_by_brute_force() -> None:
    plan = windowed(2, shards=10)
    shard_of = np.repeat(np.arange(10), plan.shard_sizes)
    pairs = [
        (shard_of[a], shard_of[b])
        for part in plan.epoch(0, 0, 1)[:-1]
        for n, a in enumerate(part.rows)
        for b in part.rows[n + 1 :]
    ]
    assert mixing(plan).share == pytest.approx(np.mean([a == b for a, b in pairs]))


def test_the_cache_needed_grows_with_the_window_and_shrinks_with_the_workers() -> None:
    def needed(window: int, world_size: int) -> int:
        plan = windowed(window, shards=200)
        return max(cache_bytes(plan.epoch(0, r, world_size).spans(), [7] * 200) for r in range(world_size))

    assert needed(1, 1) < needed(2, 1) < needed(4, 1) < needed(0, 1) == 7 * 200
    assert needed(2, 4) < needed(2, 2) < needed(2, 1)
    assert cache_bytes([], []) == 0


def test_a_negative_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shuffle_window=-1: must be at least 0"):
        Plan(num_samples=3, global_batch_size=1, lanes=1, window=-1)
