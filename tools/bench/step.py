"""Compares whole training steps without data loading, raypaml's with the published form: speed and memory.

python tools/bench/step.py                                                  # needs a large GPU, such as an H200
python tools/bench/step.py --backbone resnet18 --pixels 64 --images 8      # to try it on a CPU
"""

from __future__ import annotations

import argparse
import io
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from raypaml.cli import Parser, run_command
from raypaml.losses.large_loss import large_loss
from raypaml.model.backbones import build_backbone
from raypaml.model.cam import CamClassifier
from raypaml.reports.tables import markdown
from raypaml.training.estimate import measure
from raypaml.training.gradients import lay_out_gradients
from tools.bench.method import (
    ALPHA,
    CLASSES,
    RATE,
    Run,
    extra_memory,
    labels_of,
    published_logits,
    published_losses,
    race,
)

PROG = "python tools/bench/step.py"


class Published(nn.Module):
    """The published form of the model: backbone, 1 x 1 convolution, BoostLU and spatial mean, all maps in memory."""

    def __init__(self, model: CamClassifier):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        head = self.model.head
        assert head.bias is not None
        return published_logits(self.model.features(images), head.weight, head.bias)


def step_run(form: str, kind: torch.dtype, asked: argparse.Namespace, device: str) -> Run:
    """Returns a training step that uses the same images each time.

    Args:
        form: "published", or "ours" for raypaml.
        kind: float32, or the type that autocast computes in; with float16 the loss is scaled.
        asked: `backbone`, `pixels`, `images`, and `compile`, which says how the network of form "ours" runs: a backend
            of torch.compile, "graph" for a CUDA graph, or "" for neither.
        device: "cuda" or "cpu".
    """
    torch.manual_seed(0)
    model: CamClassifier = CamClassifier(build_backbone(asked.backbone), CLASSES, ALPHA).to(device)
    ours = form == "ours"
    if ours and device == "cuda":
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True if ours else None)
    scaler = torch.amp.GradScaler(device, enabled=kind == torch.float16)
    images = torch.randint(0, 256, (asked.images, 3, asked.pixels, asked.pixels), dtype=torch.uint8).to(device)
    labels = labels_of(asked.images, device)
    targets = labels.float()
    network = _our_network(model, images, kind, asked.compile) if ours else Published(model)

    def run() -> object:
        with torch.autocast(device, kind, enabled=kind != torch.float32):
            logits = network(images)
        if ours:
            loss = large_loss(logits, labels, "ll_r", RATE, check_values=False)[0]
        else:
            loss = published_losses(logits.float(), targets, RATE, both=True)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        if ours:
            lay_out_gradients(model)
        scaler.step(optimizer)
        scaler.update()
        return None

    return run


def _our_network(model: CamClassifier, images: Tensor, kind: torch.dtype, way: str) -> Callable[..., Any]:
    if way == "graph":  # without autocast's cache, so that each replay converts the weights to half precision anew
        with torch.autocast("cuda", kind, enabled=kind != torch.float32, cache_enabled=False):
            return torch.cuda.make_graphed_callables(model, (images,))
    return torch.compile(model, dynamic=False, backend=way) if way else model


def type_name(kind: torch.dtype) -> str:
    """Returns the name of a type without its module, such as bfloat16."""
    return str(kind).removeprefix("torch.")


def matrix_peak(device: str, size: int = 0) -> float:
    """Measures the operations per second of a matrix product: bfloat16 on a GPU, float32 on a CPU.

    Args:
        device: "cuda" or "cpu".
        size: rows and columns of the matrices; 0 for 8192 on a GPU and 2048 on a CPU.
    """
    usual, kind = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    size = size or usual
    left, right = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    return 2 * size**3 / race({"": lambda: left @ right}, 10, device)[""]


def decode_rate(pixels: int) -> float:
    """Measures how many JPEG images per second one core decodes with Pillow; they are smooth noise at quality 90."""
    noise = np.random.default_rng(0).integers(0, 256, (pixels // 8, pixels // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((pixels, pixels), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return 1 / race({"": lambda: np.asarray(Image.open(io.BytesIO(file.getvalue())))}, 30, "cpu")[""]


def steps(asked: argparse.Namespace, device: str) -> str:
    """Returns a table of whole steps: images per second, memory, and share of the matrix peak."""
    flops = measure(asked.backbone, CLASSES, asked.pixels, asked.pixels, torch.float32).training_flops()
    peak, decoded = matrix_peak(device), decode_rate(asked.pixels)
    rows = []
    kinds = (torch.float32, torch.bfloat16) if device == "cuda" else (torch.float32,)
    for form, kind in itertools.product(("published", "ours"), kinds):
        run = step_run(form, kind, asked, device)
        seconds = race({"": run}, asked.repeats, device)[""]
        rate = asked.images / seconds
        memory = f"{extra_memory(run, device) / 2**30:.1f}" if device == "cuda" else "-"
        cells = [f"{rate:,.1f}", memory, f"{rate * flops / peak:.0%}", f"{rate / decoded:.1f}"]
        rows.append([f"{form}, {type_name(kind)}", *cells])
        del run
    name = f"{asked.backbone}, {asked.pixels} px, {asked.images} images, {CLASSES:,} classes, {device}"
    table = markdown([name, "images/s", "extra GiB", "of matrix peak", "cores to decode"], rows, left=1)
    return f"{table}\n\nMatrix peak {peak / 1e12:,.2f} TFLOP/s; one core decodes {decoded:,.0f} images/s."


def main() -> None:
    """Measures both forms in every type that the device computes in, and prints a table."""
    flags = Parser(prog=PROG, description=__doc__.split("\n")[0])
    flags.add_argument("--backbone", default="resnet101", help="backbone, as raypaml train names it [resnet101]")
    flags.add_argument("--pixels", type=int, default=448, help="height and width of the images [448]")
    flags.add_argument("--images", type=int, default=64, help="images of a step [64]")
    flags.add_argument("--repeats", type=int, default=10, help="steps, of which the median counts [10]")
    about = "compile raypaml's network with torch.compile"
    flags.add_argument("--compile", action="store_const", const="inductor", default="", help=about)
    print(steps(flags.parse(), "cuda" if torch.cuda.is_available() else "cpu"))


if __name__ == "__main__":
    run_command(main, PROG)
