"""LL-Cp's overlay of corrected entries: across epochs, processes and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raypaml.data.index import Index, open_index
from raypaml.labels import POSITIVE, UNOBSERVED
from raypaml.losses.large_loss import large_loss, scheduled_rate
from raypaml.runs.corrections import Corrections
from raypaml.runs.ranks import Ranks
from raypaml.runs.transfer import HostCopy
from tests.conftest import run_distributed

K = 4
ALONE = Ranks(0, 1, torch.device("cpu"), None)


def unobserved(rows: int, classes: int = K) -> torch.Tensor:
    return torch.full((rows, classes), UNOBSERVED, dtype=torch.int8)


def mask(rows: int, *cells: tuple[int, int], classes: int = K) -> torch.Tensor:
    rejected = torch.zeros(rows, classes, dtype=torch.bool)
    for cell in cells:
        rejected[cell] = True
    return rejected


def corrected(*entries: int) -> Corrections:
    return Corrections(K, np.array(entries, np.int64))


def test_added_entries_take_effect_at_the_exchange_and_stay() -> None:
    overlay = Corrections(K)
    overlay.fresh.add(np.array([7, 2]), HostCopy.of(mask(2, (0, 1), (1, 3))))
    assert overlay.entries.tolist() == []
    overlay.exchange(ALONE)
    assert overlay.entries.tolist() == [2 * K + 3, 7 * K + 1]
    overlay.fresh.add(np.array([0, 2]), HostCopy.of(mask(2, (0, 0), (1, 3))))  # the second for the second time
    overlay.exchange(ALONE)
    overlay.exchange(ALONE)
    assert overlay.entries.tolist() == [0, 2 * K + 3, 7 * K + 1]


def test_apply_makes_exactly_the_entries_of_these_rows_positive() -> None:
    overlay = corrected(0, 1 * K + 3, 2 * K, 2 * K + 3, 4 * K)  # rows 0, 1, 2, 2, 4; first and last classes
    rows = np.array([2, 5, 3, 0, 2])
    labels = overlay.apply(unobserved(len(rows)), rows)
    assert (labels == POSITIVE).nonzero().tolist() == [[0, 0], [0, 3], [3, 0], [4, 0], [4, 3]]
    assert set(labels.unique().tolist()) == {UNOBSERVED, POSITIVE}


def test_apply_leaves_its_input_alone() -> None:
    labels = unobserved(1)
    assert corrected(1).apply(labels, np.array([0])).tolist() == [[UNOBSERVED, POSITIVE, UNOBSERVED, UNOBSERVED]]
    assert torch.equal(labels, unobserved(1))


def test_apply_to_no_rows_and_from_no_entries() -> None:
    assert corrected(1).apply(unobserved(0), np.empty(0, np.int64)).shape == (0, K)
    assert torch.equal(Corrections(K).apply(unobserved(3), np.arange(3)), unobserved(3))


def test_entries_beyond_32_bit_keep_apart() -> None:
    classes, row = 5000, 3_657_354
    overlay = Corrections(classes)
    overlay.fresh.add(np.array([row]), HostCopy.of(mask(1, (0, 4999), classes=classes)))
    overlay.exchange(ALONE)
    assert overlay.entries.tolist() == [row * 5000 + 4999]
    labels = overlay.apply(unobserved(2, classes), np.array([row, row + 1]))
    assert (labels == POSITIVE).nonzero().tolist() == [[0, 4999]]


# --- Across processes and files -----------------------------------------------------------------------------------


def exchange_and_read(rank: int, world_size: int, index: Path, overlay: Path) -> tuple[list[int], ...]:
    ranks = Ranks.here(torch.device("cpu"))
    ours = Corrections(K)
    ours.exchange(ranks)  # nobody has anything
    first = ours.entries.tolist()
    for _ in range(rank):  # rank 0 has nothing, rank 2 has two batches
        ours.fresh.add(np.array([10 * rank, 5]), HostCopy.of(mask(2, (0, rank), (1, 1))))
    ours.exchange(ranks)
    ours.exchange(ranks)
    return first, ours.entries.tolist(), Corrections.read(overlay, open_index(index)).entries.tolist()


def test_corrections_reach_other_processes_by_exchange_and_by_file(tiny_digits: Path, tmp_path: Path) -> None:
    """Published defect: the rewrite lived in the main process's memory and was lost to spawned or lasting workers."""
    index, overlay = tiny_digits / "train.arrow", tmp_path / "corrections.parquet"
    written = Corrections(50, np.array([4750, 3, 51]))
    written.write(overlay, open_index(index))
    found = run_distributed(exchange_and_read, 3, index, overlay)
    assert found == [([], [5 * K + 1, 10 * K + 1, 20 * K + 2], [3, 51, 4750])] * 3


