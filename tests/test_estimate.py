"""What --plan says, beside what a real model has, keeps and takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from raypaml.config import TrainConfig
from raypaml.data.data_folder import open_folder
from raypaml.recipes import recipe
from raypaml.runs.models import build_model
from raypaml.train import main
from raypaml.training.estimate import describe_estimate, estimate, measure
from raypaml.training.job import prepare_job
from raypaml.training.rejection_counts import nothing_was_rejected

CPU_STEP = """
import sys, torch, torchvision
from raypaml.losses.large_loss import large_loss
from raypaml.model.backbones import build_backbone
from raypaml.model.cam import CamClassifier

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

backbone, batch, classes, size = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(1)
torch.nn.functional.conv2d(torch.ones(1, 8, 8, 8, requires_grad=True), torch.ones(8, 8, 1, 1)).sum().backward()
before = peak()
model = CamClassifier(build_backbone(backbone), classes)
optimizer = torch.optim.Adam(model.parameters(), fused=True)
images = torch.zeros(batch, 3, size, size, dtype=torch.uint8)
labels = torch.full((batch, classes), -1, dtype=torch.int8)
for _ in range(2):  # from the second one on, Adam's moments are there from the start
    optimizer.zero_grad()
    large_loss(model(images), labels, "ll_r", 0.01)[0].backward()
    optimizer.step()
