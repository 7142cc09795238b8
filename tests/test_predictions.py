"""Predictions: each observed entry once, whatever the number of workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raypaml.data.batches import Reader
from raypaml.data.data_folder import DataFolder, open_folder
from raypaml.data.plan import Plan
from raypaml.evaluation.predicting import Predictions, predict_split
from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED
from raypaml.metrics.average_precision import average_precision
from raypaml.model.backbones import small
from raypaml.model.cam import CamClassifier
from raypaml.runs.ranks import Ranks
from raypaml.settings import OptimConfig
from tests.conftest import run_distributed

CPU = torch.device("cpu")
COLUMNS = ("row", "class_index", "label", "P", "N")


def _team(rank: int = 0, world_size: int = 1) -> Ranks:
    return Ranks(rank, world_size, CPU, None)


def _model(alpha: float = 5.0) -> CamClassifier:
    torch.manual_seed(3)
    model = CamClassifier(small(), 50, alpha)
    torch.nn.init.normal_(model.head.weight)
    return model


def _predict(data: DataFolder, split: str, ranks: Ranks, lanes: int = 8, batch_size: int = 16) -> Predictions:
    return predict_split(
        _model(), data, split, ranks, optim=OptimConfig(), lanes=lanes, batch_size=batch_size, loader_workers=0
    )


def _some(seed: int, entries: int = 60, classes: int = 4) -> Predictions:
    rng = np.random.default_rng(seed)
    parts = rng.random((2, entries)).astype(np.float32)
    positive = rng.random(entries) < 0.4
    label = np.where(positive, POSITIVE, NEGATIVE).astype(np.int8)
    return Predictions(rng.integers(0, 40, entries), rng.integers(0, classes, entries), label, parts[0], -parts[1])


@pytest.fixture(scope="module")
def data(tiny_digits: Path) -> DataFolder:
    return open_folder(tiny_digits)


# --- Predicting ---------------------------------------------------------------------------------------------------


def _on_one_rank(rank: int, world_size: int, folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    ranks, data = Ranks.here(CPU), open_folder(folder)
    mine = _predict(data, "test", ranks)
    together = mine.gather(ranks)
    return [getattr(mine, name) for name in COLUMNS], [getattr(together, name) for name in COLUMNS]


@pytest.mark.usefixtures("one_thread")
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
    assert found.label.tolist() == labels[rows, classes].tolist()
    assert [getattr(found, name).dtype for name in COLUMNS] == [np.int64, np.int64, np.int8, np.float32, np.float32]


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
    predict_split(model, data, "test", _team(), optim=OptimConfig(), lanes=1, batch_size=40, loader_workers=0)
    assert model.training


# --- Average precision --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 5.0])
def test_ap_is_that_of_the_boosted_logits(alpha: float) -> None:
    found = _some(0)
    logits = np.float32(alpha) * found.P + found.N
    expected = average_precision(found.class_index, logits, found.label == POSITIVE, 6)
    np.testing.assert_array_equal(found.ap(alpha, 6), expected)
    assert np.isnan(expected).tolist() == [False] * 4 + [True] * 2


def test_alpha_changes_the_ranking() -> None:
    assert (_some(0).ap(1.0, 4) != _some(0).ap(5.0, 4)).any()


def test_alone_gather_gives_the_same_entries() -> None:
    found = _some(0)
    assert all((getattr(found.gather(_team()), name) == getattr(found, name)).all() for name in COLUMNS)
