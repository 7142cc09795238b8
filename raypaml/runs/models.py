"""The model a configuration describes, new or as a run left it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch

from raypaml.config import TrainConfig
from raypaml.data.batches import Reader
from raypaml.data.data_folder import DataFolder
from raypaml.model.backbones import build_backbone, linear_classifier
from raypaml.model.cam import CamClassifier, load_classifier
from raypaml.model.layout import memory_format
from raypaml.runs.checkpoint import best_checkpoint, is_valid, load_model, valid_checkpoints
from raypaml.settings import ModelConfig, OptimConfig


def build_model(config: ModelConfig, num_classes: int, say: Callable[[str], None] = lambda _: None) -> CamClassifier:
    """A new model, its backbone, and its head if asked, with the configured weights; `say` is told what these held.

    One that starts from the weights of a run (`weights_of_run`) is left as it is initialised.
    """
    weights = "" if config.from_run else config.weights
    model = CamClassifier(build_backbone(config.backbone, weights, say), num_classes, config.alpha)
    if config.from_run:
        return model
    if config.head_init == "torch":
        model.head.reset_parameters()
    if config.head_prior:
        torch.nn.init.constant_(model.head.bias, math.log(config.head_prior / (1 - config.head_prior)))  # type: ignore[arg-type]
    if config.head_weights:
        load_classifier(model, Path(config.weights), linear_classifier(config.backbone))
    return model


def check_model(config: TrainConfig, data: DataFolder, say: Callable[[str], None]) -> None:
    """Raise ValueError unless the configured model, with its weights, takes the images of the data."""
    height, width, _ = Reader(data.shards, data.splits["train"], (), skip_broken=config.data.skip_budget > 0).shape
    check_images(build_model(config.model, len(data.vocabulary), say), height, width, config.model.backbone)


def check_images(model: CamClassifier, height: int, width: int, name: str) -> None:
    """Raise ValueError unless the model with a backbone of this name takes images of this size; uses the model up."""
    images = torch.empty((2, 3, height, width), dtype=torch.uint8, device="meta")
    try:
        with torch.no_grad():
            model.to("meta").eval().cam(images)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        named = f"{name.partition('@')[0]}@{height}"
        made = model.backbone.takes_size and height == width and not height % int(model.backbone.stride)  # type: ignore[arg-type]
        sized = f"name their size, --backbone {named}, " if made and named != name else ""
        raise ValueError(
            f"backbone={name!r}: it does not take the data's images of {height} x {width} pixels ({reason}); {sized}"
            "prepare the data with another --resize, or choose another backbone"
        ) from None


def tested_checkpoint(run_folder: Path) -> Path:
    """A run's best checkpoint; ValueError if it has none that is whole."""
    valid, _ = valid_checkpoints(run_folder / "checkpoints")
    if not valid:
        raise ValueError(f"{run_folder}: no valid checkpoint; train the run again")
    return best_checkpoint(valid)


def find_checkpoint(given: Path) -> tuple[Path, Path]:
    """The run's folder and the checkpoint, from either: of a run the best one.

    Raises:
        ValueError: a damaged checkpoint, or a run without one that is whole.
    """
    if (given / "config.json").is_file():
        return given, tested_checkpoint(given)
    if (given / "card.json").is_file():
        raise ValueError(f"{given}: an export; give the run that it was made from, or a checkpoint of that")
    if (given / "model.safetensors").is_file() and not is_valid(given):
        raise ValueError(f"{given}: a damaged checkpoint; give the run's folder to use one that is whole")
    return given.absolute().parent.parent, given


def checkpoint_model(
    checkpoint: Path, config: ModelConfig, num_classes: int, alpha: float | list[float] | None = None
) -> CamClassifier:
    """The model of a checkpoint, on the CPU, with this alpha, of all classes or [K]; None for that of training."""
    model = CamClassifier(build_backbone(config.backbone), num_classes, config.alpha if alpha is None else alpha)
    load_model(checkpoint, model)
    return model


def tested_model(run_folder: Path, config: ModelConfig, num_classes: int) -> CamClassifier:
    """The model of a run's best checkpoint, on the CPU."""
    return checkpoint_model(tested_checkpoint(run_folder), config, num_classes)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which a configuration computes: bfloat16 if it says so, or where the GPU has it."""
    half = precision == "bfloat16"
    if precision == "auto":
        half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def evaluating(optim: OptimConfig, device: torch.device) -> torch.autocast:
    """The context in which a configuration validates, predicts and serves."""
    return autocast("float32" if optim.evaluation_precision == "float32" else optim.precision, device)


def prepare_device(optim: OptimConfig, device: torch.device) -> None:
    """Tell torch how this process computes float32 on its GPU, and whether cuDNN may try its algorithms."""
    if device.type != "cuda":
        return
    torch.backends.cudnn.benchmark = optim.cudnn_benchmark and not optim.reproducible
    torch.set_float32_matmul_precision("high" if optim.matmul_precision == "high" else "highest")
    torch.backends.cudnn.allow_tf32 = optim.matmul_precision != "highest"


def placed(model: CamClassifier, device: torch.device) -> CamClassifier:
    """The model on a device, its weights in the order in which that computes fastest."""
    return model.to(device).to(memory_format=memory_format(device))


@torch.no_grad()
def update_average(average: CamClassifier, model: CamClassifier, decay: float, steps: int) -> None:
    """Move an average of the weights one step towards the model's; its buffers follow by `copy_buffers`.

    Args:
        decay: the average's share, < 1; after few steps at most `(1 + steps) / (10 + steps)`, for the first weights
            are arbitrary. (As TensorFlow's ExponentialMovingAverage with `num_updates`.)
        steps: done before this one.
    """
    share = 1 - min(decay, (1 + steps) / (10 + steps))
    # a few launches on a GPU, where one for each tensor were 628 of a ResNet-101
    torch._foreach_lerp_([*average.parameters()], [*model.parameters()], share)


def copy_buffers(average: CamClassifier, model: CamClassifier) -> None:
    """Give the average the model's buffers, such as the statistics of BatchNorm."""
    for kind in {buffer.dtype for buffer in model.buffers()}:
        mine, current = ([each for each in one.buffers() if each.dtype == kind] for one in (average, model))
        torch._foreach_copy_(mine, current)
