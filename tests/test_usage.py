"""What an epoch used: measured where it can be, and nothing where it is not known."""

from __future__ import annotations

import gzip
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from raypaml.collectives import CLOCK
from raypaml.model.backbones import build_backbone
from raypaml.runs.events import Event
from raypaml.training import loop, usage
from raypaml.training.device_peaks import TFLOPS, peak_flops
from raypaml.training.epoch_record import add_up, by_name
from raypaml.training.estimate import measure
from tests.reported import text_of
from tests.test_loop import config, history, train_here

SLOW = 0.05


def test_each_epoch_has_its_own_rate_and_says_how_long_it_waited_for_data(
    tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = loop.Reader.batch

    def slow(reader: Any, number: int, **options: Any) -> Any:
        time.sleep(SLOW)
        return read(reader, number, **options)

    def validated(*args: Any, **options: Any) -> Any:
        with CLOCK.measuring(torch.device("cpu")):
            time.sleep(SLOW)
        return predict_split(*args, **options)

    predict_split = loop.predict_split
    monkeypatch.setattr(loop.Reader, "batch", slow)
    monkeypatch.setattr(loop, "predict_split", validated)
    settings = config(epochs=2, checkpoint_steps=1)
    assert not train_here(0, 1, settings, tiny_digits, tmp_path, 4)  # in the second epoch
    assert loop.train(settings, tiny_digits, tmp_path, torch.device("cpu"), lambda _: False, splits=())
    first, second = history(tmp_path)
    assert first["epoch_seconds"] == first["seconds"]
    assert second["epoch_seconds"] == pytest.approx(second["seconds"] - first["seconds"], abs=2e-3)
    for record in (first, second):
        assert record["images_per_second"] == pytest.approx(96 / record["epoch_seconds"], rel=0.01)
        assert 3 * SLOW / record["epoch_seconds"] <= record["data_wait_share"] < 1
        assert record["collective_share"] == 0  # those of validation are not of training
        assert record["model_flop_utilisation"] is None  # of a CPU nobody knows the peak
        assert record["peak_memory_bytes"] > 1e8


def test_an_epoch_that_an_earlier_version_began_says_nothing_of_shares() -> None:
    totals = by_name(add_up([10.0, 32.0, 0.0, 0.0, 0.0], [5.0, 64.0, 1.0, 0.0, 0.0, 2.0, 1.0, 0.5]))
    assert (totals["loss"], totals["samples"], totals["rejected"]) == (15.0, 96.0, 1.0)
    assert usage._share(totals["data_seconds"], totals["rank_seconds"]) is None
    assert add_up([], [1.0, 2.0]) == [1.0, 2.0]


def test_operations_are_those_of_a_count_by_hand() -> None:
    """A ResNet-18 at 224 px has 1.814 x 10^9 multiplications and additions (torchvision's own table says 1.81)."""
    classes, grid, channels = 10, 49, 512
    head = 2 * grid * channels * classes
    shape = measure("resnet18", classes, 224, 224, torch.float32)
    frozen = shape.training_flops(frozen=True)
    assert frozen - 2 * head == pytest.approx(2 * 1.8136e9, rel=1e-3)
    stem = 2 * 112 * 112 * 64 * 3 * 49  # whose images need no gradient
    learning = shape.training_flops()
    assert learning - 3 * head == pytest.approx(3 * 2 * 1.8136e9 - stem, rel=1e-3)


def test_counting_draws_no_numbers_of_the_run() -> None:
    before = torch.get_rng_state()
    measure.cache_clear()
    shape = measure("small", 5, 32, 32, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    kept = shape.training_flops(frozen=True, kept=True)
    assert kept == 2 * 2 * 5 * 4 * 4 * build_backbone("small").num_channels  # the head's alone
    assert kept < shape.training_flops(frozen=True) / 10
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),  # has no bfloat16
        ("NVIDIA L40", None),
        ("NVIDIA A10G", None),
        ("NVIDIA H20", None),
    ],
)
def test_peaks_are_those_of_the_very_device(name: str, tflops: float | None) -> None:
    assert peak_flops(name, "bfloat16") == (None if tflops is None else tflops * 1e12)
    assert all(rates["float32"] < 100 for rates in TFLOPS.values())


@pytest.mark.parametrize(
    ("name", "tflops"), [("Tesla T4", 8.1), ("Tesla V100-SXM2-16GB", 15.7), ("NVIDIA L4", 60), ("NVIDIA L40", None)]
)
def test_a_gpu_without_tf32_has_the_peak_of_float32(name: str, tflops: float | None) -> None:
    assert peak_flops(name, "tf32") == (None if tflops is None else tflops * 1e12)


def test_utilisation_is_the_work_over_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 images in 2 s of a GPU, each 10^12 operations, on a peak of 10^15: one twentieth."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(usage, "_arithmetic", lambda _: "bfloat16")
    monkeypatch.setattr(usage, "_flops_an_image", lambda _: 989_400_000_000)
    worker: Any = type("Worker", (), {"ranks": type("Ranks", (), {"device": torch.device("cuda")})})
    assert usage._utilisation(worker, 100, 2.0) == pytest.approx(0.05)
    assert usage._utilisation(worker, 100, math.nan) is None


def test_profile_leaves_a_trace_of_so_many_steps(tiny_digits: Path, tmp_path: Path) -> None:
    events = list[str]()

    def report(event: Event) -> bool:
        events.append(text_of(event))
        return False

    settings = config(epochs=1, profile=3, global_batch_size=8)
    assert loop.train(settings, tiny_digits, tmp_path, torch.device("cpu"), report, splits=())
    with gzip.open(tmp_path / "profile" / "rank-0.json.gz") as file:
        trace = json.load(file)
    steps = [one["name"] for one in trace["traceEvents"] if one["name"].startswith("ProfilerStep")]
    assert sorted(steps) == ["ProfilerStep#5", "ProfilerStep#6", "ProfilerStep#7"]
    assert "aten::convolution" in (tmp_path / "profile" / "rank-0.txt").read_text()
    assert any(event.startswith("wrote a trace") for event in events)
