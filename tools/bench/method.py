"""Compares time and memory of the loss, the CAM head and the global selection with the published formulas.

    python tools/bench/method.py [--only loss,head,kept,selection]

It runs on a GPU where there is one; tools/bench/step.py measures whole training steps. The forms of one section run in
turns in one process. Memory is measured in a process of its own, and does not count the inputs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from raypaml.cli import Parser, run_command
from raypaml.labels import UNOBSERVED
from raypaml.losses.large_loss import large_loss
from raypaml.losses.selection import rejection_count, select
from raypaml.model.pooling import pooled_map
from raypaml.reports.tables import markdown

PROG = "python tools/bench/method.py"
CLASSES, CHANNELS, GRID, ROWS, RATE, ALPHA = 5_000, 2_048, 14, 256, 0.002, 5.0
KEPT_CLASSES, KEPT_GRID = 18, 7
RANKS, RANK_ROWS = 8, 32
SHARE_OBSERVED = 0.001
Run = Callable[[], object]


# --- The published formulas, written plainly --------------------------------------------------------------------------


def published_losses(logits: Tensor, targets: Tensor, rate: float, *, both: bool) -> Tensor:
    """Computes LL-R as the published code does.

    Args:
        logits: [B, K].
        targets: float [B, K] in {1, 0, -1 unobserved}.
        rate: share of all entries that is rejected, 0..1.
        both: also compute the losses of the flipped targets, as the published code does for every scheme.
    """
    unobserved, assumed = targets == UNOBSERVED, targets.clamp(min=0)
    losses = F.binary_cross_entropy_with_logits(logits, assumed, reduction="none")
    if both:
        F.binary_cross_entropy_with_logits(logits, (1 - assumed), reduction="none")
    hidden = unobserved * losses
    threshold = hidden.flatten().topk(rejection_count(rate, losses.numel())).values[-1]
    return torch.where(hidden < threshold, losses, torch.zeros_like(losses)).mean()


def published_logits(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    cam = F.conv2d(features, weight, bias)
    return torch.where(cam > 0, ALPHA * cam, cam).mean((-2, -1))


# --- The forms: each prepares its inputs and returns the function that is timed -------------------------------------


def labels_of(rows: int, device: str) -> Tensor:
    observed = torch.rand(rows, CLASSES) < SHARE_OBSERVED
    return torch.where(observed, torch.randint(0, 2, (rows, CLASSES)), UNOBSERVED).to(torch.int8).to(device)


def loss_run(name: str, device: str, rows: int) -> Run:
    torch.manual_seed(0)
    logits = (2 * torch.randn(rows, CLASSES) - 4).to(device).requires_grad_()
    labels = labels_of(rows, device)
    targets = labels.float()

    def run() -> object:
        if name == "ours":
            loss = large_loss(logits, labels, "ll_r", RATE, check_values=False)[0]  # published code checks nothing
        else:
            loss = published_losses(logits, targets, RATE, both=name == "published")
        return torch.autograd.grad(loss, logits)

    return run


def head_run(name: str, device: str, images: int) -> Run:
    """Returns forward and backward pass of the head, with the gradient that a backbone needs; bfloat16 on a GPU."""
    return _head_run(name, device, (images, CHANNELS, GRID, GRID), CLASSES, backbone_learns=True)


def kept_run(name: str, device: str, images: int) -> Run:
    """Returns forward and backward pass of the head on float16 features, as stored for a frozen backbone."""
    return _head_run(name, device, (images, CHANNELS, KEPT_GRID, KEPT_GRID), KEPT_CLASSES, backbone_learns=False)


def _head_run(name: str, device: str, size: tuple[int, ...], classes: int, *, backbone_learns: bool) -> Run:
    torch.manual_seed(0)
    learnt = torch.bfloat16 if device == "cuda" else torch.float32
    features = torch.randn(size).relu().to(device, learnt if backbone_learns else torch.float16)
    if backbone_learns and device == "cuda":
        features = features.to(memory_format=torch.channels_last)
    features.requires_grad_(backbone_learns)
    weight = (0.01 * torch.randn(classes, CHANNELS, 1, 1)).to(device).requires_grad_()
    bias = torch.zeros(classes, device=device, requires_grad=True)
    by_logits = torch.randn(size[0], classes, device=device) / (size[0] * classes)
    learns = (features, weight, bias) if backbone_learns else (weight, bias)

    def run() -> object:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            if name == "ours":
                positive, negative = pooled_map(features, weight, bias)
                logits = ALPHA * positive + negative
            elif name == "recomputed":
                logits = checkpoint(published_logits, features, weight, bias, use_reentrant=False)
            else:
                logits = published_logits(features.float(), weight, bias)
        return torch.autograd.grad(logits, learns, by_logits)

    return run


RUNS: dict[str, Callable[[str, str, int], Run]] = {"loss": loss_run, "head": head_run, "kept": kept_run}
NAMES = {
    "loss": ("published", "published, one matrix", "ours"),
    "head": ("published", "recomputed", "ours"),
    "kept": ("convolution, where, mean", "ours"),
}


# --- Measuring --------------------------------------------------------------------------------------------------------


def race(runs: dict[str, Run], repeats: int, device: str) -> dict[str, float]:
    """Returns the median seconds of each run; they run in turns, and the first turn is a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def extra_memory(run: Run, device: str) -> int:
    """Returns by how many bytes `run` raises the peak of memory above what is in use before it."""
    if device == "cuda":
        run()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (VmHWM) to what is in use now
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def memory_alone(section: str, name: str, device: str, size: int) -> int:
    """Returns `extra_memory` of a new process, whose tensors are mmapped, so that freed ones go back to the system."""
    command = [sys.executable, __file__, "--one", json.dumps([section, name, device, size])]
    apart = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=apart).stdout)


