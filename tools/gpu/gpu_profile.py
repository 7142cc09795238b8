"""Looks in training steps, by torch.profiler, for waits of the host and changes of memory layout."""

from __future__ import annotations

import argparse
import itertools
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from raypaml.data.batches import Batch
from raypaml.training.step import settle, train_step
from raypaml.training.worker import Worker
from tools.gpu.gpu_rows import Row
from tools.gpu.gpu_speed import TARS_BATCH, first_batches, tars_config, tars_worker

STEPS, SMALL_STEPS, WARM_UP = 20, 2, 5
BATCHES = 4
"""Number of different batches that the steps use in turn."""
WINDOW = "profiled steps"
WAITS = re.compile(r"cuda(Stream|Device)Synchronize|cu(Stream|Ctx)Synchronize|cudaMemcpy|Memcpy.*Pageable.*")
"""Events in which the host waits for the device: synchronisation, and copies from or to memory that is not pinned."""
BOUNDED = re.compile(r"cu(da)?EventSynchronize")
"""Events in which the host waits for the step before; the device still has a step of work queued and is never idle."""
LAYOUTS = re.compile(r"(?!aten::).*(nchwToNhwc|nhwcToNchw|[Tt]ranspose).*")  # aten::transpose copies nothing


def measure_profile(asked: argparse.Namespace) -> Iterator[Row]:
    """Lists waits and changes of layout in training steps on shards; on a CPU there are no waits."""
    is_cuda, count = asked.device == "cuda", SMALL_STEPS if asked.small else STEPS
    with tempfile.TemporaryDirectory() as folder:
        worker = tars_worker(tars_config(asked, Path(folder), BATCHES * TARS_BATCH))
        batches = itertools.cycle(list(itertools.islice(first_batches(worker), 1 if asked.small else BATCHES)))
        tracer = profiled_steps(worker, batches, count)
        places = waiting_lines(worker, itertools.islice(batches, BATCHES)) if is_cuda else Counter[str]()
    if asked.out:
        tracer.export_chrome_trace(str(Path(asked.out) / "profile.json.gz"))
    names = inside(tracer)
    waits = Counter({name: times for name, times in names.items() if WAITS.fullmatch(name)})
    yield _row(f"goal: host waits in {count} profiled steps", waits, asked=is_cuda)
    yield _row(f"lines that wait, in {BATCHES} steps", places, asked=is_cuda)
    for what, pattern in (("waits for an event of the step before", BOUNDED), ("layouts changed", LAYOUTS)):
        seen = Counter({name: times for name, times in names.items() if pattern.fullmatch(name)})
        yield _row(f"{what}, in {count} steps", seen, asked=False)


def _row(what: str, seen: Counter[str], *, asked: bool) -> Row:
    told = ", ".join(f"{times} x {name[:70]}" for name, times in seen.most_common()) or "none"
    return Row(what, "none" if asked else "-", told, not seen if asked else None)


def profiled_steps(worker: Worker, batches: Iterator[Batch], count: int) -> profile:
    """Returns the trace of `count` steps, after a few steps of warm-up that are not traced."""
    is_cuda = worker.ranks.device.type == "cuda"
    for batch in itertools.islice(batches, WARM_UP if is_cuda else 1):
        train_step(worker, batch)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * is_cuda
    tracer = profile(activities=activities)
    with tracer:
        with record_function(WINDOW):
            for batch in itertools.islice(batches, count):
                train_step(worker, batch)
        if is_cuda:
            torch.cuda.synchronize()  # outside the window, so that this wait is not counted but all kernels are traced
    settle(worker)
    return tracer


def inside(tracer: profile) -> Counter[str]:
    """Counts the events of each name: those of the host that began within the window, and all of the device."""
    events = list(tracer.events())
    window = next(event for event in events if event.name == WINDOW).time_range
    return Counter(
        event.name
        for event in events
        if event.device_type != DeviceType.CPU or window.start <= event.time_range.start <= window.end
    )


def waiting_lines(worker: Worker, batches: Iterable[Batch]) -> Counter[str]:
    """Counts the lines of Python for which torch warns that the host waits for the GPU."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        for batch in batches:
            train_step(worker, batch)
        torch.cuda.set_sync_debug_mode("default")
    settle(worker)
    waits = (each for each in said if "called a synchronizing" in str(each.message))
    return Counter(f"{Path(each.filename).name}:{each.lineno}" for each in waits)
