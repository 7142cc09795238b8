"""Predictions: each observed entry once, whatever the number of workers; a part that is missing is missed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raypaml.data.batches import Reader
from raypaml.data.folder import DataFolder, open_folder
from raypaml.data.plan import Plan
from raypaml.labels import POSITIVE, UNOBSERVED, Vocabulary
from raypaml.metrics.average_precision import average_precision
from raypaml.model.backbones import small
from raypaml.model.cam import CamClassifier
from raypaml.training.distributed import Team
from raypaml.training.evaluation import Predictions, predict, read_parts, write_part
from tests.conftest import run_distributed

CPU = torch.device("cpu")
COLUMNS = ("row", "class_index", "positive", "P", "N")


def _team(rank: int = 0, world_size: int = 1) -> Team:
    return Team(rank, world_size, CPU, None)


def _model(alpha: float = 5.0) -> CamClassifier:
    torch.manual_seed(3)
    model = CamClassifier(small(), 50, alpha)
    torch.nn.init.normal_(model.head.weight)
    return model


def _predict(data: DataFolder, split: str, team: Team, lanes: int = 8, batch_size: int = 16) -> Predictions:
    return predict(_model(), data, split, team, lanes=lanes, batch_size=batch_size, loader_workers=0)


def _some(seed: int, entries: int = 60, classes: int = 4) -> Predictions:
    rng = np.random.default_rng(seed)
    parts = rng.random((2, entries)).astype(np.float32)
    positive = rng.random(entries) < 0.4
    return Predictions(rng.integers(0, 40, entries), rng.integers(0, classes, entries), positive, parts[0], -parts[1])


@pytest.fixture(scope="module")
def data(tiny_digits: Path) -> DataFolder:
    return open_folder(tiny_digits)


@pytest.fixture
def parts(data: DataFolder, tmp_path: Path) -> Path:
    """The predictions of two ranks for the test split."""
    for rank in range(2):
        write_part(tmp_path / "parts", _some(rank), data, "test", _team(rank, 2))
    return tmp_path / "parts"


# --- Predicting ---------------------------------------------------------------------------------------------------


def _on_one_rank(rank: int, world_size: int, folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    team, data = Team.here(CPU), open_folder(folder)
    mine = _predict(data, "test", team)
    together = mine.gather(team)
    return [getattr(mine, name) for name in COLUMNS], [getattr(together, name) for name in COLUMNS]


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """As in the processes of run_distributed: the number of threads may move a float's last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
def test_three_processes_gather_the_entries_of_one_to_the_bit(data: DataFolder, tiny_digits: Path) -> None:
    alone = _predict(data, "test", _team())
    ranks = run_distributed(_on_one_rank, 3, tiny_digits)
    mine = [set(own[0].tolist()) for own, _ in ranks]
    assert sorted(row for rows in mine for row in rows) == list(range(40))  # each sample on exactly one rank
    order = np.lexsort((alone.class_index, alone.row))
    for _, together in ranks:
        gathered = Predictions(*together)
        back = np.lexsort((gathered.class_index, gathered.row))
        for name in COLUMNS:
            ours, theirs = getattr(alone, name)[order], getattr(gathered, name)[back]
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("split", ["train", "test"])
def test_exactly_the_observed_entries_are_predicted(data: DataFolder, split: str) -> None:
    found = _predict(data, split, _team())
    index = data.splits[split]
    labels = index.labels(np.arange(len(index)))
    rows, classes = np.nonzero(labels != UNOBSERVED)
    assert found.row.tolist() == rows.tolist()
    assert found.class_index.tolist() == classes.tolist()
    assert found.positive.tolist() == (labels[rows, classes] == POSITIVE).tolist()
    assert [getattr(found, name).dtype for name in COLUMNS] == [np.int64, np.int64, np.bool_, np.float32, np.float32]


def test_the_parts_give_the_models_own_logits(data: DataFolder) -> None:
    found = _predict(data, "validation", _team(), batch_size=40)
    model = _model(alpha=3.0)
    index = data.splits["validation"]
    plan = Plan(num_samples=40, global_batch_size=40, lanes=1, shuffle=False)
    with torch.inference_mode():
        logits = model(Reader(data.path, index, plan.epoch(0, 0, 1))[0].images).numpy()
    np.testing.assert_allclose(
        np.float32(3) * found.P + found.N, logits[found.row, found.class_index], rtol=1e-4, atol=1e-4
    )
    assert (found.P >= 0).all()
    assert (found.N <= 0).all()


def test_a_rank_whose_parts_are_all_empty_predicts_nothing(data: DataFolder) -> None:
    found = [_predict(data, "test", _team(rank, 64), lanes=64, batch_size=64) for rank in (0, 1, 63)]
    assert [len(np.unique(part.row)) for part in found] == [0, 1, 1]
    assert [getattr(found[0], name).dtype for name in COLUMNS] == [getattr(found[1], name).dtype for name in COLUMNS]


