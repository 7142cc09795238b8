"""Backbones without their pooling: images [B, 3, H, W] -> features [B, D, h, w].

`small`, every classification model of torchvision by its name, and timm's as `timm:NAME` or `timm:NAME@SIZE`.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raypaml.cli import did_you_mean
from raypaml.model.inspection import SIZES, FeatureMap, as_feature_map, cut_classifier
from raypaml.model.pretrained import IMAGENET, timm_model, torchvision_weights
from raypaml.model.timm_models import TIMM, as_timm_names, create, split_name, takes_size, timm_module
from raypaml.model.tokens import token_map
from raypaml.model.weights import load_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Sequential):
    """Named stages in a row, the last giving the map, and what is known of it."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    """Of pixels 0..1 by channel, as the weights of this backbone expect it."""
    std: tuple[float, ...] = IMAGENET_STD
    prefix: str = ""
    """What stands before the origin's names of weights in the names of this one's."""
    takes_size: bool = False
    """Whether `timm:NAME@SIZE` makes it for images of another size."""

    def __init__(self, stages: OrderedDict[str, nn.Module], num_channels: int, stride: int):
        super().__init__(stages)
        self.num_channels = num_channels
        self.stride = stride


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
    stages = OrderedDict[str, nn.Module]((f"block{n}", _block(*width)) for n, width in enumerate(widths))
    return Backbone(stages, num_channels=widths[-1][1], stride=8)


OWN_BACKBONES: dict[str, Callable[[], Backbone]] = {"small": small}
"""Networks written here, and those that were registered, by name; all others are torchvision's and timm's."""


def register_backbone(name: str, build: Callable[[], Backbone]) -> None:
    """Add a backbone, so that `--backbone` takes its name.

    Args:
        name: not one that torchvision has, and without `timm:`.
        build: makes it with random weights; `--weights FILE` is loaded into it by the names of its state dict. Its
            stages take images [B, 3, H, W], normalised by its `mean` and `std`, to features [B, D, h, w].

    Raises:
        ValueError: the name is taken.
    """
    if name in OWN_BACKBONES or name in _torchvision_names() or name.startswith(TIMM):
        raise ValueError(f"backbone {name}: there is one of this name already; choose another")
    OWN_BACKBONES[name] = build


def check_backbone(name: str, weights: str = "") -> None:
    """Raise ValueError unless `name` is a backbone, and has `weights` where these are ImageNet's.

    Whether it has a map is seen when it is built.
    """
    if name in OWN_BACKBONES:
        if weights in IMAGENET:
            raise ValueError(f"weights={weights}: there are none for backbone {name!r}; give --weights ''")
    elif name.startswith(TIMM):
        timm, (own, _) = timm_module(name), split_name(name)
        if not timm.is_model(own):
            hint = _nearest(own, timm.list_models(), before=TIMM)
            raise ValueError(f"backbone={name!r}: timm has no such model{hint}")
        if weights in IMAGENET:
            timm_model(timm, own, weights)
    elif name not in _torchvision_names():
        hint = _nearest(name, [*OWN_BACKBONES, *_torchvision_names()])
        raise ValueError(f"backbone={name!r}: no such backbone{hint}")
    elif weights in IMAGENET:
        torchvision_weights(name, weights)


def _nearest(name: str, known: Iterable[str], *, before: str = "") -> str:
    own = ", ".join(OWN_BACKBONES)
    where = f"{own}, torchvision's classification models by their names, timm:NAME; one of your own: --import MODULE"
    return did_you_mean(name, known, most=3, shown=lambda one: repr(before + one)) or f"; known: {where}"


def _torchvision_names() -> list[str]:
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def build_backbone(name: str, weights: str = "", say: Callable[[str], None] = lambda _: None) -> Backbone:
    """Build a backbone.

    Args:
        name: `small`, a classification model of torchvision, or `timm:` and one of timm.
        weights: "" for random, a name of `pretrained.IMAGENET` for the origin's download, or a file (safetensors, or a
            PyTorch state dict, read with weights only).
        say: told what a weight file held.

    Raises:
        ValueError: no such backbone, or none with a map; weights that cannot be had or do not fit.
    """
    check_backbone(name, weights)
    if name in OWN_BACKBONES:
        backbone = _own_backbone(name)
        if weights:
            say(load_weights(backbone, ("fc.weight", "fc.bias"), Path(weights)))
        return backbone
    found, left_out, normalised = _inspected(name, weights if weights in IMAGENET else "")
    if weights and weights not in IMAGENET:
        say(load_weights(found.origin, left_out, Path(weights), functools.partial(as_timm_names, found.origin)))
    backbone = Backbone(OrderedDict(net=found.net), found.num_channels, found.stride)
    backbone.mean, backbone.std = normalised
    backbone.prefix = next(f"{name}." for name, module in backbone.named_modules() if module is found.origin)
    backbone.takes_size = takes_size(name, found.origin)
    return backbone


def _own_backbone(name: str) -> Backbone:
    try:
        backbone = OWN_BACKBONES[name]()
    except Exception as error:
        raise ValueError(f"backbone={name!r}: it could not be built ({type(error).__name__}: {error})") from None
    if not isinstance(backbone, Backbone):
        raise ValueError(
            f"backbone={name!r}: its function returned {type(backbone).__name__}; return "
            "raypaml.Backbone(OrderedDict(net=module), num_channels=D, stride=pixels of a place of the map)"
        )
    return backbone


def _inspected(name: str, pretrained: str) -> tuple[FeatureMap, set[str], tuple[Any, Any]]:
    """The map of a model, the names of the weights that do not lead to it, and how pixels are normalised."""
    whole = build_whole(name, pretrained)
    names = set(whole.state_dict())
    found = without_classifier(name, whole)
    about = getattr(whole, "default_cfg", {})
    left_out = names - set(found.origin.state_dict())
    return found, left_out, (about.get("mean", IMAGENET_MEAN), about.get("std", IMAGENET_STD))


def build_whole(name: str, pretrained: str = "") -> nn.Module:
    """The model as its origin has it, classifier included; `pretrained` is "" or a name of `pretrained.IMAGENET`."""
    try:
        if name.startswith(TIMM):
            return create(name, pretrained)
        import torchvision

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of how googlenet and inception will be initialised
            weights = torchvision_weights(name, pretrained) if pretrained else None
            return torchvision.models.get_model(name, weights=weights)  # type: ignore[no-any-return]
    except OSError as error:
        origin = "timm" if name.startswith(TIMM) else "torchvision"
        raise ValueError(
            f"weights={pretrained}: {origin} could not download the ImageNet weights of {name} ({error}); "
            "download them elsewhere and give the file as --weights FILE"
        ) from None


def without_classifier(name: str, whole: nn.Module) -> FeatureMap:
    """The part of a whole model that gives its map."""
    try:
        if not name.startswith(TIMM):
            if hasattr(whole, "aux_logits"):
                whole.aux_logits = False  # type: ignore[assignment]
            return cut_classifier(whole)
        return _map_of_timm(whole, split_name(name)[1])
    except ValueError as error:
        instead = (
            "" if name.startswith(TIMM) else f"; timm's tokens are a map: use {TIMM}vit_base_patch16_224 or the like"
        )
        raise ValueError(f"backbone={name!r}: {error}{instead}") from None


def _map_of_timm(whole: nn.Module, size: int | None) -> FeatureMap:
    """The last map of a model of timm, or its tokens as one; ValueError where it has neither."""
    num_channels = int(getattr(whole, "head_hidden_size", None) or whole.num_features)  # type: ignore[arg-type]
    own: int = size or whole.default_cfg["input_size"][-1]  # type: ignore[assignment,index]
    sizes = (*SIZES, own)
    try:
        whole.reset_classifier(0, "")  # type: ignore[operator]
        return as_feature_map(whole, num_channels, sizes)
    except (ValueError, AssertionError) as error:
        if hasattr(whole, "forward_intermediates"):
            return token_map(whole, sizes)
        raise ValueError(str(error)) from None


@torch.no_grad()
def linear_classifier(name: str) -> str:
    """The name of the layer that turns a model's pooled map into its logits.

    Seen from what it computes: with random weights, the model's logits must be those of that layer for the mean of the
    map. Raises ValueError where they are not.
    """
    if name in OWN_BACKBONES:
        return "fc"
    whole = build_whole(name).eval()
    found = without_classifier(name, copy.deepcopy(whole))
    own = set(found.origin.state_dict())
    layers = [key.removesuffix(".weight") for key in whole.state_dict() if key not in own and key.endswith(".weight")]
    if not layers or getattr(whole, "num_classes", None) == 0:
        raise ValueError(f"head_weights: {name} has no classifier; leave --head-weights out")
    layer = layers[-1]
    linear = whole.get_submodule(layer)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)  # type: ignore[arg-type]  # deep networks with random weights give little else
    images = torch.rand(1, 3, found.size, found.size)
    weight = linear.weight.flatten(1)  # type: ignore[operator]
    if weight.shape[1] == found.num_channels:
        expected = found.net.eval()(images).mean((-2, -1)) @ weight.T
        if torch.allclose(expected, whole(images), rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
            return layer
    others = ", ".join(one for one in layers if one != layer) or "a function without weights"
    reads = {"token": "it reads the class token", "map": "it reads an attention pooling"}
    why = reads.get(getattr(whole, "global_pool", ""), f"between them: {others}")
    raise ValueError(
        f"head_weights: the classifier {layer} of {name} does not read the pooled map as it is ({why}), so it is no "
        "CAM head; leave --head-weights out"
    )
