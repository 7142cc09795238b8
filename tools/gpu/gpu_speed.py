"""Measures how fast training on this device is, without data loading and from shards, and compares it with goals."""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from raypaml.config import TrainConfig
from raypaml.data.batches import Batch, Reader, read
from raypaml.data.digits import digits_folder
from raypaml.recipes import recipe
from raypaml.runs.events import Event, LoopSignal, StepReport
from raypaml.runs.models import prepare_device
from raypaml.settings import OptimConfig
from raypaml.training.estimate import measure
from raypaml.training.loop import train
from raypaml.training.step import settle, train_step
from raypaml.training.worker import Worker, build_worker
from tools.bench.images import prepare
from tools.bench.method import CLASSES, RUNS, Run, extra_memory, race
from tools.bench.step import matrix_peak, step_run, type_name
from tools.gpu.gpu_checks import SMALL_SCENES
from tools.gpu.gpu_kernels import kernels_told
from tools.gpu.gpu_rows import Row

GOAL_OF_PEAK, GOAL_OF_PUBLISHED, GOAL_HEAD, GOAL_TARS = 0.45, 3.0, 0.05, 0.95
SIZES = (8, 32, 64)
PHOTOS, SAMPLES, TARS_BATCH = 32, 8192, 64
TARS_SECONDS = 20.0
"""Seconds that the end-to-end run is measured for; the loader alone gets half of them."""


def network(asked: argparse.Namespace) -> tuple[str, int]:
    """Returns backbone and image size: ResNet-101 at 448 px, or a tiny one at 64 px if --small."""
    return ("small", 64) if asked.small else ("resnet101", 448)


