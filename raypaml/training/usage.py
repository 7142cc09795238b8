"""What an epoch used: its rate, what its time was spent on, memory, and the share of the device's peak arithmetic."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from raypaml.data.batches import Batch, Reader
from raypaml.runs.history import Usage
from raypaml.runs.models import autocast
from raypaml.training.device_peaks import Arithmetic, peak_flops
from raypaml.training.estimate import measure
from raypaml.training.worker import Worker


def awaited(worker: Worker, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Pass batches on, adding the seconds waited for each to the worker's `data_seconds`."""
    source = iter(batches)
    while True:
        began = time.monotonic()
        batch = next(source, None)
        worker.data_seconds += time.monotonic() - began
        if batch is None:
            return
        yield batch


def epoch_usage(worker: Worker, totals: dict[str, float], seconds: float) -> Usage:
    """What an epoch used, for its record; a collective, for ranks compare their memory.

    Args:
        worker: the worker at the end of the epoch.
        totals: sums of the epoch over steps and ranks, by their names in `training.worker`.
        seconds: the time spent training in this epoch.
    """
    together = totals["rank_seconds"]
    return {
        "epoch_seconds": round(seconds, 3),
        "images_per_second": totals["samples"] / max(seconds, 1e-9),
        "data_wait_share": _share(totals["data_seconds"], together),
        "collective_share": _share(totals["collective_seconds"], together),
        "peak_memory_bytes": int(worker.ranks.gather(np.array([peak_memory(worker.ranks.device, anew=True)])).max()),
        "model_flop_utilisation": _utilisation(worker, totals["samples"], together),
    }


def _share(part: float, whole: float) -> float | None:
    """The share of a part in the whole; None where an earlier version, which counted neither, began the epoch."""
    return None if math.isnan(whole) or not whole else part / whole


def peak_memory(device: torch.device, *, anew: bool = False) -> int:
    """Most bytes that this process held: on a GPU since its peak was last taken anew, on the CPU since it started."""
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        if anew:
            torch.cuda.reset_peak_memory_stats(device)
        return most
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _utilisation(worker: Worker, samples: float, together: float) -> float | None:
    """Operations that training these samples takes, over the devices' peak in the ranks' time `together`, 0..1.

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
    """The arithmetic of the backbone's convolutions as torch is set up; a GPU without TF32 uses float32 instead."""
    device = worker.ranks.device
    with autocast(worker.config.optim.precision, device):
        if torch.is_autocast_enabled(device.type):
            return "bfloat16"
    is_tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return "tf32" if is_tf32 else "float32"
