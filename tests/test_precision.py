"""In which precision a run evaluates and serves, and what it tells torch of its GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypaml.config import EARLIER, TrainConfig
from raypaml.data.data_folder import open_folder
from raypaml.data.plan import Plan
from raypaml.evaluation.predicting import Predictions, predict_steps
from raypaml.inference.classifier import Classifier
from raypaml.inference.model_card import Card
from raypaml.model.cam import CamClassifier
from raypaml.recipes import recipe
from raypaml.runs.kept_features import Features
from raypaml.runs.models import build_model, prepare_device
from raypaml.runs.run_folder import as_begun, check_same_run, claim, stored_config
from raypaml.settings import OptimConfig

CPU = torch.device("cpu")


def model_of(num_classes: int) -> CamClassifier:
    torch.manual_seed(0)
    return build_model(TrainConfig().model, num_classes)


def predicted(data: Path, **values: Any) -> Predictions:
    folder = open_folder(data)
    steps = Plan(num_samples=8, global_batch_size=8, lanes=2, shuffle=False).epoch(0, 0, 1)
    model = model_of(len(folder.vocabulary))
    return predict_steps(model, folder, "validation", steps, CPU, optim=OptimConfig(**values), loader_workers=0)


def test_evaluation_has_the_precision_of_the_run(tiny_digits: Path) -> None:
    exact, half = predicted(tiny_digits), predicted(tiny_digits, precision="bfloat16")
    assert not np.array_equal(exact.P, half.P)
    np.testing.assert_allclose(half.P, exact.P, rtol=0.05, atol=1e-3)
    asked = predicted(tiny_digits, precision="bfloat16", evaluation_precision="float32")
    np.testing.assert_array_equal(asked.P, exact.P)
    np.testing.assert_array_equal(asked.N, exact.N)


def card(optim: dict[str, Any]) -> Card:
    return Card(
        class_ids=["a", "b"],
        names=["a", "b"],
        vocabulary="",
        backbone="small",
        alpha=5.0,
        height=32,
        width=32,
        weights="",
        metrics={},
        origin={"config": {"optim": optim}},
    )


def test_kept_features_are_fetched_batch_by_batch_and_pooled_lane_by_lane(
    tiny_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, take, taken = open_folder(tiny_digits), Features.take, list[int]()

    def noted(features: Features, rows: NDArray[np.int64], **options: Any) -> Tensor:
        taken.append(len(rows))
        return take(features, rows, **options)

    monkeypatch.setattr(Features, "take", noted)
    model = model_of(len(folder.vocabulary))
    values = np.random.default_rng(0).normal(size=(20, model.head.in_channels, 2, 3)).astype(np.float16)
    steps = Plan(num_samples=20, global_batch_size=8, lanes=2, shuffle=False).epoch(0, 0, 1)
    options = {"optim": OptimConfig(), "loader_workers": 0, "features": Features([values]), "unobserved": True}
    found = predict_steps(model, folder, "validation", steps, CPU, **options)  # type: ignore[arg-type]
    assert taken == [8, 8, 4]
    pieces = [slice(0, 4), slice(4, 8), slice(8, 12), slice(12, 16), slice(16, 18), slice(18, 20)]
    lanes = [model.pooled_features(torch.from_numpy(values[piece]).float()) for piece in pieces]
    for part, wanted in zip((found.P, found.N), zip(*lanes, strict=True), strict=True):
        assert torch.equal(torch.from_numpy(part), torch.cat(wanted).detach().flatten())


def test_serving_has_the_precision_of_the_run_and_of_an_earlier_one_float32() -> None:
    pictures = list(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    new = {"precision": "bfloat16", "evaluation_precision": "run"}
    exact, earlier, half = (
        Classifier(model_of(2), card(optim)).logits(pictures) for optim in ({}, {"precision": "bfloat16"}, new)
    )
    np.testing.assert_array_equal(exact, earlier)
    assert half.dtype == np.float32
    assert not np.array_equal(exact, half)
    np.testing.assert_allclose(exact, half, rtol=0.05, atol=5e-3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ("high", True, True)),
        ({"matmul_precision": "highest", "cudnn_benchmark": False}, ("highest", False, False)),
        ({"matmul_precision": "high", "reproducible": True}, ("high", True, False)),
        (EARLIER, ("highest", True, False)),
    ],
)
def test_torch_is_told_how_a_gpu_computes(
    values: dict[str, Any], expected: tuple[str, bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", told.append)
    for name in ("allow_tf32", "benchmark"):
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    optim = TrainConfig().override(values).optim
    prepare_device(optim, CPU)
    assert told == []
    prepare_device(optim, torch.device("cuda"))
    assert (told[0], torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark) == expected


def test_a_run_begun_before_these_settings_goes_on_without_them(tiny_digits: Path, tmp_path: Path) -> None:
    data = open_folder(tiny_digits)
    config = recipe("digits").override({"data": str(tiny_digits), "storage": str(tmp_path), "name": "run"})
    assert as_begun(tmp_path / "run", config) == config  # there is no run yet
    claim(tmp_path / "run", config, data)
    assert as_begun(tmp_path / "run", config) == config
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    for group in record["config"].values():
        for name in EARLIER if isinstance(group, dict) else ():
            group.pop(name, None)
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    earlier = as_begun(tmp_path / "run", config)
    assert {name: earlier.flat()[name] for name in EARLIER} == EARLIER
    assert stored_config(tmp_path / "run") == earlier
    check_same_run(tmp_path / "run", earlier, data)
    asked = as_begun(tmp_path / "run", config.override({"matmul_precision": "highest"}))
    with pytest.raises(ValueError, match=r"started with matmul_precision=torch \(asked: highest\)"):
        check_same_run(tmp_path / "run", asked, data)