def run_one(section: str, name: str, device: str, size: int) -> None:
    RUNS[section](name, device, 1)()  # loads libraries and starts threads, with one image
    print(extra_memory(RUNS[section](name, device, size), device))


def compare(section: str, device: str, size: int, repeats: int) -> str:
    """Returns a table of time and memory, and their ratios to the first form of the section."""
    names = NAMES[section]
    seconds = race({name: RUNS[section](name, device, size) for name in names}, repeats, device)
    memory = {name: memory_alone(section, name, device, size) for name in names}
    first = names[0]
    rows = [
        [
            name,
            f"{seconds[name] * 1e3:,.1f}",
            f"{seconds[name] / seconds[first]:.2f}",
            f"{memory[name] / 2**20:,.0f}",
            f"{memory[name] / memory[first]:.2f}",
        ]
        for name in names
    ]
    return markdown([f"{section}, {size} images, {device}", "ms", "relative", "extra MiB", "relative"], rows, left=1)


# --- Global selection -------------------------------------------------------------------------------------------------


def _select_on_rank(rank: int, port: int, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    torch.manual_seed(rank)
    logits, labels = 2 * torch.randn(RANK_ROWS, CLASSES) - 4, labels_of(RANK_ROWS, "cpu")
    count = rejection_count(RATE, RANKS * RANK_ROWS * CLASSES)
    runs: dict[str, Run] = {
        "select": lambda: select(logits, labels, count, first_row=rank * RANK_ROWS, group=dist.group.WORLD),
        "alone": lambda: select(logits, labels, count),
        "head": head_run("ours", "cpu", RANK_ROWS),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for name, turns in {"select": 11, "alone": 11, "head": 2}.items():
        for _ in range(turns):
            dist.barrier()
            began = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - began)
    results.put((rank, {name: statistics.median(values[1:]) for name, values in seconds.items()}, 8 * count))
    dist.destroy_process_group()


def selection() -> str:
    """Returns a table of time and traffic of the selection over gloo processes, and of the head's two passes."""
    results, port = mp.get_context("spawn").SimpleQueue(), 29_000 + os.getpid() % 1000
    context = spawn(_select_on_rank, (port, results), nprocs=RANKS, join=False)
    by_rank = [results.get() for _ in range(RANKS)]
    context.join()
    slowest = {name: max(seconds[name] for _, seconds, _ in by_rank) for name in by_rank[0][1]}
    rows = [
        ["select over all ranks", f"{slowest['select'] * 1e3:,.1f}"],
        ["select among the rows of one rank", f"{slowest['alone'] * 1e3:,.1f}"],
        ["head, forward and backward (without backbone and optimizer)", f"{slowest['head'] * 1e3:,.0f}"],
    ]
    sent, share = by_rank[0][2], slowest["select"] / slowest["head"]
    table = markdown([f"{RANKS} gloo processes of {RANK_ROWS} x {CLASSES:,}, one thread each", "ms"], rows, left=1)
    return (
        f"{table}\n\nEach rank sends {sent:,} bytes and gathers {sent * RANKS:,}; the selection takes {share:.1%} of "
        "the head's time."
    )


def main() -> None:
    """Runs the sections that were asked for and prints their tables."""
    flags = Parser(prog=PROG, description=__doc__.split("\n")[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    usual = "loss,head,kept,selection"
    flags.add_argument("--only", default=usual, help=f"sections to measure [{usual}]")
    flags.add_argument("--repeats", type=int, default=7, help="measurements, of which the median counts [7]")
    flags.add_argument("--head-images", type=int, default=32, help="images of the batch for the head [32]")
    flags.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch on a CPU [all]")
    flags.add_argument("--one", help="measure this form in this process; used by the benchmark itself")
    asked = flags.parse()
    if asked.one:
        return run_one(*json.loads(asked.one))
    torch.set_num_threads(asked.threads)
    sections: dict[str, Callable[[], str]] = {
        "loss": lambda: compare("loss", device, ROWS, 3 * asked.repeats),
        "head": lambda: compare("head", device, asked.head_images, asked.repeats),
        "kept": lambda: compare("kept", device, asked.head_images, 3 * asked.repeats),
        "selection": selection,
    }
    unknown = [name for name in asked.only.split(",") if name not in sections]
    if unknown:
        raise ValueError(f"only={asked.only}: {unknown[0]!r} is not known; choose from {usual}")
    for name in asked.only.split(","):
        print(sections[name](), end="\n\n", flush=True)
    return None


if __name__ == "__main__":
    run_command(main, PROG)
