"""Compares the augmentation of a whole batch with torchvision v2, image by image, on one CPU core or on a GPU.

    python tools/bench/augment.py [--device cuda] [--images 64] [--pixels 224] [--rounds 5]

Both start from uint8 images in memory, channels last, and return such a batch. They run in turns, and the median of
the rounds is reported. On the CPU, CPU time is measured, because other work on the machine disturbs it least.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torchvision.transforms.v2 as v2
from torch import Tensor

from raypaml.augmentation.augmentations import augmentation_of
from raypaml.augmentation.augmenting import augment
from raypaml.augmentation.draws import Draws

BILINEAR = v2.InterpolationMode.BILINEAR
GREY = [128.0] * 3


def theirs(name: str, pixels: int) -> v2.Transform:
    """Returns torchvision's closest counterpart of an augmentation of raypaml, for one image, without mirroring."""
    crop = v2.RandomResizedCrop(pixels, scale=(0.5, 1), antialias=True)
    randaugment = v2.RandAugment(interpolation=BILINEAR, fill=GREY)
    if name == "light":
        return v2.Compose([crop, v2.ColorJitter(0.4, 0.4, 0.4, 0.1)])
    if name == "strong":
        return v2.Compose([crop, randaugment, v2.RandomErasing(1.0, (0.06, 0.06), (1, 1))])
    return v2.Compose([v2.RandomErasing(1.0, (0.25, 0.25), (1, 1)), v2.RandomApply([randaugment], 0.5)])


def race(name: str, images: Tensor, rounds: int) -> tuple[float, float]:
    """Returns the images per second of torchvision and of raypaml."""
    record, transform = augmentation_of(name), theirs(name, images.shape[-1])

    def one_by_one(_epoch: int) -> Tensor:
        return torch.stack([transform(image) for image in images]).contiguous(memory_format=torch.channels_last)

    def together(epoch: int) -> Tensor:
        return augment(images, record, record.numbers(""), Draws(0, epoch, np.arange(len(images))))

    seconds: dict[Callable[[int], Tensor], list[float]] = {one_by_one: [], together: []}
    for epoch in range(rounds + 1):
        for call, taken in seconds.items():
            taken.append(timed(call, epoch, images.device))
    return tuple(len(images) / statistics.median(taken[1:]) for taken in seconds.values())  # type: ignore[return-value]


def timed(call: Callable[[int], Tensor], epoch: int, device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    began = clock()
    call(epoch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began


def extra_memory(name: str, images: Tensor) -> int:
    """Returns the peak GPU memory of raypaml's augmentation in bytes, without its input and its result."""
    record = augmentation_of(name)
    torch.cuda.reset_peak_memory_stats(images.device)
    before = torch.cuda.memory_allocated(images.device)
    augment(images, record, record.numbers(""), Draws(0, 0, np.arange(len(images))))
    return torch.cuda.max_memory_allocated(images.device) - before - images.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the batch is changed [cpu]")
    parser.add_argument("--images", type=int, default=64, help="images of a batch [64]")
    parser.add_argument("--pixels", type=int, default=224, help="height and width of the images [224]")
    parser.add_argument("--rounds", type=int, default=5, help="measurements, of which the median counts [5]")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = (flags.images, flags.pixels, flags.pixels, 3)
    images = torch.randint(0, 256, size, dtype=torch.uint8).to(flags.device).permute(0, 3, 1, 2)
    print(f"torch {torch.__version__}, {flags.device}, {flags.images} images of {flags.pixels} x {flags.pixels}")
    for name in ("asl", "light", "strong"):
        one_by_one, together = race(name, images, flags.rounds)
        memory = f", {extra_memory(name, images) / 1e6:,.0f} MB of extra memory" if flags.device == "cuda" else ""
        print(
            f"{name:<8} torchvision image by image {one_by_one:,.0f} images/s, raypaml {together:,.0f} images/s: "
            f"{together / one_by_one:.2f} times as fast{memory}"
        )


if __name__ == "__main__":
    main()
