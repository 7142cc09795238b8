"""Frozen backbones: the head learns alone, from features computed once, as it would from images."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from raypaml.config import TrainConfig
from raypaml.model.cam import CamClassifier
from raypaml.recipes import recipe
from raypaml.runs import kept_features
from raypaml.runs.checkpoint import valid_checkpoints
from raypaml.runs.events import Event, Message, StepReport
from raypaml.runs.feature_computing import check_common_folder
from raypaml.runs.ranks import Ranks
from raypaml.training.loop import train
from raypaml.training.worker import build_worker, enter_epoch
from tests.conftest import run_distributed

CPU = torch.device("cpu")
Events = list[Event]


def config(**values: Any) -> TrainConfig:
    short = {"epochs": 3, "freeze_backbone": 2, "warmup_epochs": 1, "delta_rel": 2.0, "lr": 1e-3}
    return recipe("digits").override(short | values)


def train_here(rank: int, world: int, settings: TrainConfig, data: Path, run: Path, stop_at: int | None = None) -> Any:
    """Train one rank; the events it reported."""
    torch.set_num_threads(1)
    events: Events = []

    def report(event: Event) -> bool:
        events.append(event)
        return isinstance(event, StepReport) and stop_at is not None and event.steps_done >= stop_at

    train(settings, data, run, CPU, report)
    return events


def final(run: Path) -> dict[str, Tensor]:
    return load_file(valid_checkpoints(run / "checkpoints")[0][-1] / "model.safetensors")


def digest(run: Path) -> str:
    newest = valid_checkpoints(run / "checkpoints")[0][-1]
    return hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def lines(events: Events) -> list[str]:
    return [event.text for event in events if isinstance(event, Message)]


@pytest.fixture(scope="module")
def cached(tiny_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("cached")
    train_here(0, 1, config(), tiny_digits, run)
    return run


def test_kept_features_train_as_images_do_with_the_same_rounding(
    cached: Path, tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rounding: features are kept in float16, 11 significant bits; the backbone's last bit may depend on what it
    takes at once."""
    of_images = CamClassifier.features

    def rounded(model: CamClassifier, images: Tensor) -> Tensor:
        found = of_images(model, images)
        return found.half().float() if model.frozen else found

    monkeypatch.setattr(CamClassifier, "features", rounded)
    train_here(0, 1, config(feature_cache="off"), tiny_digits, tmp_path)
    one, other = final(cached), final(tmp_path)
    for name, weights in one.items():
        torch.testing.assert_close(weights, other[name], rtol=1e-4, atol=1e-6, msg=name)
    for a, b in zip(history(cached), history(tmp_path), strict=True):
        assert a["rejected"] == b["rejected"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["validation_mean_ap"] == pytest.approx(b["validation_mean_ap"], abs=1e-3)


def test_without_rounding_losses_are_the_same_to_three_digits(cached: Path, tiny_digits: Path, tmp_path: Path) -> None:
    train_here(0, 1, config(feature_cache="off"), tiny_digits, tmp_path)
    losses = [record["loss"] for record in history(tmp_path)]
    assert [record["loss"] for record in history(cached)] == pytest.approx(losses, rel=1e-3)


def test_the_backbone_learns_only_when_it_is_free(tiny_digits: Path, tmp_path: Path) -> None:
    """BatchNorm's statistics included, in a backbone that has one, and dropout's masks are not drawn."""
    settings = config(backbone="shufflenet_v2_x0_5", reproducible=False, epochs=1, freeze_backbone=1)
    worker = build_worker(settings, tiny_digits, tmp_path, CPU, lambda _: False)
    start = {name: value.clone() for name, value in worker.model.backbone.state_dict().items()}
    train_here(0, 1, settings, tiny_digits, tmp_path / "frozen")
    frozen = final(tmp_path / "frozen")
    assert all(torch.equal(frozen[f"backbone.{name}"], value) for name, value in start.items())
    assert not torch.equal(frozen["head.weight"], worker.model.head.weight)
    train_here(0, 1, settings.override({"epochs": 2}), tiny_digits, tmp_path / "free")
    free = final(tmp_path / "free")
    changed = [name for name, value in start.items() if not torch.equal(free[f"backbone.{name}"], value)]
    assert len(changed) > 0.9 * len(start)


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_workers_computes_the_same_weights_to_the_bit(
    world_size: int, cached: Path, tiny_digits: Path, tmp_path: Path
) -> None:
    run_distributed(train_here, world_size, config(), tiny_digits, tmp_path)
    assert digest(tmp_path) == digest(cached)


def test_without_exact_gradients_two_workers_still_freeze_and_free(tiny_digits: Path, tmp_path: Path) -> None:
    settings = config(reproducible=False, scheme="an")
    train_here(0, 1, settings, tiny_digits, tmp_path / "one")
    run_distributed(train_here, 2, settings, tiny_digits, tmp_path / "two")
    losses = [record["loss"] for record in history(tmp_path / "one")]
    assert [record["loss"] for record in history(tmp_path / "two")] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("stop_at", [1, 4, 7])  # in both frozen epochs, and in the free one
def test_a_stopped_run_continues_exactly(stop_at: int, cached: Path, tiny_digits: Path, tmp_path: Path) -> None:
    settings = config(checkpoint_steps=1)
    train_here(0, 1, settings, tiny_digits, tmp_path, stop_at)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.npy")}
    assert len(kept) == (2 if stop_at < 6 else 0)
    events = train_here(0, 1, settings, tiny_digits, tmp_path)
    assert not any("GB to come" in line for line in lines(events))
    assert digest(tmp_path) == digest(cached)
    assert not (tmp_path / "features").exists()


def test_a_folder_is_shared_and_kept(tiny_digits: Path, tmp_path: Path) -> None:
    shared = str(tmp_path / "shared")
    first = train_here(0, 1, config(feature_cache=shared, epochs=1), tiny_digits, tmp_path / "a")
    assert "features of train: 0 of 1 parts are there, 0.00 GB to come as float16" in lines(first)[0]
    second = train_here(0, 1, config(feature_cache=shared, epochs=1, scheme="an"), tiny_digits, tmp_path / "b")
    assert not any("GB to come" in line for line in lines(second))
    train_here(0, 1, config(feature_cache=shared, epochs=1, seed=1), tiny_digits, tmp_path / "c")  # another backbone
    names = [path.name for path in Path(shared).rglob("*.npy")]
    assert sorted(names) == sorted(2 * [f"{split}-00000.npy" for split in ("train", "validation", "test")])


def test_mirrored_epochs_compute_their_features_again(tiny_digits: Path, tmp_path: Path) -> None:
    events = train_here(0, 1, config(flip=True, epochs=1), tiny_digits, tmp_path)
    assert not any("features" in line for line in lines(events))


def looks_for_features(folder: Path, *, common: bool) -> str:
    """What is said where the ranks have a folder in common, or each its own."""
    ranks = Ranks.here(CPU)
    mine = folder if common else folder / str(ranks.rank)
    mine.mkdir(exist_ok=True)
    optim = SimpleNamespace(feature_cache="run")
    job: Any = SimpleNamespace(ranks=ranks, folder=mine, paths=[mine / "a.npy"], config=SimpleNamespace(optim=optim))
    try:
        check_common_folder(job)
    except ValueError as error:
        return str(error)
    return ""


def folders_of_ranks(_rank: int, _world: int, folder: Path) -> list[str]:
    return [looks_for_features(folder, common=common) for common in (True, False)]


def test_nodes_that_see_only_their_own_disks_are_told(tmp_path: Path) -> None:
    for common, apart in run_distributed(folders_of_ranks, 2, tmp_path):
        assert common == ""
        assert "feature_cache=run: 1 of 2 workers do not see what rank 0 writes to" in apart
    assert not list(tmp_path.rglob(".seen-*"))


def test_features_are_read_by_sample(tmp_path: Path) -> None:
    values = np.arange(600 * 2, dtype=np.float16).reshape(600, 2, 1, 1)
    kept = kept_features.Features([values[:256], values[256:512], values[512:]])
    rows = np.array([599, 0, 255, 256, 511, 512, 0])
    assert torch.equal(kept.take(rows), torch.from_numpy(values[rows]))
    assert kept.take(rows[:0]).shape == (0, 2, 1, 1)


def test_a_disk_without_room_is_refused_before_anything_is_computed(
    tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    message = (
        r"feature_cache: features of train need 0\.00 GB, 0\.00 GB are free at .*features.*; give --feature-cache a"
    )
    with pytest.raises(ValueError, match=message):
        train_here(0, 1, config(), tiny_digits, tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


def test_features_beyond_float16_are_refused(tiny_digits: Path, tmp_path: Path) -> None:
    worker = build_worker(config(), tiny_digits, tmp_path, CPU, lambda _: False)
    worker.model.backbone[2][1].bias.data[:] = 1e5
    with pytest.raises(ValueError, match=r"a feature is beyond float16's 65,504; use --feature-cache off"):
        enter_epoch(worker)


def test_batch_norm_is_reproducible_where_it_never_learns(tiny_digits: Path, tmp_path: Path) -> None:
    settings = config(backbone="shufflenet_v2_x0_5", epochs=1, freeze_backbone=1)
    train_here(0, 1, settings, tiny_digits, tmp_path / "one")
    run_distributed(train_here, 2, settings, tiny_digits, tmp_path / "two")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    with pytest.raises(ValueError, match=r"is a BatchNorm, .*or --freeze-backbone for all epochs"):
        build_worker(settings.override({"epochs": 2}), tiny_digits, tmp_path, CPU, lambda _: False)
