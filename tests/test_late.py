"""On a process group whose collectives return early, as NCCL's do: what ranks do with files still comes in order."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from raypaml.evaluation.parts import open_set
from raypaml.recipes import recipe
from raypaml.runs.ranks import Ranks
from raypaml.training import predict_best
from raypaml.training.loop import train
from tests.conftest import run_distributed

CPU = torch.device("cpu")


def times_of_barrier(rank: int, world_size: int) -> tuple[float, float]:
    """When this rank comes to a barrier, and when it goes on; rank 1 comes late."""
    ranks = Ranks.here(CPU)
    ranks.barrier()
    time.sleep(0.2 * rank)
    began = time.monotonic()
    ranks.barrier()
    return began, time.monotonic()


def test_a_barrier_waits_for_the_last() -> None:
    (_, went_on), (came_last, _) = run_distributed(times_of_barrier, 2, late=True)
    assert went_on > came_last


def train_here(rank: int, world_size: int, values: dict[str, Any], data: Path, run: Path) -> bool:
    """A run in which rank 0 is slow to predict the one part of the test split."""
    predict_part = predict_best.predict_part

    def slow(*args: Any) -> None:
        time.sleep(0.2)
        predict_part(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_best, "predict_part", slow)
        return train(recipe("digits").override({"epochs": 1} | values), data, run, CPU, lambda _: False)


@pytest.mark.parametrize("values", [{"freeze_backbone": 1}, {"reproducible": False, "checkpoint_steps": 1}], ids=str)
def test_ranks_exchange_files_in_order(values: dict[str, Any], tiny_digits: Path, tmp_path: Path) -> None:
    assert run_distributed(train_here, 2, values, tiny_digits, tmp_path, late=True) == [True, True]
    assert open_set(tmp_path / "predictions" / "test").samples == 40
    assert not (tmp_path / "features").exists()
