"""Token grids of vision transformers as maps: each patch token is a place, with the features that the network gives it.

Tokens that are no place (class, distillation, registers) take part in attention and are left out of the map. What only
serves the origin's own pooling and classifier (attention pooling, class attention, projections) is taken out, so that
no weight stays that cannot learn.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

from raypaml.model.inspection import FeatureMap, as_feature_map


class TokenMap(nn.Module):
    """A network of timm that ends with the tokens of its places as a map, after the network's last norm.

    Where the origin norms the mean of the tokens (`fc_norm`, or a norm in its head), each token is normed by that
    layer instead, for a class activation map reads each of them.

    Args:
        net: with timm's `forward_intermediates`.
        norms: whether that norms the tokens if it is asked to.
    """

    def __init__(self, net: nn.Module, *, norms: bool = True):
        super().__init__()
        self.net, self.norms = net, norms
        self.pooled_norm = ""
        """The name of the layer by which the origin norms pooled tokens; empty: its tokens are normed already."""
        if not norms or isinstance(getattr(net, "norm", None), nn.Identity):
            layers = {name for name, layer in net.named_modules() if not isinstance(layer, nn.Identity)}
            self.pooled_norm = next((name for name in ("fc_norm", "head.norm") if name in layers), "")

    def forward(self, images: Tensor) -> Tensor:
        """[B, D, h, w] of normalised images [B, 3, H, W]."""
        (features,) = self.net.forward_intermediates(  # type: ignore[operator]
            images, indices=1, norm=self.norms, output_fmt="NCHW", intermediates_only=True
        )
        if self.pooled_norm:
            features = self.net.get_submodule(self.pooled_norm)(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return features  # type: ignore[no-any-return]

    def fit(self, height: int, width: int) -> None:
        """Resample position embeddings once, to images [H, W]; until then each forward pass resamples them."""
        if getattr(self.net, "dynamic_img_size", False) and getattr(self.net, "pos_embed", None) is not None:
            self.net.set_input_size((height, width))  # type: ignore[operator]


def token_map(whole: nn.Module, sizes: tuple[int, ...]) -> FeatureMap:
    """The part of a model of timm that gives its last tokens as a map; what does not lead there is taken out of it.

    Args:
        whole: with timm's `forward_intermediates`.
        sizes: of the square images that it is tried with, in pixels.

    Raises:
        ValueError: it gives no map of places for any of them.
    """
    try:
        found = as_feature_map(TokenMap(whole), sizes=sizes)
    except ValueError as error:
        if "normalization of features not supported" not in str(error):
            raise
        found = as_feature_map(TokenMap(whole, norms=False), sizes=sizes)
    _take_out_what_cannot_learn(found.net, found.size)
    return dataclasses.replace(found, origin=whole)


def _take_out_what_cannot_learn(net: nn.Module, size: int) -> None:
    """Remove the layers and parameters that the map does not depend on, for images of this size in pixels."""
    learn, removed = _learning(net, size), "."
    for name, module in list(net.named_modules()):
        own = {f"{name}.{inner}" for inner, _ in module.named_parameters()}
        if name and own and not own & learn and not name.startswith(f"{removed}."):
            net.set_submodule(name, nn.Identity())
            removed = name
    for name in {name for name, _ in net.named_parameters()} - learn:
        owner, _, leaf = name.rpartition(".")
        net.get_submodule(owner).register_parameter(leaf, None)


def _learning(net: nn.Module, size: int) -> set[str]:
    """The names of the parameters that the map depends on."""
    trial = copy.deepcopy(net).to("meta")
    names, parameters = zip(*trial.requires_grad_(True).named_parameters(), strict=True)
    with torch.enable_grad():
        features = trial(torch.empty((2, 3, size, size), device="meta"))
        gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
    return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
