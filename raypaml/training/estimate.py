"""What a run will need, estimated before it starts: parameters, map sizes, memory of a worker, images per second.

The figures are counted, not measured: the backbone runs once, forward and backward, on torch's meta device, which
computes shapes but no values.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raypaml.config import TrainConfig, lr_warmup_steps
from raypaml.counting import number_of
from raypaml.data.batches import Reader
from raypaml.data.data_folder import DataFolder
from raypaml.model.backbones import build_backbone
from raypaml.model.cam import CamClassifier
from raypaml.model.pooling import tile_images
from raypaml.recipes import otherwise_than_own
from raypaml.runs.kept_features import keeps_features
from raypaml.runs.models import check_images
from raypaml.runs.run_cost import hours_text
from raypaml.training.optimizers import moments
from raypaml.training.rejection_counts import most_rejected, nothing_rejected, plan_of, step_parts

FLOAT32 = 4
RATES = {"cuda": (50, 100, 200, 400), "cpu": (0.05, 0.1, 0.2, 0.4)}
"""Rates in TFLOP/s that a worker might sustain, by device."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes and operations of the network for one image."""

    backbone_parameters: int
    head_parameters: int
    num_channels: int
    num_classes: int
    grid: tuple[int, int]
    kept: int
    """Bytes that the backbone keeps for its backward pass."""
    largest: int
    """Bytes of the largest tensor that it keeps."""
    flops: int
    """Operations of the backbone's forward pass; a multiplication and an addition count as two."""
    backward_flops: int
    """Operations of the backbone's backward pass, which computes no gradient of the image."""

    @property
    def head_flops(self) -> int:
        """Operations of the head's forward pass, 2 h w D K; each of its two gradients takes as many again."""
        return 2 * math.prod(self.grid) * self.num_channels * self.num_classes

    def training_flops(self, *, frozen: bool = False, kept: bool = False) -> int:
        """Operations of training on one image, forward and backward.

        Args:
            frozen: whether only the head learns.
            kept: whether the features of the frozen backbone are kept, so that it is not called.
        """
        if frozen:
            return 2 * self.head_flops + (0 if kept else self.flops)
        return 3 * self.head_flops + self.flops + self.backward_flops


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one run needs."""

    shape: ModelShape
    images: int
    """Number of training images."""
    steps: int
    """Steps per epoch."""
    part: int
    """Most images of a global batch that one worker gets."""
    at_once: int
    """Most images whose activations a worker holds at the same time."""
    num_classes: int
    pixels: int
    """Bytes of a decoded image."""
    image_bytes: float
    """Mean bytes of an encoded image."""
    most_rejected: int
    """Entries rejected per global batch in the last epoch."""
    nothing_rejected: str
    """Why a scheme that rejects never does so in this run, in a sentence; empty where it does, or never rejects."""
    device: str
    """cpu or cuda; for `auto` what this machine has."""
    kind: torch.dtype
    """Type of the activations."""
    memory: dict[str, int]
    """Bytes of memory of one worker, by use."""
    flops: int
    """Operations per image trained."""


def estimate(config: TrainConfig, data: DataFolder) -> Estimate:
    """Estimate what a checked configuration needs on its data."""
    index, num_classes = data.splits["train"], len(data.vocabulary)
    plan, part = plan_of(config, index), max(step_parts(config, index))
    lr_warmup_steps(config.optim, plan.steps)  # raises where it is longer than the run
    at_once = min(part, config.optim.micro_batch_size or part)
    here = "cuda" if torch.cuda.is_available() else "cpu"
    device = here if config.run.device == "auto" else config.run.device
    half = config.optim.precision == "bfloat16" or (config.optim.precision == "auto" and device == "cuda")
    kind = torch.bfloat16 if half else torch.float32
    height, width, _ = Reader(data.shards, index, (), skip_broken=config.data.skip_budget > 0).shape
    shape = measure(config.model.backbone, num_classes, height, width, kind)
    cells = math.prod(shape.grid)
    return Estimate(
        shape=shape,
        images=len(index),
        steps=plan.steps,
        part=part,
        at_once=at_once,
        num_classes=num_classes,
        pixels=3 * height * width,
        image_bytes=float(index.size.mean()),
        most_rejected=most_rejected(config, index),
        nothing_rejected=nothing_rejected(config, index),
        device=device,
        kind=kind,
        memory=_weights(config, shape, plan.lanes, kind)
        | {"scores of pseudo labels": FLOAT32 * part * num_classes * bool(config.loss.pseudo_labels)}
        | _batch(shape, part, at_once, num_classes, 3 * height * width, tile_images(num_classes, cells, device), kind),
        flops=shape.training_flops() + (at_once < part) * (shape.flops + shape.head_flops),
    )


@functools.lru_cache
def measure(backbone: str, num_classes: int, height: int, width: int, kind: torch.dtype) -> ModelShape:
    """Measure the network's sizes for one image, by passing two images without values forward and backward.

    Operations are counted by `torch.utils.flop_counter`.

    Raises:
        ValueError: the network does not take images of this size.
    """
    from torch.utils.flop_counter import FlopCounterMode  # with Triton, slow to import, and not needed to train

    with torch.random.fork_rng(devices=[]):  # a run's random numbers must not depend on the weights drawn here
        model = CamClassifier(build_backbone(backbone), num_classes).to("meta", kind)
    check_images(copy.deepcopy(model), height, width, backbone)
    images = torch.empty((2, 3, height, width), dtype=torch.uint8, device="meta")
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with (
        FlopCounterMode(display=False) as forward,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        features = model.features(images)
    with FlopCounterMode(display=False) as backward:
        features.sum().backward()
    sizes = [tensor.untyped_storage().nbytes() // len(images) for tensor in kept.values()]
    return ModelShape(
        backbone_parameters=_count(model.backbone),
        head_parameters=_count(model.head),
        num_channels=features.shape[1],
        num_classes=num_classes,
        grid=(features.shape[2], features.shape[3]),
        kept=sum(sizes),
        largest=max(sizes),
        flops=forward.get_total_flops() // len(images),
        backward_flops=backward.get_total_flops() // len(images),
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _weights(config: TrainConfig, shape: ModelShape, lanes: int, kind: torch.dtype) -> dict[str, int]:
    """Bytes of memory that do not depend on the batch, by use."""
    parameters = shape.backbone_parameters + shape.head_parameters
    kept = ("", ", SGD's momentum", ", Adam's two moments")[moments(config.optim)]
    copies = {f"weights, gradients{kept}": 2 + moments(config.optim)}
    copies["weights' average"] = int(config.optim.ema > 0)
    if config.optim.reproducible:
        copies["gradients of every lane, and their exact sum"] = -(-lanes // config.run.workers) + 8
    elif config.run.workers > 1:
        copies["gradients between workers"] = 1
    sizes = {name: number * parameters * FLOAT32 for name, number in copies.items()}
    return sizes | {"weights in half precision": parameters * kind.itemsize if kind.itemsize < FLOAT32 else 0}


def _batch(
    shape: ModelShape, part: int, at_once: int, num_classes: int, pixels: int, tile: int, kind: torch.dtype
) -> dict[str, int]:
    """Bytes of memory that depend on the batch, by use."""
    image_map = num_classes * math.prod(shape.grid)
    return {
        "what the backbone keeps": at_once * shape.kept,
        "gradients passing through it": 2 * at_once * shape.largest,
        "signs of the map": at_once * image_map,
        "one tile of the map": min(tile, at_once) * image_map * (2 * kind.itemsize + 1),
        "logits, their gradient, labels": part * num_classes * (3 * FLOAT32 + 3),
        "images": part * pixels + 2 * at_once * pixels * FLOAT32,
    }


def describe_estimate(config: TrainConfig, needs: Estimate) -> str:
    """The estimate as a text."""
    shape, workers = needs.shape, config.run.workers
    map_values = needs.at_once * needs.num_classes * math.prod(shape.grid)
    whole, signs, keys = (_size(n) for n in (map_values * needs.kind.itemsize, map_values, 8 * needs.most_rejected))
    features = _size(2 * needs.images * shape.num_channels * math.prod(shape.grid))
    where = "worker" if needs.device == "cpu" else "GPU, without what CUDA itself takes"
    lines = [
        f"run         {config.recipe}, {config.loss.scheme}, {config.model.backbone}, {needs.num_classes:,} classes; "
        f"{number_of(workers, 'worker')}, {needs.device}{' as on this machine' if config.run.device == 'auto' else ''}",
        f"parameters  {shape.backbone_parameters + shape.head_parameters:,}: "
        f"backbone {shape.backbone_parameters:,}, head {shape.head_parameters:,}",
        f"images      {needs.images:,} an epoch, {needs.steps:,} steps of {config.data.global_batch_size}; "
        f"{needs.part} a step and worker, {needs.at_once} at once",
        f"map         {needs.at_once} x {needs.num_classes} x {shape.grid[0]} x {shape.grid[1]}: {whole} in "
        f"{str(needs.kind).removeprefix('torch.')} as a whole, of which {signs} of signs are kept",
        *(
            [f"features    {features} of training images on disk while the backbone is frozen, beside validation's"]
            if config.optim.freeze_backbone and keeps_features(config)
            else []
        ),
        f"rejection   {needs.nothing_rejected}"
        if needs.nothing_rejected
        else f"rejection   at most {needs.most_rejected:,} entries a step, {keys} from each worker",
        *(f"settings    {said}" for said in otherwise_than_own(config)),
        f"memory      {_size(sum(needs.memory.values()))} a {where}:",
        *(f"            {_size(size):>10}  {name}" for name, size in needs.memory.items() if size),
        f"work        {needs.flops / 1e9:,.3g} GFLOP an image, {needs.flops * needs.images / 1e15:,.3g} PFLOP an epoch",
        "            a worker sustains  images/s, all  a worker    from shards   an epoch  "
        f"{_unit(needs)} an epoch  of the run",
    ]
    return "\n".join(lines + [_rate_line(config, needs, rate) for rate in RATES[needs.device]])


def _unit(needs: Estimate) -> str:
    return "GPU-hours" if needs.device == "cuda" else "worker-hours"


def _rate_line(config: TrainConfig, needs: Estimate, rate: float) -> str:
    """What loading must deliver if every worker sustains `rate` TFLOP/s, and the hours of the workers together.

    These are of training alone; validation, saving and starting come in addition.
    """
    each = rate * 1e12 / needs.flops
    together = each * config.run.workers
    hours = needs.images / together / 3600
    read = f"{_size(together * needs.image_bytes)}/s"
    cost = hours * config.run.workers  # training alone
    return (
        f"            {rate:>9,g} TFLOP/s  {together:>13,.0f}  {each:>8,.0f}  {read:>13}  {hours:>7,.2f} h  "
        f"{hours_text(cost):>{len(_unit(needs)) + 9}}  {hours_text(cost * config.optim.epochs):>10}"
    )


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"
