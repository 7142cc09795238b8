"""Checks that training on this device is right: device, tests, a run stopped and continued, mAP, process group."""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from raypaml.config import TrainConfig
from raypaml.data.batches import Reader
from raypaml.data.data_folder import DataFolder, open_folder
from raypaml.data.digits import digits_folder
from raypaml.evaluation.predicting import predict_split
from raypaml.metrics.average_precision import mean_ap
from raypaml.model.cam import CamClassifier
from raypaml.recipes import recipe
from raypaml.runs.checkpoint import load_model, valid_checkpoints
from raypaml.runs.events import Event, StepReport
from raypaml.runs.models import build_model, placed, prepare_device, tested_checkpoint
from raypaml.runs.ranks import Ranks
from raypaml.runs.run_files import METRICS_FILE, MODEL
from raypaml.training.loop import train
from raypaml.training.step import settle, train_step
from raypaml.training.worker import build_worker
from tools.gpu.gpu_rows import Row

ROOT = Path(__file__).parents[2]
OLDEST_TORCH = (2, 10)
SCENES = {"train": 4096, "validation": 500, "test": 500}
SMALL_SCENES = {"train": 96, "validation": 40, "test": 40}
PYTEST = "[pytest]\nfilterwarnings = error\nmarkers = gpu: needs a CUDA device\n"
"""Settings of pytest, because those of pyproject.toml need plugins that a GPU machine may lack."""
SAME_LOSS = 0.05
"""Largest relative difference between the losses of two runs that differ only in rounding."""
SAME_MAP = {"float32": 0.001, "auto": 0.005}
"""Largest difference between the mAP of a model on two devices, by precision; on a GPU `auto` is bfloat16."""


def data_folder(asked: argparse.Namespace) -> Path:
    """Returns the folder of the embedded data set digits, with a few hundred images if --small."""
    return digits_folder(num_scenes=SMALL_SCENES if asked.small else SCENES)


def digits_config(asked: argparse.Namespace, **values: Any) -> TrainConfig:
    """Returns the configuration of a short digits run on the device of --device."""
    short = {"epochs": 2 if asked.small else 4, "warmup_epochs": 1, "delta_rel": 0.5, "workers": 1}
    return recipe("digits").override(short | {"device": asked.device} | values)


# --- Device -----------------------------------------------------------------------------------------------------------


def check_device(asked: argparse.Namespace) -> Iterator[Row]:
    """Checks Python, torch and the device itself."""
    assert not torch.cuda._is_in_bad_fork(), "the parent process has used CUDA, which a forked one cannot use then"
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    yield Row(
        "torch", "at least 2.10", f"{torch.__version__}, Python {platform.python_version()}", version >= OLDEST_TORCH
    )
    if asked.device == "cpu":
        yield Row("device", "the CPU, as asked", f"{platform.machine()}, {torch.get_num_threads()} threads", True)
        return
    facts = torch.cuda.get_device_properties(0)  # raises an error if there is no GPU
    kind = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    yield Row("device", "a CUDA device", kind, True)
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    yield Row("bfloat16", "yes", "yes" if has_bfloat16 else "no", has_bfloat16)
    product = torch.ones(256, 256, device="cuda") @ torch.ones(256, 256, device="cuda")
    yield Row("a matrix product on it", "256", f"{product[0, 0].item():g}", product[0, 0].item() == 256)


# --- Tests ------------------------------------------------------------------------------------------------------------


class Outcomes:
    """A plugin of pytest that records the outcome of every test."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.skipped: list[str] = []
        self.failed: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Pytest calls this after set-up, call and tear-down of every test."""
        name = report.nodeid.partition("::")[2]
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failed.append((name, str(crash.message if crash else report.longrepr).splitlines()[0]))
        elif report.skipped:
            self.skipped.append(name)
        elif report.when == "call":
            self.passed.append(name)


def check_tests(asked: argparse.Namespace) -> Iterator[Row]:
    """Runs `pytest -m gpu`; on a CPU all of its tests are skipped."""
    outcomes = Outcomes()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "pytest.ini"
        config.write_text(PYTEST)
        flags = ["-m", "gpu", "-c", str(config), "--rootdir", str(ROOT), "-p", "no:cacheprovider", "-p", "no:timeout"]
        code = pytest.main([*flags, str(ROOT / "tests" / "test_gpu.py")], plugins=[outcomes])
    counts = [len(outcomes.passed), len(outcomes.failed), len(outcomes.skipped)]
    passed, failed, skipped = counts
    if asked.device == "cpu":
        yield Row("pytest -m gpu", "all skipped", f"{skipped} skipped", skipped > 0 and not passed and not failed)
        return
    told = f"{passed} passed, {failed} failed, {skipped} skipped"
    yield Row("pytest -m gpu", "all pass", told, code == pytest.ExitCode.OK and passed > 0 and not skipped)
    for name, error in outcomes.failed:
        yield Row(name, "to pass", error, False)


# --- A run, stopped and continued -------------------------------------------------------------------------------------


def check_resume(asked: argparse.Namespace) -> Iterator[Row]:
    """Compares a digits run with one that is stopped in the middle and continued."""
    often = 1 if asked.small else 64  # steps: half an epoch; a run can only be stopped where it saves a checkpoint
    runs = {
        "reproducible": digits_config(asked, reproducible=True, checkpoint_steps=often),
        "with ema": digits_config(asked, reproducible=False, ema=0.9, checkpoint_steps=often),
    }
    for name, config in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            yield from _resumed(name, config, asked, Path(folder))


