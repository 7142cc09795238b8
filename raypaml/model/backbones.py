"""Backbones without their pooling: images [B, 3, H, W] -> features [B, D, h, w]."""

from __future__ import annotations

import difflib
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
BACKBONES = ("small", *RESNETS)

Weights = dict[str, Tensor]


class Backbone(nn.Sequential):
    """Named stages in a row; the names are those of the origin, so that its weights load key by key."""

    def __init__(self, stages: OrderedDict[str, nn.Module], num_channels: int):
        super().__init__(stages)
        self.num_channels = num_channels


def _block(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    # GroupNorm, not BatchNorm: no running state, and a result that does not depend on who shares the batch
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=(size % 2), bias=False),
        nn.GroupNorm(8, outputs),
        nn.ReLU(inplace=True),
    )


def small() -> Backbone:
    """Three convolutions with GroupNorm, stride 8, 128 channels: for `digits` and tests."""
    widths = ((3, 32, 4, 4), (32, 64, 3, 2), (64, 128, 3, 1))
    return Backbone(
        OrderedDict((f"block{n}", _block(*width)) for n, width in enumerate(widths)), num_channels=widths[-1][1]
    )


def resnet(name: str, weights: str = "") -> Backbone:
    """A torchvision ResNet without pooling and classifier, stride 32, with torchvision's parameter names."""
    import torchvision

    pretrained = "DEFAULT" if weights == "imagenet" else None
    try:
        whole = torchvision.models.get_model(name, weights=pretrained)
    except OSError as error:
        raise ValueError(
            f"weights=imagenet: torchvision could not download the ImageNet weights of {name} ({error}); "
            "download them elsewhere and give the file as --weights FILE"
        ) from None
    stages = OrderedDict(whole.named_children())
    num_channels = int(stages.pop("fc").in_features)
    del stages["avgpool"]
    return Backbone(stages, num_channels)


def check_backbone(name: str) -> None:
    """Raise ValueError unless `name` is a backbone."""
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"backbone={name!r}: no such backbone; {hint}Known: {', '.join(BACKBONES)}")


def build_backbone(name: str, weights: str = "") -> Backbone:
    """Build a backbone.

    Args:
        name: one of BACKBONES.
        weights: "" for random, "imagenet" for torchvision's download, or a file (safetensors, or a PyTorch state
            dict, read with weights only).
    """
    check_backbone(name)
    if weights == "imagenet" and name not in RESNETS:
        raise ValueError(f"weights=imagenet: there are none for backbone {name!r}; leave --weights out")
    backbone = small() if name == "small" else resnet(name, weights)
    if weights not in ("", "imagenet"):
        load_weights(backbone, Path(weights))
    return backbone


def read_weights(path: Path) -> Weights:
    """Read tensors by name from a safetensors file or a PyTorch state dict; nothing is executed."""
    if not path.is_file():
        raise ValueError(f"weights={path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ValueError(f"weights={path}: not a readable weight file ({_first_line(error)})") from None
    except Exception as error:  # UnpicklingError, and whatever a damaged pickle stream provokes
        raise ValueError(f"weights={path}: refused, it holds more than tensors ({_first_line(error)})") from None
    content = content.get("state_dict", content) if isinstance(content, dict) else None
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"weights={path}: not a state dict of tensors")
    return dict(content)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def load_weights(backbone: Backbone, path: Path) -> None:
    """Load a whole network's weights into a backbone; its classifier `fc.*` is left out, anything else must fit."""
    found = read_weights(path)
    found = {name: value for name, value in found.items() if not name.startswith("fc.")}
    wanted = backbone.state_dict()
    faults = [f"{name} missing" for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    faults += [f"{name} unknown" for name in found if name not in wanted]
    shared = [name for name in wanted if name in found]
    faults += [
        f"{name} is {list(found[name].shape)}, expected {list(wanted[name].shape)}"
        for name in shared
        if found[name].shape != wanted[name].shape
    ]
    if faults:
        raise ValueError(f"weights={path}: do not fit this backbone: {'; '.join(faults[:4])}; {len(faults)} in all")
    backbone.load_state_dict(found, strict=False)
