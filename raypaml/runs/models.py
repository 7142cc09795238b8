"""The model that a configuration describes, newly initialised or trained, and how it computes on a device."""

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
from raypaml.runs.run_files import CONFIG, MODEL, MODEL_CARD
from raypaml.settings import ModelConfig, OptimConfig


def build_model(config: ModelConfig, num_classes: int, say: Callable[[str], None] = lambda _: None) -> CamClassifier:
    """Build a new model with the configured weights in its backbone and, if asked for, its head.

    A model that starts from the weights of a run (`weights_of_run`) is only initialised here.

    Args:
        config: the settings of the model.
        num_classes: K.
        say: takes a line about the weights loaded.
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
    """Raise ValueError unless the configured model, with its weights, takes the images of the data.

    Every split of a data set on this machine must have an image that can be read: else training would end at its first
    validation, or all of it before the test.
    """
    skips = config.data.skip_budget > 0
    height, width, _ = Reader(data.shards, data.splits["train"], (), skip_broken=skips).shape
    check_images(build_model(config.model, len(data.vocabulary), say), height, width, config.model.backbone)
    for index in data.splits.values() if isinstance(data.path, Path) else ():
        _ = Reader(data.shards, index, (), skip_broken=skips).shape


def check_images(model: CamClassifier, height: int, width: int, name: str) -> None:
    """Raise ValueError unless a model takes images of this size; the model cannot be used afterwards.

    Args:
        model: the model, which is moved to the meta device.
        height, width: the images' size in pixels.
        name: its backbone as it was asked for, for the message.
    """
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
    """A run's best checkpoint; ValueError where it has no valid one."""
    valid, _ = valid_checkpoints(run_folder / "checkpoints")
    if not valid:
        raise ValueError(f"{run_folder}: no valid checkpoint; train the run again")
    return best_checkpoint(valid)


def find_checkpoint(given: Path) -> tuple[Path, Path]:
    """The folder of a run and its best checkpoint, given the run; or the same of a checkpoint, given that.

    Raises:
        ValueError: the checkpoint is damaged, or the run has no valid one.
    """
    if (given / CONFIG).is_file():
        return given, tested_checkpoint(given)
    if (given / MODEL_CARD).is_file():
        raise ValueError(f"{given}: an export; give the run that it was made from, or a checkpoint of that")
    if (given / MODEL).is_file() and not is_valid(given):
        raise ValueError(f"{given}: a damaged checkpoint; give the run's folder to use its best valid one")
    return given.absolute().parent.parent, given


def checkpoint_model(
    checkpoint: Path, config: ModelConfig, num_classes: int, alpha: float | list[float] | None = None
) -> CamClassifier:
    """The model of a checkpoint, on the CPU; alpha is one value, [K] values, or None for that of training."""
    model = CamClassifier(build_backbone(config.backbone), num_classes, config.alpha if alpha is None else alpha)
    load_model(checkpoint, model)
    return model


def tested_model(run_folder: Path, config: ModelConfig, num_classes: int) -> CamClassifier:
    """The model of a run's best checkpoint, on the CPU."""
    return checkpoint_model(tested_checkpoint(run_folder), config, num_classes)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The autocast context of a setting `precision`: bfloat16, also for `auto` where the GPU has it, or float32."""
    half = precision == "bfloat16"
    if precision == "auto":
        half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def evaluating(optim: OptimConfig, device: torch.device) -> torch.autocast:
    """The autocast context in which a configuration validates and predicts."""
    return autocast("float32" if optim.evaluation_precision == "float32" else optim.precision, device)


def prepare_device(optim: OptimConfig, device: torch.device) -> None:
    """Set torch's float32 precision on the GPU of this process, and whether cuDNN times its algorithms."""
    if device.type != "cuda":
        return
    torch.backends.cudnn.benchmark = optim.cudnn_benchmark and not optim.reproducible
    torch.set_float32_matmul_precision("high" if optim.matmul_precision == "high" else "highest")
    torch.backends.cudnn.allow_tf32 = optim.matmul_precision != "highest"


def placed(model: CamClassifier, device: torch.device) -> CamClassifier:
    """Move a model to a device, in the memory format that is fastest there."""
    return model.to(device).to(memory_format=memory_format(device))


@torch.no_grad()
def update_average(average: CamClassifier, model: CamClassifier, decay: float, steps: int) -> None:
    """Move an average of the weights one step towards the model's; its buffers follow by `copy_buffers`.

    Args:
        average, model: the average and the model.
        decay: the weight of the average, < 1; after few steps at most `(1 + steps) / (10 + steps)`, because the first
            weights are arbitrary. (As TensorFlow's ExponentialMovingAverage with `num_updates`.)
        steps: the number of steps done before this one.
    """
    share = 1 - min(decay, (1 + steps) / (10 + steps))
    # a few kernels on a GPU; one for each tensor would be 628 for a ResNet-101
    torch._foreach_lerp_([*average.parameters()], [*model.parameters()], share)


def copy_buffers(average: CamClassifier, model: CamClassifier) -> None:
    """Give the average the model's buffers, such as the statistics of BatchNorm."""
    for kind in {buffer.dtype for buffer in model.buffers()}:
        mine, current = ([each for each in one.buffers() if each.dtype == kind] for one in (average, model))
        torch._foreach_copy_(mine, current)
