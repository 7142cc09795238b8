"""The tokens of a vision transformer as a feature map: each patch token is one place of the map.

Other tokens (class, distillation, registers) take part in attention and are left out of the map. Layers that serve only
the original pooling and classifier (attention pooling, class attention, projections) are removed, because the map does
not depend on them and their weights would get no gradient.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

from raypaml.model.inspection import FeatureMap, as_feature_map


class TokenMap(nn.Module):
    """A network of timm that ends with its patch tokens as a map, after the network's last norm layer.

    Some networks apply the norm to the mean of the tokens (`fc_norm`, or a norm in the head). Here that layer is
    applied to each token instead, because a class activation map reads each of them.

    Args:
        net: a model with timm's `forward_intermediates`.
        norms: whether `forward_intermediates` supports `norm=True`.
    """

    def __init__(self, net: nn.Module, *, norms: bool = True):
        super().__init__()
        self.net, self.norms = net, norms
        self.pooled_norm = ""
        """The name of the norm layer that `net` applies to pooled tokens; empty: it applies its norm to each token."""
        if not norms or isinstance(getattr(net, "norm", None), nn.Identity):
            layers = {name for name, layer in net.named_modules() if not isinstance(layer, nn.Identity)}
            self.pooled_norm = next((name for name in ("fc_norm", "head.norm") if name in layers), "")

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, D, h, w] of normalised images [B, 3, H, W]."""
        (features,) = self.net.forward_intermediates(  # type: ignore[operator]
            images, indices=1, norm=self.norms, output_fmt="NCHW", intermediates_only=True
        )
        if self.pooled_norm:
            features = self.net.get_submodule(self.pooled_norm)(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return features  # type: ignore[no-any-return]

    def fit(self, height: int, width: int) -> None:
        """Resample the position embeddings for images [H, W], once instead of in each forward pass."""
        if getattr(self.net, "dynamic_img_size", False) and getattr(self.net, "pos_embed", None) is not None:
            self.net.set_input_size((height, width))  # type: ignore[operator]


def token_map(whole: nn.Module, sizes: tuple[int, ...]) -> FeatureMap:
    """A model of timm that ends with its last tokens as a map; layers that the map does not need are removed from it.

    Args:
        whole: a model with timm's `forward_intermediates`.
        sizes: sides of the square images that it is tried with, in pixels.

    Raises:
        ValueError: it gives a map for none of these sizes.
    """
    try:
        feature_map = as_feature_map(TokenMap(whole), sizes=sizes)
    except ValueError as error:
        if "normalization of features not supported" not in str(error):
            raise
        feature_map = as_feature_map(TokenMap(whole, norms=False), sizes=sizes)
    _remove_unused(feature_map.net, feature_map.size)
    return dataclasses.replace(feature_map, origin=whole)


def _remove_unused(net: nn.Module, size: int) -> None:
    """Remove the layers and parameters that the map does not depend on, for square images of this side in pixels."""
    used, removed = _used_parameters(net, size), "."
    for name, module in list(net.named_modules()):
        own = {f"{name}.{inner}" for inner, _ in module.named_parameters()}
        if name and own and not own & used and not name.startswith(f"{removed}."):
            net.set_submodule(name, nn.Identity())
            removed = name
    for name in {name for name, _ in net.named_parameters()} - used:
        owner, _, leaf = name.rpartition(".")
        net.get_submodule(owner).register_parameter(leaf, None)


def _used_parameters(net: nn.Module, size: int) -> set[str]:
    """The names of the parameters that the map depends on."""
    trial = copy.deepcopy(net).to("meta")
    names, parameters = zip(*trial.requires_grad_(True).named_parameters(), strict=True)
    with torch.enable_grad():
        features = trial(torch.empty((2, 3, size, size), device="meta"))
        gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
    return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