def sizes(asked: argparse.Namespace, usual: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the numbers of images per step to measure: `usual`, or 1 if --small."""
    return (1,) if asked.small else usual


def repeats(asked: argparse.Namespace) -> int:
    """Returns the number of timed runs, of which the median is reported."""
    return 1 if asked.small else 10


# --- Steps without data -----------------------------------------------------------------------------------------------


class Steps:
    """Rates of whole training steps on one device, also relative to the rate of a large matrix product on it."""

    def __init__(self, asked: argparse.Namespace):
        self.asked = asked
        self.backbone, self.pixels = network(asked)
        self.peak = matrix_peak(asked.device, 256 if asked.small else 0)
        self.flops = measure(self.backbone, CLASSES, self.pixels, self.pixels, torch.float32).training_flops()
        self.half = torch.bfloat16 if asked.device == "cuda" else torch.float32
        """The type that raypaml computes in by default on this device."""
        self.rates: dict[tuple[str, torch.dtype], float] = {}
        """The best rate in images per second, by form and type."""

    def rows(
        self,
        form: str,
        kind: torch.dtype,
        images: int,
        *,
        way: str = "",
        benchmark: bool = True,
        with_kernels: bool = False,
    ) -> Iterator[Row]:
        """Times one form of the step; if memory does not suffice, the row says so.

        Args:
            form: "published", or "ours" for raypaml.
            kind: float32, bfloat16 or float16.
            images: number of images per step.
            way: "compiled" or "CUDA graph", for the form "ours" alone; "" for neither.
            benchmark: the value of torch.backends.cudnn.benchmark.
            with_kernels: whether a second row lists the kinds of kernels.
        """
        settings = f"{type_name(kind)}, {f'{way}, ' if way else ''}"
        name = f"{form}, {settings}{images} images, cudnn.benchmark {'on' if benchmark else 'off'}"
        _prepare(self.asked.device, form, benchmark=benchmark)
        torch.compiler.reset()  # else torch would compile the second size with dynamic shapes
        try:
            run = step_run(form, kind, self._wanted(images, way), self.asked.device)
            yield Row(name, "-", self._time(run, form, kind, images), None)
            if with_kernels:
                yield Row(f"kernels of {name}", "-", kernels_told(run, self.asked.device), None)
            del run
        except torch.OutOfMemoryError:
            yield Row(name, "-", "out of memory", None)
        gc.collect()
        if self.asked.device == "cuda":
            torch.cuda.empty_cache()

    def _wanted(self, images: int, way: str) -> argparse.Namespace:
        compiled = "eager" if self.asked.small else "inductor"
        graph = "graph" if self.asked.device == "cuda" else ""
        backend = {"": "", "compiled": compiled, "CUDA graph": graph}[way]
        return argparse.Namespace(backbone=self.backbone, pixels=self.pixels, images=images, compile=backend)

    def _time(self, run: Run, form: str, kind: torch.dtype, images: int) -> str:
        rate = images / race({"": run}, repeats(self.asked), self.asked.device)[""]
        self.rates[form, kind] = max(rate, self.rates.get((form, kind), 0.0))
        told = f"{rate:,.1f} images/s, {rate * self.flops / self.peak:.0%} of peak"
        if self.asked.device == "cuda":
            told += f", {extra_memory(run, 'cuda') / 2**30:.1f} GiB"
        return told

    def goals(self, how: str) -> Iterator[Row]:
        """Compares the best of these rates with the goals; on a CPU float32 is used, and no goal has to be met."""
        is_cuda = self.asked.device == "cuda"
        best = self.rates.get(("ours", self.half), 0.0)
        share = best * self.flops / self.peak
        yield Row(
            f"goal: step without data, {how}", *_goal(share, GOAL_OF_PEAK, "{:.0%} of the measured peak", is_cuda)
        )
        ratio = best / self.rates.get(("published", torch.float32), float("inf"))
        yield Row(f"goal: ours, {how}", *_goal(ratio, GOAL_OF_PUBLISHED, "{:.2f} times published float32", is_cuda))


def _prepare(device: str, form: str, *, benchmark: bool = True) -> None:
    """Sets the precision of matrix products: raypaml's default, or torch's default for the published form."""
    optim = OptimConfig(matmul_precision="high" if form == "ours" else "torch", cudnn_benchmark=benchmark)
    prepare_device(optim, torch.device(device))


def _goal(value: float, least: float, text: str, counts: bool) -> tuple[str, str, bool | None]:
    return f"at least {text.format(least)}", text.format(value), value >= least if counts else None


def measure_steps(asked: argparse.Namespace) -> Iterator[Row]:
    """Measures the published form and raypaml in both types, with and without cudnn.benchmark; then the goals."""
    steps = Steps(asked)
    yield Row("matrix peak", "-", f"{steps.peak / 1e12:,.2f} TFLOP/s", None)
    for images, form, kind, benchmark in itertools.product(
        sizes(asked, SIZES), ("published", "ours"), dict.fromkeys((torch.float32, steps.half)), (True, False)
    ):
        yield from steps.rows(form, kind, images, benchmark=benchmark)
    yield from steps.goals("not compiled")


def measure_ways(asked: argparse.Namespace) -> Iterator[Row]:
    """Measures raypaml's step in bfloat16 and float16, and a small one with and without a CUDA graph."""
    steps, large, small = Steps(asked), sizes(asked, SIZES)[-1], sizes(asked, SIZES)[0]
    for kind in dict.fromkeys((steps.half, torch.float16 if asked.device == "cuda" else steps.half)):
        yield from steps.rows("ours", kind, large, with_kernels=True)
    for way in ("", "CUDA graph"):
        yield from steps.rows("ours", steps.half, small, way=way, with_kernels=True)


def measure_compiled(asked: argparse.Namespace) -> Iterator[Row]:
    """Compares raypaml's compiled step (bfloat16 on a GPU) with the published form in float32."""
    yield from _compiled(asked, sizes(asked, SIZES)[-1])


def measure_compiled_small(asked: argparse.Namespace) -> Iterator[Row]:
    """Measures compiled steps of few images, where launching the kernels takes longer than running them."""
    yield from _compiled(asked, sizes(asked, SIZES)[0])


def _compiled(asked: argparse.Namespace, images: int) -> Iterator[Row]:
    steps = Steps(asked)
    yield from steps.rows("published", torch.float32, images)
    yield from steps.rows("ours", steps.half, images, way="compiled", with_kernels=True)
    yield from steps.goals(f"compiled, {images} images")


def measure_head(asked: argparse.Namespace) -> Iterator[Row]:
    """Measures which share of a step's time head and loss take, forward and backward, and lists their kernels."""
    images, device = sizes(asked, (32,))[0], asked.device
    backbone, pixels = network(asked)
    _prepare(device, "ours")
    wanted = argparse.Namespace(backbone=backbone, pixels=pixels, images=images, compile="")
    half = torch.bfloat16 if device == "cuda" else torch.float32
    runs = {
        "head": RUNS["head"]("ours", device, images),
        "loss": RUNS["loss"]("ours", device, images),
        "step": step_run("ours", half, wanted, device),
    }
    seconds = race(runs, repeats(asked), device)
    share = (seconds["head"] + seconds["loss"]) / seconds["step"]
    told = f"{share:.1%}: {1e3 * seconds['head']:.2f} + {1e3 * seconds['loss']:.2f} of {1e3 * seconds['step']:.1f} ms"
    passed = share < GOAL_HEAD if device == "cuda" else None  # in a small network the head takes most of the time
    yield Row("goal: head and loss, share of a step", f"under {GOAL_HEAD:.0%}", told, passed)
    for name, run in runs.items():
        yield Row(f"kernels of the {name}", "-", kernels_told(run, device), None)


# --- End to end from tars ---------------------------------------------------------------------------------------------


def tars_config(asked: argparse.Namespace, work: Path, samples: int = SAMPLES) -> TrainConfig:
    """Returns the configuration of a run on `samples` generated images of 448 px; writes their shards into `work`."""
    if asked.small:
        data, size, threads = digits_folder(num_scenes=SMALL_SCENES), 16, 0
    else:
        data, size, threads = work / "shards", TARS_BATCH, os.cpu_count() or 1
        prepare(work, None, min(PHOTOS, samples), samples)
    ours = {"data": str(data), "backbone": network(asked)[0], "weights": "", "storage": str(work), "workers": 1}
    ours |= {"global_batch_size": size, "loader_workers": threads, "device": asked.device, "epochs": 3}
    return recipe("openimages_v3").override(ours | {"warmup_epochs": 1})


def tars_worker(config: TrainConfig) -> Worker:
    """Returns a worker that trains this run in this process."""
    return build_worker(config, config.data.data, Path("nowhere"), torch.device(config.run.device), lambda _: False)


def first_batches(worker: Worker) -> Iterator[Batch]:
    """Reads the batches of the first epoch as training does."""
    reader = Reader(worker.data.shards, worker.data.splits["train"], worker.plan.epoch(0, 0, 1), with_truth=True)
    pin = worker.ranks.device.type == "cuda"
    return read(reader, loader_workers=worker.config.data.loader_workers, pin_memory=pin)


def measure_tars(asked: argparse.Namespace) -> Iterator[Row]:
    """Compares a run that reads shards with the loader alone and with steps alone."""
    with tempfile.TemporaryDirectory() as folder:
        config = tars_config(asked, Path(folder))
        worker = tars_worker(config)
        loader, steps = loader_rate(worker), step_rate(worker, asked)
        del worker
        whole = run_rate(config, Path(folder) / "run", asked)
    share, counts = whole / min(loader, steps), asked.device == "cuda"
    told = f"{share:.2f}: {whole:,.0f} images/s; loader {loader:,.0f}, step without data {steps:,.0f}"
    yield Row(
        "goal: end to end from tars",
        f"at least {GOAL_TARS} of the lower rate",
        told,
        share >= GOAL_TARS if counts else None,
    )


def loader_rate(worker: Worker) -> float:
    """Measures images per second of reading alone, for an epoch or half of TARS_SECONDS, after the first batches."""
    batches = first_batches(worker)
    for _ in range(2):
        next(batches)
    began, images = time.perf_counter(), 0
    for batch in batches:
        images += len(batch.rows)
        if time.perf_counter() - began > TARS_SECONDS / 2:
            break
    return images / (time.perf_counter() - began)


def step_rate(worker: Worker, asked: argparse.Namespace) -> float:
    """Measures images per second of training steps on one and the same batch."""
    batch = next(first_batches(worker))
    count = 3 if asked.small else 30
    for _ in range(count // 3):
        train_step(worker, batch)
    settle(worker)
    began = time.perf_counter()
    for _ in range(count):
        train_step(worker, batch)
    settle(worker)
    worker.tally.tolist()  # waits for the device
    return count * len(batch.rows) / (time.perf_counter() - began)


def run_rate(config: TrainConfig, run: Path, asked: argparse.Namespace) -> float:
    """Returns the median of the images per second that a run reports for its steps, without the first two."""
    rates: list[float] = []
    began = time.monotonic()

    def note(event: Event) -> LoopSignal:
        if isinstance(event, StepReport):
            rates.append(event.images_per_second)
        late = time.monotonic() - began > (0 if asked.small else TARS_SECONDS)
        return LoopSignal.STOP if late and len(rates) > 3 else LoopSignal.NOTHING

    train(config, config.data.data, run, torch.device(asked.device), note, splits=())
    return statistics.median(rates[2:] or rates)