def _resumed(name: str, config: TrainConfig, asked: argparse.Namespace, folder: Path) -> Iterator[Row]:
    whole, parted = folder / "whole", folder / "parted"
    data, device = data_folder(asked), torch.device(asked.device)
    middle = config.optim.epochs // 2, config.run.checkpoint_steps

    def stop_in_the_middle(event: Event) -> bool:
        return isinstance(event, StepReport) and (event.epoch, event.step) >= middle

    assert train(config, data, whole, device, lambda _: False)
    stopped = not train(config, data, parted, device, stop_in_the_middle)
    yield Row(f"digits {name}: asked to stop", "stopped", "stopped" if stopped else "not stopped", stopped)
    assert train(config, data, parted, device, lambda _: False)
    one, other = history(whole), history(parted)
    fell = f"{one[0]['loss']:.4f} to {one[-1]['loss']:.4f}"
    yield Row(f"digits {name}: loss by epoch", "falls", fell, one[-1]["loss"] < one[0]["loss"])
    largest = largest_difference(final_weights(whole), final_weights(parted))
    if config.optim.reproducible:
        yield Row(f"digits {name}: continued", "bitwise equal weights", f"differ by {largest:.2g}", largest == 0)
        return
    relative = abs(one[-1]["loss"] / other[-1]["loss"] - 1)
    told = f"loss differs by {relative:.2%}, weights by {largest:.2g}"
    yield Row(f"digits {name}: continued", f"loss within {SAME_LOSS:.0%}", told, relative < SAME_LOSS)


def history(run: Path) -> list[dict[str, Any]]:
    """Returns the run's record of every epoch."""
    return [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]


def final_weights(run: Path) -> dict[str, Tensor]:
    """Returns the weights of the run's last checkpoint."""
    return load_file(valid_checkpoints(run / "checkpoints")[0][-1] / MODEL)


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Returns the largest absolute difference between two sets of weights."""
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


# --- Evaluation -------------------------------------------------------------------------------------------------------


def check_map(asked: argparse.Namespace) -> Iterator[Row]:
    """Compares this device with the CPU: the loss of a float32 training on each, and the mAP of the same weights."""
    exact = {"precision": "float32", "matmul_precision": "highest"}
    config, data = digits_config(asked, **exact), open_folder(data_folder(asked))
    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder) / "here", Path(folder) / "there"
        assert train(config, data.address, here, torch.device(asked.device), lambda _: False)
        assert train(config, data.address, there, torch.device("cpu"), lambda _: False)
        one, other = history(here)[-1]["loss"], history(there)[-1]["loss"]
        model = build_model(config.model, len(data.vocabulary))
        load_model(tested_checkpoint(here), model)
    told = f"{one:.5f} on this device, {other:.5f} on the CPU"
    yield Row("loss of the last epoch", f"within {SAME_LOSS:.0%}", told, abs(one / other - 1) < SAME_LOSS)
    wanted = validation_map(config, data, model, "cpu")
    for precision, tolerance in SAME_MAP.items():
        value = validation_map(config.override({"precision": precision}), data, model, asked.device)
        told = f"{100 * value:.3f} on this device, {100 * wanted:.3f} on the CPU"
        name, expected = f"validation mAP, precision {precision}", f"within {100 * tolerance:g} points"
        yield Row(name, expected, told, abs(value - wanted) < tolerance)


def validation_map(config: TrainConfig, data: DataFolder, model: CamClassifier, device: str) -> float:
    """Returns the mAP on the validation split, 0..1, computed on the device that is named."""
    ranks = Ranks(0, 1, torch.device(device), None)
    prepare_device(config.optim, ranks.device)
    entries = predict_split(
        placed(model, ranks.device),
        data,
        "validation",
        ranks,
        optim=config.optim,
        lanes=4,
        batch_size=128,
        loader_workers=0,
    )
    return float(mean_ap(entries.ap(config.model.alpha, len(data.vocabulary))))


# --- Process groups ---------------------------------------------------------------------------------------------------


def check_group(asked: argparse.Namespace) -> Iterator[Row]:
    """Compares a training step without a process group with one in a group of a single rank."""
    backend = "nccl" if asked.device == "cuda" else "gloo"
    alone = one_step(asked)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, f"file://{folder}/store", rank=0, world_size=1)
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                grouped = one_step(asked)
            ranks = Ranks.here(torch.device(asked.device))
            ranks.barrier()
            total = ranks.sum(torch.tensor([3.0]))
            rows = ranks.gather(np.arange(3))
        finally:
            dist.destroy_process_group()
    yield Row(f"{backend}, one rank: sum, gather", "3, [0 1 2]", f"{total.item():g}, {rows}", total.item() == 3)
    relative = ((alone - grouped).norm() / alone.norm()).item()
    yield Row(f"{backend}, one rank: gradient of a step", "as alone", f"differs by {relative:.2g}", relative < 1e-3)
    told = "; ".join(str(each.message).splitlines()[0] for each in said) or "none"  # such as DDP's about strides
    yield Row(f"{backend}, one rank: warnings", "none", told, not said)


def one_step(asked: argparse.Namespace) -> Tensor:
    """Returns the gradient of the head's weights after the first step of a run, as a tensor on the CPU."""
    config = digits_config(asked, reproducible=False, precision="float32")
    worker = build_worker(config, data_folder(asked), Path("nowhere"), torch.device(asked.device), lambda _: False)
    train_step(worker, Reader(worker.data.shards, worker.data.splits["train"], worker.plan.epoch(0, 0, 1))[0])
    settle(worker)
    gradient = worker.model.head.weight.grad
    assert gradient is not None
    return gradient.cpu()
