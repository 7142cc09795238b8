"""What an epoch used: images a second, where the time went, memory, and the share of the device's peak arithmetic."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from raypaml.data.batches import Batch, Reader
from raypaml.runs.models import autocast
from raypaml.training.device_peaks import Arithmetic, peak_flops
from raypaml.training.estimate import measure
from raypaml.training.worker import Worker

Usage = dict[str, float | int | None]


def awaited(worker: Worker, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same batches; the seconds that the loop waits for them are added to the worker's."""
    source = iter(batches)
    while True:
        began = time.monotonic()
        batch = next(source, None)
        worker.data_seconds += time.monotonic() - began
        if batch is None:
            return
        yield batch


def epoch_usage(worker: Worker, totals: dict[str, float], seconds: float) -> Usage:
    """What goes into the epoch's record of what it used; every rank calls it, for they compare their memory.

    Args:
        worker: at the end of an epoch.
        totals: sums of the epoch over steps and ranks, by their names in `training.worker`.
        seconds: spent training in this epoch.

    Returns:
        `epoch_seconds`, `images_per_second` of all ranks together; `data_wait_share` and `collective_share` of the
        training time, 0..1, means over ranks; `peak_memory_bytes` of the rank that used most, on a GPU what torch
        allocated in this epoch, on the CPU the most that the process ever held; `model_flop_utilisation`, 0..1, see
        `_utilisation`. None where a figure is not known.
    """
    together = totals["rank_seconds"]
    return {
        "epoch_seconds": round(seconds, 3),
        "images_per_second": totals["samples"] / max(seconds, 1e-9),
        "data_wait_share": _share(totals["data_seconds"], together),
        "collective_share": _share(totals["collective_seconds"], together),
        "peak_memory_bytes": int(worker.ranks.gather(np.array([_take_peak_memory(worker.ranks.device)])).max()),
        "model_flop_utilisation": _utilisation(worker, totals["samples"], together),
    }


def _share(part: float, whole: float) -> float | None:
    """Part of whole; None where an earlier version, which did not count them, began the epoch."""
    return None if math.isnan(whole) or not whole else part / whole


def _take_peak_memory(device: torch.device) -> int:
    """Bytes, at most, since the last call on a GPU, ever on the CPU."""
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return most
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _utilisation(worker: Worker, samples: float, together: float) -> float | None:
    """Operations that training these samples takes, over those that the devices could have done in this time.

    What is computed twice, such as the first pass of micro batches, counts once. (PaLM, 2022, appendix B.)
    """
    device = worker.ranks.device
    peak = peak_flops(torch.cuda.get_device_name(device), _arithmetic(worker)) if device.type == "cuda" else None
    if peak is None or math.isnan(together) or not together:
        return None
    return _flops_an_image(worker) * samples / (together * peak)


def _flops_an_image(worker: Worker) -> int:
    index, skip = worker.data.splits["train"], worker.config.data.skip_budget > 0
    height, width, _ = Reader(worker.data.shards, index, (), skip_broken=skip).shape
    shape = measure(worker.config.model.backbone, len(worker.data.vocabulary), height, width, torch.float32)
    return shape.training_flops(frozen=worker.model.frozen, kept=bool(worker.features))


def _arithmetic(worker: Worker) -> Arithmetic:
    """What the backbone's convolutions are to compute in; a GPU without TF32 takes float32 instead."""
    device = worker.ranks.device
    with autocast(worker.config.optim.precision, device):
        if torch.is_autocast_enabled(device.type):
            return "bfloat16"
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return "tf32" if convolutions.fp32_precision == "tf32" else "float32"