print(peak() - before)
"""


def config(data: Path, **values: Any) -> TrainConfig:
    return recipe("digits").override({"data": str(data), "device": "cpu"} | values)


@pytest.mark.parametrize("backbone", ["small", "resnet18"])
def test_parameters_and_map_are_those_of_the_model(backbone: str, tiny_digits: Path) -> None:
    settings = config(tiny_digits, backbone=backbone, reproducible=False)
    model = build_model(settings.model, 50)
    found = estimate(settings, open_folder(tiny_digits))
    assert found.shape.backbone_parameters == sum(weights.numel() for weights in model.backbone.parameters())
    assert found.shape.head_parameters == sum(weights.numel() for weights in model.head.parameters())
    with torch.no_grad():
        cam = model.cam(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert found.shape.grid == cam.shape[2:]
    assert (found.images, found.steps, found.part, found.at_once) == (96, 3, 16, 16)


def test_operations_are_those_of_the_network() -> None:
    """ResNet-50 at 224 px has 4.09e9 multiplications and additions, 2.05e6 of them in the classifier that it lost."""
    shape = measure("resnet50", 1000, 224, 224, torch.float32)
    assert shape.head_flops == 2 * 2048 * 1000 * 49
    assert shape.flops == pytest.approx(2 * 4.087e9, rel=0.005)


@pytest.mark.parametrize(
    ("backbone", "batch", "classes", "size"), [("resnet18", 16, 500, 160), ("resnet50", 8, 5000, 128)]
)
def test_memory_is_what_a_step_on_the_cpu_takes(
    backbone: str, batch: int, classes: int, size: int, tiny_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", CPU_STEP, backbone, str(batch), str(classes), str(size)]
    # every tensor apart from the heap, so that what is measured is tensors, not how glibc cuts its heap
    apart = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    measured = int(subprocess.run(command, capture_output=True, text=True, check=True, env=apart).stdout)
    data = open_folder(tiny_digits)
    monkeypatch.setattr(type(data.vocabulary), "__len__", lambda _: classes)
    monkeypatch.setattr("raypaml.data.batches.Reader._first_shape", lambda _: (size, size, 3))
    settings = config(tiny_digits, backbone=backbone, reproducible=False, global_batch_size=batch, lanes=1, workers=1)
    estimated = sum(estimate(settings, data).memory.values())
    assert 1 / 1.25 < estimated / measured < 1.25, (estimated / 2**20, measured / 2**20)


def test_options_that_take_or_save_memory(tiny_digits: Path) -> None:
    data = open_folder(tiny_digits)
    plain = config(tiny_digits, reproducible=False)

    def memory(**values: Any) -> int:
        return sum(estimate(plain.override(values), data).memory.values())

    assert (
        memory(micro_batch_size=4)
        < memory(precision="bfloat16")
        < memory()
        < memory(ema=0.9)
        < memory(reproducible=True)
    )
    assert memory(workers=4) < memory()
    shape = estimate(plain, data).shape
    weights = 4 * (shape.backbone_parameters + shape.head_parameters)
    assert memory() == memory(optimizer="adamw") == memory(optimizer="sgd") + weights
    assert memory(optimizer="sgd") == memory(optimizer="sgd", momentum=0.0) + weights
    once, twice = (estimate(plain.override({"micro_batch_size": size}), data) for size in (0, 4))
    assert twice.flops == once.flops + once.shape.flops + once.shape.head_flops


def test_rejection_is_that_of_the_last_epoch(tiny_digits: Path) -> None:
    data = open_folder(tiny_digits)
    settings = config(tiny_digits, epochs=10, warmup_epochs=1, delta_rel=0.5)
    assert estimate(settings, data).most_rejected == 72  # 9 x 0.5 % of 32 x 50
    assert estimate(settings.override({"scheme": "ll_cp"}), data).most_rejected == 8
    assert estimate(settings.override({"scheme": "an"}), data).most_rejected == 0


def test_rejection_by_samples_rises_to_the_last_step_and_each_worker_rounds_its_own_part(tiny_digits: Path) -> None:
    data = open_folder(tiny_digits)
    settings = config(tiny_digits, epochs=10, warmup_epochs=1, delta_rel=0.5, schedule="samples")
    assert estimate(settings, data).most_rejected == 78  # (9 + 2/3) x 0.5 % of 32 x 50 = 77.3
    settings = config(tiny_digits, epochs=2, warmup_epochs=1, delta_rel=0.1, workers=4)
    assert estimate(settings, data).most_rejected == 2  # 0.1 % of 32 x 50 = 1.6
    assert estimate(settings.override({"rejection_scope": "rank"}), data).most_rejected == 4  # 0.4 in each of four


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"delta_rel": 0.0}, "ll_r rejects nothing in this whole run: delta_rel=0; it trains as scheme an does"),
        ({"warmup_epochs": 18}, "ll_r rejects nothing in this whole run: warmup_epochs=18 leaves none of epochs=18"),
        ({"scheme": "ll_cp_abs", "warmup_epochs": 20}, "ll_cp_abs rejects nothing in this whole run: warmup_epochs=20"),
        (
            {"scheme": "ll_cp", "delta_rel": 0.03, "rejection_rounding": "half_up"},
            "ll_cp rejects nothing in this whole run: delta_rel=0.03 % of 32 x 50 entries is rounded to 0 by half_up",
        ),
        ({"scheme": "ll_cp", "delta_rel": 0.03}, ""),
        ({"scheme": "ll_cp", "delta_rel": 0.04, "rejection_rounding": "half_up"}, ""),
        ({"scheme": "ll_r_abs", "delta_rel": 0.0}, ""),
        ({"scheme": "an", "delta_rel": 0.0}, ""),
    ],
)
def test_a_run_that_never_rejects_says_so_at_its_start_and_in_the_plan(
    values: dict[str, Any], why: str, tiny_digits: Path, tmp_path: Path
) -> None:
    settings = config(tiny_digits, storage=str(tmp_path), **values)
    said = list[str]()
    data = prepare_job(settings, said.append).data
    assert [line[: len(why)] for line in said if "rejects nothing" in line] == [why] * bool(why)
    found = estimate(settings, data)
    assert found.nothing_rejected.startswith(why)
    assert bool(found.nothing_rejected) == bool(why) == ("rejects nothing" in describe_estimate(settings, found))


@pytest.mark.parametrize(
    ("values", "epochs", "why", "remedy"),
    [
        ({"warmup_epochs": 18}, 18, "warmup_epochs=18 leaves none of epochs=18 that rejects", "a smaller --warmup"),
        ({"warmup_epochs": 6}, 4, "warmup_epochs=6 leaves none of epochs=4 that rejects", "for more --epochs"),
        ({"delta_rel": 0.0}, 18, "delta_rel=0", "give a larger --delta-rel"),
        (
            {"scheme": "ll_cp", "delta_rel": 0.03, "rejection_rounding": "half_up"},
            18,
            "delta_rel=0.03 % of 32 x 50 entries is rounded to 0 by half_up",
            "or --rejection-rounding up",
        ),
        (
            {"scheme": "ll_r_abs", "scheme_settings": "threshold=9"},
            18,
            "no loss of an unobserved entry exceeded the threshold, which begins at 9 and falls",
            "give a smaller threshold or a larger delta_abs",
        ),
        ({}, 18, "its settings do not tell why", ""),
        ({"scheme": "an"}, 18, "", ""),
    ],
)
def test_a_report_says_why_nothing_was_rejected_and_the_remedy(
    values: dict[str, Any], epochs: int, why: str, remedy: str, tiny_digits: Path
) -> None:
    said = nothing_was_rejected(config(tiny_digits, **values), open_folder(tiny_digits).splits["train"], epochs)
    assert why in said
    assert remedy in said
    assert bool(said) == bool(why)


def test_plan_prints_and_starts_nothing(
    tiny_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raypaml.cluster.launch.fit", None)
    runs = tmp_path / "runs"
    argv = ["digits", "--data", str(tiny_digits), "--storage", str(runs), "--plan", "--device", "cpu", "--workers", "2"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "parameters  100,594: backbone 94,144, head 6,450" in printed
    assert "96 an epoch, 3 steps of 32; 16 a step and worker, 16 at once" in printed
    assert "map         16 x 50 x 8 x 8: 200 KiB in float32 as a whole, of which 50 KiB of signs are kept" in printed
    assert not runs.exists()


def test_plan_says_how_large_kept_features_are(tiny_digits: Path) -> None:
    data = open_folder(tiny_digits)
    settings = config(tiny_digits, freeze_backbone=1)
    text = describe_estimate(settings, estimate(settings, data))
    assert f"features    {96 * 128 * 8 * 8 * 2 / 2**20:.0f} MiB of training images on disk" in text
    mirrored = settings.override({"flip": True})
    assert "features  " not in describe_estimate(mirrored, estimate(mirrored, data))


def test_plan_counts_what_loading_must_reach(tiny_digits: Path) -> None:
    settings = config(tiny_digits)
    found = estimate(settings, open_folder(tiny_digits))
    assert found.flops == found.shape.training_flops()
    (line,) = [line for line in describe_estimate(settings, found).splitlines() if " 0.1 TFLOP/s" in line]
    each = 1e11 / found.flops
    assert f"{2 * each:,.0f}" in line
    assert f"{each:,.0f}" in line


def test_plan_refuses_what_a_start_would(tiny_digits: Path) -> None:
    with pytest.raises(ValueError, match="workers=5: this run has 4 lanes"):
        main(["digits", "--data", str(tiny_digits), "--workers", "5", "--plan"])
