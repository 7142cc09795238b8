"""Backbones without their pooling: images [B, 3, H, W] -> features [B, D, h, w].

A backbone is `small`, a classification model of torchvision by its name, or one of timm as `timm:NAME` or
`timm:NAME@SIZE`.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from raypaml.cli import did_you_mean
from raypaml.model.inspection import SIZES, FeatureMap, as_feature_map, cut_classifier
from raypaml.model.pretrained import IMAGENET, timm_model, torchvision_weights
from raypaml.model.timm_models import TIMM, as_timm_names, create, split_name, takes_size, timm_module
from raypaml.model.tokens import token_map
from raypaml.model.weights import load_weights

Channels = tuple[float, ...]
"""A number for each channel of an image."""

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


class Backbone(nn.Sequential):
    """Named stages in a row, the last of which gives the map; with the normalisation that its input needs."""

    mean: Channels = IMAGENET_MEAN
    """Mean of each channel, for pixel values 0..1, that is subtracted from images before this backbone."""
    std: Channels = IMAGENET_STD
    """Standard deviation of each channel, by which images are then divided."""
    prefix: str = ""
    """The prefix of this module's weight names before the names that they have in the original model."""
    takes_size: bool = False
    """Whether `timm:NAME@SIZE` can build it for images of another size."""

    def __init__(self, stages: OrderedDict[str, nn.Module], num_channels: int, stride: int):
        super().__init__(stages)
        self.num_channels = num_channels
        self.stride = stride


def _block(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    # GroupNorm, not BatchNorm: no running statistics, and an image's result does not depend on the rest of the batch
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
"""The networks of this module and those that were registered, by name; all others are torchvision's and timm's."""


def register_backbone(name: str, build: Callable[[], Backbone]) -> None:
    """Add a backbone, so that `--backbone` takes its name.

    Args:
        name: a name that torchvision does not have, and that does not begin with `timm:`.
        build: builds it with random weights; `--weights FILE` is loaded into it by the names of its state dict. It
            turns images [B, 3, H, W], normalised by its `mean` and `std`, into features [B, D, h, w].

    Raises:
        ValueError: the name is taken.
    """
    if name in OWN_BACKBONES or name in _torchvision_names() or name.startswith(TIMM):
        raise ValueError(f"backbone {name}: there is one of this name already; choose another")
    OWN_BACKBONES[name] = build


def check_backbone(name: str, weights: str = "") -> None:
    """Raise ValueError unless `name` is a backbone and, where `weights` names ImageNet weights, has these.

    Whether it ends with a map is only known once it is built.
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
        weights: "" for random weights, a name of `pretrained.IMAGENET` for those that torchvision or timm downloads, or
            a file (safetensors, or a PyTorch state dict, read with `weights_only`).
        say: takes a line about what a weight file held.

    Raises:
        ValueError: there is no such backbone, or it has no map; the weights cannot be downloaded or do not fit.
    """
    check_backbone(name, weights)
    if name in OWN_BACKBONES:
        backbone = _own_backbone(name)
        if weights:
            say(load_weights(backbone, ("fc.weight", "fc.bias"), Path(weights)))
        return backbone
    feature_map, left_out, normalisation = _inspected(name, weights if weights in IMAGENET else "")
    if weights and weights not in IMAGENET:
        convert = functools.partial(as_timm_names, feature_map.origin)
        say(load_weights(feature_map.origin, left_out, Path(weights), convert))
    backbone = Backbone(OrderedDict(net=feature_map.net), feature_map.num_channels, feature_map.stride)
    backbone.mean, backbone.std = normalisation
    backbone.prefix = next(f"{name}." for name, module in backbone.named_modules() if module is feature_map.origin)
    backbone.takes_size = takes_size(name, feature_map.origin)
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


def _inspected(name: str, pretrained: str) -> tuple[FeatureMap, set[str], tuple[Channels, Channels]]:
    """A model cut at its map, the names of the weights that were cut off, and the mean and deviation of its pixels."""
    whole = build_whole(name, pretrained)
    names = set(whole.state_dict())
    feature_map = without_classifier(name, whole)
    about = getattr(whole, "default_cfg", {})
    left_out = names - set(feature_map.origin.state_dict())
    return feature_map, left_out, (about.get("mean", IMAGENET_MEAN), about.get("std", IMAGENET_STD))


def build_whole(name: str, pretrained: str = "") -> nn.Module:
    """The model as torchvision or timm builds it, with classifier; `pretrained` is "" or a name in `IMAGENET`."""
    try:
        if name.startswith(TIMM):
            return create(name, pretrained)
        import torchvision

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about the initialisation of googlenet and inception
            weights = torchvision_weights(name, pretrained) if pretrained else None
            return torchvision.models.get_model(name, weights=weights)  # type: ignore[no-any-return]
    except OSError as error:
        origin = "timm" if name.startswith(TIMM) else "torchvision"
        raise ValueError(
            f"weights={pretrained}: {origin} could not download the ImageNet weights of {name} ({error}); "
            "download them elsewhere and give the file as --weights FILE"
        ) from None


def without_classifier(name: str, whole: nn.Module) -> FeatureMap:
    """The part of a whole classifier that ends with its map."""
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
    """A model of timm that ends with its last map, or with its tokens as a map. Raises ValueError if it has neither."""
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
    """The name of the linear layer that turns a model's pooled map into its logits.

    This is tested with random weights: the model's logits must be what that layer gives for the mean of the map.

    Raises:
        ValueError: they are not, or the model has no classifier.
    """
    if name in OWN_BACKBONES:
        return "fc"
    whole = build_whole(name).eval()
    feature_map = without_classifier(name, copy.deepcopy(whole))
    own = set(feature_map.origin.state_dict())
    layers = [key.removesuffix(".weight") for key in whole.state_dict() if key not in own and key.endswith(".weight")]
    if not layers or getattr(whole, "num_classes", None) == 0:
        raise ValueError(f"head_weights: {name} has no classifier; leave --head-weights out")
    layer = layers[-1]
    linear = whole.get_submodule(layer)
    if linear.bias is not None:  # in a deep network with random weights it would outweigh all else
        nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
    images = torch.rand(1, 3, feature_map.size, feature_map.size)
    weight = linear.weight.flatten(1)  # type: ignore[operator]
    if weight.shape[1] == feature_map.num_channels:
        expected = feature_map.net.eval()(images).mean((-2, -1)) @ weight.T
        if torch.allclose(expected, whole(images), rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
            return layer
    others = ", ".join(one for one in layers if one != layer) or "a function without weights"
    reads = {"token": "it reads the class token", "map": "it reads an attention pooling"}
    why = reads.get(getattr(whole, "global_pool", ""), f"between them: {others}")
    raise ValueError(
        f"head_weights: the classifier {layer} of {name} does not read the pooled map as it is ({why}), so it is no "
        "CAM head; leave --head-weights out"
    )
