"""P and N of a class activation map that is never whole in memory: 1x1 convolution and pooling, tile by tile.

With 5,000 classes the map is the largest tensor of a training step: B x K x h x w values, of which the published head
keeps several copies. The backward pass needs only one bit for each value: the derivative of `alpha P + N` with respect
to an attribution has one value where the attribution is at least 0 and another where it is below. A tile of the map is
therefore freed as soon as it has been summed.

Dimensions: B images, K classes, D channels, h w CAM grid; a cell is one of the h x w places, a tile is a few images.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from raypaml.model.layout import laid_out_as

TILE_VALUES = {"cpu": 1 << 20, "cuda": 1 << 26}
"""The most map values that a tile has, unless one image has more: few enough for a CPU's caches, enough for a GPU."""


def pooled_map(features: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """P = mean(max(cam, 0)) and N = mean(min(cam, 0)) of `cam = conv1x1(features)`, summed in float32.

    The result is that of `pool_parts(conv2d(features, weight, bias))`, but only one tile of the map exists at a time,
    and one byte for each map value is kept for the backward pass. The map has autocast's type; without autocast, the
    type to which those of features and weight promote. At 0 the gradient goes to P, as in `boostlu`.

    Args:
        features: [B, D, h, w]; B may be 0. Channels-last features are not copied, others are, tile by tile.
        weight: [K, D, 1, 1].
        bias: [K], part of the map.

    Returns:
        P [B, K] >= 0 and N [B, K] <= 0.
    """
    kind = _working_type(features, weight)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (features, weight, bias)):
        return _PooledMap.apply(features, weight, bias, kind)  # type: ignore[no-any-return]
    return _pool(features, weight.flatten(1).to(kind), bias)