def test_predicting_leaves_the_model_in_training(data: DataFolder) -> None:
    model = _model()
    predict(model, data, "test", _team(), lanes=1, batch_size=40, loader_workers=0)
    assert model.training


# --- Average precision --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 5.0])
def test_ap_is_that_of_the_boosted_logits(alpha: float) -> None:
    found = _some(0)
    logits = np.float32(alpha) * found.P + found.N
    expected = average_precision(found.class_index, logits, found.positive, 6)
    np.testing.assert_array_equal(found.ap(alpha, 6), expected)
    assert np.isnan(expected).tolist() == [False] * 4 + [True] * 2


def test_alpha_changes_the_ranking() -> None:
    assert (_some(0).ap(1.0, 4) != _some(0).ap(5.0, 4)).any()


def test_alone_gather_gives_the_same_entries() -> None:
    found = _some(0)
    assert all((getattr(found.gather(_team()), name) == getattr(found, name)).all() for name in COLUMNS)


# --- Parts on disk ------------------------------------------------------------------------------------------------


def test_parts_come_back_whole_in_rank_order(parts: Path, data: DataFolder) -> None:
    names = [path.name for path in sorted(parts.iterdir())]
    assert names == ["part-00000-of-00002.parquet", "part-00001-of-00002.parquet"]
    table = read_parts(parts, data.vocabulary)
    assert table.schema.names == ["key", "class", "positive", "P", "N"]
    both = [_some(0), _some(1)]
    columns: dict[str, Any] = {
        "key": [key for part in both for key in data.splits["test"].keys(part.row)],
        "class": np.concatenate([part.class_index for part in both]).tolist(),
        "positive": np.concatenate([part.positive for part in both]).tolist(),
        "P": np.concatenate([part.P for part in both]).tolist(),
        "N": np.concatenate([part.N for part in both]).tolist(),
    }
    assert table.to_pydict() == columns


def test_a_part_without_entries_is_a_part(data: DataFolder, tmp_path: Path) -> None:
    for rank in range(2):
        write_part(tmp_path, _some(rank, entries=rank), data, "test", _team(rank, 2))
    assert len(read_parts(tmp_path, data.vocabulary)) == 1


def test_a_part_is_written_over_and_one_left_unfinished_is_passed_over(parts: Path, data: DataFolder) -> None:
    (parts / "part-00001-of-00002.unfinished").write_bytes(b"half")
    write_part(parts, _some(7, entries=5), data, "test", _team(0, 2))
    assert len(read_parts(parts, data.vocabulary)) == 5 + 60


@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_part_is_refused(parts: Path, data: DataFolder, rank: int) -> None:
    (parts / f"part-{rank:05d}-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=rf"{parts}: 1 files are not the 2 parts of one set; run the evaluation again"):
        read_parts(parts, data.vocabulary)


def test_parts_of_another_number_of_workers_are_refused(parts: Path, data: DataFolder) -> None:
    write_part(parts, _some(2), data, "test", _team(0, 3))
    with pytest.raises(ValueError, match=r"3 files are not the 2 parts of one set; run the evaluation again"):
        read_parts(parts, data.vocabulary)


def test_one_part_twice_in_place_of_another_is_refused(parts: Path, data: DataFolder) -> None:
    shutil.copy(parts / "part-00000-of-00002.parquet", parts / "part-00001-of-00002.parquet")
    with pytest.raises(ValueError, match=rf"{parts}: .*run the evaluation again"):
        read_parts(parts, data.vocabulary)


def test_parts_of_two_splits_are_refused(parts: Path, data: DataFolder) -> None:
    write_part(parts, _some(1), data, "validation", _team(1, 2))
    with pytest.raises(ValueError, match=rf"{parts}: .*run the evaluation again"):
        read_parts(parts, data.vocabulary)


def test_a_part_cut_short_is_refused(parts: Path, data: DataFolder) -> None:
    path = parts / "part-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"[Pp]arquet"):
        read_parts(parts, data.vocabulary)


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_parts_is_refused(tmp_path: Path, data: DataFolder, exists: bool) -> None:
    folder = tmp_path if exists else tmp_path / "nowhere"
    with pytest.raises(ValueError, match=rf"{folder}: no predictions; run the evaluation again"):
        read_parts(folder, data.vocabulary)


def test_predictions_of_another_vocabulary_are_refused(parts: Path, data: DataFolder) -> None:
    classes = data.vocabulary
    other = Vocabulary(
        class_ids=classes.class_ids[::-1],
        names=classes.names,
        train_positives=classes.train_positives,
        train_negatives=classes.train_negatives,
    )
    with pytest.raises(ValueError, match=rf"{parts}: predictions of another vocabulary than the data set's"):
        read_parts(parts, other)