@pytest.mark.parametrize("entries", [[], [0], [49, 50, 2047, 95 * 50 + 49]])
def test_written_corrections_read_back(tiny_digits: Path, tmp_path: Path, entries: list[int]) -> None:
    index = open_index(tiny_digits / "train.arrow")
    Corrections(50, np.array(entries, np.int64)).write(tmp_path / "c.parquet", index)
    again = Corrections.read(tmp_path / "c.parquet", index)
    assert again.entries.tolist() == entries
    assert again.entries.dtype == np.int64
    assert again.num_classes == 50


def test_corrections_follow_the_sample_key_and_not_its_row(tiny_digits: Path, tmp_path: Path) -> None:
    path = tiny_digits / "train.arrow"
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
        backwards = Index(table.take(list(reversed(range(96)))), path)  # the same samples, sharded in another order
        Corrections(50, np.array([2 * 50 + 7])).write(tmp_path / "c.parquet", open_index(path))
        assert Corrections.read(tmp_path / "c.parquet", backwards).entries.tolist() == [93 * 50 + 7]


def test_a_key_that_the_index_lacks_is_refused(tiny_digits: Path, tmp_path: Path) -> None:
    index = open_index(tiny_digits / "train.arrow")
    known = index.keys(np.array([0]))[0]
    table = pa.table({"key": [known, "stranger"], "class": pa.array([1, 2], pa.int32())})
    pq.write_table(table, tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"train\.arrow: 1 of 2 keys are not in this index, such as \['stranger'\]"):
        Corrections.read(tmp_path / "c.parquet", index)


# --- Defects of the published code of LL-Cp -------------------------------------------------------------------------

LOGITS = torch.linspace(-3, 3, 40).view(10, K)
ROWS = np.arange(10)


def rejected_by_epoch(scheme: str, epochs: int) -> list[set[int]]:
    """Rejected entries of each epoch over the same ten samples and logits, 5 % of 40 entries an epoch."""
    overlay, history = Corrections(K), []
    for epoch in range(epochs):
        labels = overlay.apply(unobserved(10), ROWS)
        _, rejected = large_loss(LOGITS, labels, scheme, scheduled_rate(scheme, 5, epoch=epoch))
        history.append(set(rejected.flatten().nonzero().flatten().tolist()))
        if scheme == "ll_cp":
            overlay.fresh.add(ROWS, HostCopy.of(rejected))
            overlay.exchange(ALONE)
    return history


def test_ll_cp_is_not_ll_ct() -> None:
    """`scheme is 'LL-Cp'` was never true: LL-Cp ran as LL-Ct, its rate rising and its corrections forgotten."""
    assert rejected_by_epoch("ll_ct", 4) == [set(), {38, 39}, {36, 37, 38, 39}, {34, 35, 36, 37, 38, 39}]
    assert rejected_by_epoch("ll_cp", 4) == [set(), {38, 39}, {36, 37}, {34, 35}]


def test_corrected_entries_leave_the_unobserved_ones() -> None:
    """A rewritten entry counts as observed positive; it is never corrected twice, and its loss is a positive's."""
    overlay = corrected(39)
    labels = overlay.apply(unobserved(10), ROWS)
    loss, rejected = large_loss(LOGITS, labels, "ll_cp", 1.0)
    assert rejected.sum() == 39
    assert not rejected[9, 3]
    torch.testing.assert_close(loss, torch.nn.functional.softplus(-LOGITS).mean())


@pytest.mark.parametrize("count", [1, 4])
def test_every_entry_corrected_in_the_loss_is_kept(count: int) -> None:
    """The loss took `>= threshold`, the rewrite `> threshold`: of k=1 nothing was kept, of k=4 three."""
    overlay = Corrections(K)
    overlay.fresh.add(ROWS, HostCopy.of(large_loss(LOGITS, unobserved(10), "ll_cp", count / 40)[1]))
    overlay.exchange(ALONE)
    assert overlay.entries.tolist() == list(range(40 - count, 40))