def tile_images(num_classes: int, num_cells: int, device_type: str) -> int:
    """How many images a tile has.

    It depends on shapes alone, so that a lane of the sample order gives the same bits on any number of workers.
    """
    return max(1, TILE_VALUES.get(device_type, TILE_VALUES["cuda"]) // (num_classes * num_cells))


def _working_type(features: Tensor, weight: Tensor) -> torch.dtype:
    device_type = features.device.type
    if torch.is_autocast_enabled(device_type) and features.dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return torch.promote_types(features.dtype, weight.dtype)  # kept features are float16


def _tiles(features: Tensor, num_classes: int) -> Iterator[slice]:
    size = tile_images(num_classes, features.shape[2] * features.shape[3], features.device.type)
    return (slice(start, start + size) for start in range(0, len(features), size))


def _cells(features: Tensor, kind: torch.dtype) -> Tensor:
    """Features [b, D, h, w] as rows [b h w, D], so that each of the three products is a single large one."""
    return features.to(kind).permute(0, 2, 3, 1).flatten(0, 2)


def _without_copy(features: Tensor, kind: torch.dtype) -> Tensor | None:
    """Features [b, D, h, w] as a view [b, h w, D], or None where copying them as rows is cheaper.

    With few classes the copy costs more than the products. A GPU copies fast, and would start one kernel per image.
    """
    if features.device.type != "cpu" or features.is_contiguous(memory_format=torch.channels_last):
        return None
    return features.to(kind).flatten(2).transpose(1, 2)


def _map(features: Tensor, matrix: Tensor, offset: Tensor, *, copy: bool) -> Tensor:
    """The map [b, h w, K] of features [b, D, h, w]; matrix [D, K], offset [K]."""
    images = None if copy else _without_copy(features, matrix.dtype)
    if images is not None:
        return torch.baddbmm(offset, images, matrix.expand(len(images), -1, -1))
    num_cells = features.shape[2] * features.shape[3]
    return torch.addmm(offset, _cells(features, matrix.dtype), matrix).view(-1, num_cells, len(offset))


def _pool(
    features: Tensor, matrix: Tensor, bias: Tensor, signs: list[Tensor] | None = None, *, copy: bool = True
) -> tuple[Tensor, Tensor]:
    """P and N, with the weight as a matrix [K, D] of the map's type.

    For each tile, a mask of where the map [b, h w, K] is at least 0 is appended to `signs`.
    """
    kind = matrix.dtype
    num_cells = features.shape[2] * features.shape[3]
    offset = bias.to(kind)
    positive = features.new_empty((len(features), len(offset)), dtype=torch.promote_types(kind, torch.float32))
    negative = torch.empty_like(positive)
    for tile in _tiles(features, len(offset)):
        cam = _map(features[tile], matrix.t(), offset, copy=copy)
        if signs is not None:
            signs.append(cam >= 0)
        torch.sum(cam.clamp(min=0), 1, dtype=positive.dtype, out=positive[tile])
        torch.sum(cam.clamp_(max=0), 1, dtype=negative.dtype, out=negative[tile])
    return positive.div_(num_cells), negative.div_(num_cells)


class _Context(FunctionCtx):
    """What `_PooledMap` hands from its forward to its backward pass."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]


class _PooledMap(torch.autograd.Function):
    """`_pool` with its gradient; keeps the features and the signs of the map."""

    @staticmethod
    def forward(
        ctx: _Context, features: Tensor, weight: Tensor, bias: Tensor, kind: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        signs: list[Tensor] = []
        matrix = weight.flatten(1).to(kind)
        parts = _pool(features, matrix, bias, signs, copy=ctx.needs_input_grad[0])
        ctx.save_for_backward(features, weight, matrix, *signs)
        return parts

    @staticmethod
    @once_differentiable
    def backward(
        ctx: _Context, grad_positive: Tensor, grad_negative: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor, None]:
        features, weight, matrix, *signs = ctx.saved_tensors
        learns = ctx.needs_input_grad[0]  # False where the backbone is frozen
        num_cells = features.shape[2] * features.shape[3]
        above, below = ((slope / num_cells).to(matrix.dtype).unsqueeze(1) for slope in (grad_positive, grad_negative))
        grad_cells = matrix.new_empty((len(features), num_cells, features.shape[1])) if learns else None
        grad_weight = torch.zeros_like(matrix, dtype=grad_positive.dtype)
        grad_bias = torch.zeros_like(grad_weight[:, 0])
        for tile, sign in zip(_tiles(features, len(matrix)), signs, strict=True):
            grad_cam = torch.where(sign, above[tile], below[tile])
            grad_bias += grad_cam.sum((0, 1), dtype=grad_bias.dtype)
            _add_products(grad_weight, grad_cam, features[tile], copy=learns)
            if grad_cells is not None:
                torch.mm(grad_cam.flatten(0, 1), matrix, out=grad_cells[tile].flatten(0, 1))
        grad_features = None
        if grad_cells is not None:  # channels last
            grad_cells = grad_cells.to(features.dtype).view(len(features), *features.shape[2:], features.shape[1])
            grad_features = grad_cells.permute(0, 3, 1, 2)
        return grad_features, laid_out_as(weight, grad_weight.view_as(weight)), grad_bias, None


def _add_products(total: Tensor, grad_cam: Tensor, features: Tensor, *, copy: bool) -> None:
    """Add to `total` [K, D] the weight's gradient from the gradient [b, h w, K] of a map and its features [b, D, h, w].

    No other matrix of the size of `total` is made where the types are equal.
    """
    images = None if copy else _without_copy(features, grad_cam.dtype)
    in_place = total.dtype == grad_cam.dtype
    if images is not None and in_place:
        total.addbmm_(grad_cam.transpose(1, 2), images)
    elif images is not None:
        total += torch.bmm(grad_cam.transpose(1, 2), images).sum(0, dtype=total.dtype)
    elif in_place:
        total.addmm_(grad_cam.flatten(0, 1).t(), _cells(features, grad_cam.dtype))
    else:
        total += grad_cam.flatten(0, 1).t() @ _cells(features, grad_cam.dtype)
