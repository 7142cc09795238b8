"""P and N of a class activation map that is never whole in memory: 1x1 convolution and pooling, tile by tile.

With 5,000 classes the map is the largest thing of a training step: B x K x h x w values, of which the published head
keeps several. What the gradient needs of it is one bit a value, for the slope of `alpha P + N` by an attribution takes
two values only, one where it is at least 0 and one where it is below. So a tile of the map lives as long as its sums.

Dimensions: B images, K classes, D channels, h w CAM grid; a cell is one of h x w, a tile is some whole images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from raypaml.model.layout import laid_out_as

TILE_VALUES = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Map values of a tile, at most, unless one image has more: in reach of a CPU's caches, enough to fill a GPU."""


def pooled_map(features: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """P = mean(max(cam, 0)) and N = mean(min(cam, 0)) of `cam = conv1x1(features)`, added up in float32.

    As `pool_parts(conv2d(features, weight, bias))`, but forward and backward keep one byte a map value and one tile of
    the map. Autocast decides the map's type, else features and weight. At 0 the gradient goes to P, as in `boostlu`.

    Args:
        features: [B, D, h, w]; B may be 0. Channels-last features are read where they lie, others copied tile by tile.
        weight: [K, D, 1, 1].
        bias: [K], inside the map.

    Returns:
        P [B, K] >= 0 and N [B, K] <= 0.
    """
    kind = _working_type(features, weight)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (features, weight, bias)):
        return _PooledMap.apply(features, weight, bias, kind)  # type: ignore[no-any-return]
    return _pool(features, weight.flatten(1).to(kind), bias)


def tile_images(num_classes: int, num_cells: int, device_type: str) -> int:
    """Images of a tile: a function of shapes alone, so that a lane gives the same bits wherever it is computed."""
    return max(1, TILE_VALUES.get(device_type, TILE_VALUES["cuda"]) // (num_classes * num_cells))


def _working_type(features: Tensor, weight: Tensor) -> torch.dtype:
    device_type = features.device.type
    if torch.is_autocast_enabled(device_type) and features.dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return torch.promote_types(features.dtype, weight.dtype)  # kept features are float16


def _sum_type(kind: torch.dtype) -> torch.dtype:
    return torch.promote_types(kind, torch.float32)


def _tiles(features: Tensor, num_classes: int) -> Iterator[slice]:
    size = tile_images(num_classes, features.shape[2] * features.shape[3], features.device.type)
    return (slice(start, start + size) for start in range(0, len(features), size))


def _cells(features: Tensor, kind: torch.dtype) -> Tensor:
    """Features [b, D, h, w] as rows [b h w, D]: each of the three products is then one of two large matrices."""
    return features.to(kind).permute(0, 2, 3, 1).flatten(0, 2)


def _where_they_lie(features: Tensor, kind: torch.dtype) -> Tensor | None:
    """Features [b, D, h, w] as [b, h w, D], where multiplying them image by image is cheaper than copying them as rows.

    With few classes the copy costs more than the products. A GPU copies fast, and would start a kernel an image.
    """
    if features.device.type != "cpu" or features.is_contiguous(memory_format=torch.channels_last):
        return None
    return features.to(kind).flatten(2).transpose(1, 2)


def _map(features: Tensor, matrix: Tensor, offset: Tensor, *, copy: bool) -> Tensor:
    """The map [b, h w, K] of features [b, D, h, w]; matrix [D, K], offset [K]."""
    images = None if copy else _where_they_lie(features, matrix.dtype)
    if images is not None:
        return torch.baddbmm(offset, images, matrix.expand(len(images), -1, -1))
    num_cells = features.shape[2] * features.shape[3]
    return torch.addmm(offset, _cells(features, matrix.dtype), matrix).view(-1, num_cells, len(offset))


def _pool(
    features: Tensor, matrix: Tensor, bias: Tensor, signs: list[Tensor] | None = None, *, copy: bool = True
) -> tuple[Tensor, Tensor]:
    """P and N, of the weight as a matrix [K, D] of the map's type; `signs` takes, by tile, where the map is >= 0."""
    kind = matrix.dtype
    num_cells = features.shape[2] * features.shape[3]
    offset = bias.to(kind)
    positive = features.new_empty((len(features), len(offset)), dtype=_sum_type(kind))
    negative = torch.empty_like(positive)
    add_up = _add_up_cached if features.device.type == "cpu" else _add_up
    for tile in _tiles(features, len(offset)):
        cam = _map(features[tile], matrix.t(), offset, copy=copy)
        if signs is not None:
            signs.append(cam >= 0)
        add_up(cam, positive[tile], negative[tile])
    return positive.div_(num_cells), negative.div_(num_cells)


def _add_up_cached(cam: Tensor, positive: Tensor, negative: Tensor) -> None:
    """Sums over cells of the positive and of the negative attributions, of a tile in a CPU's cache; uses it up."""
    torch.sum(cam.clamp(min=0), 1, dtype=positive.dtype, out=positive)
    torch.sum(cam.clamp_(max=0), 1, dtype=negative.dtype, out=negative)


def _add_up(cam: Tensor, positive: Tensor, negative: Tensor) -> None:
    """The same in one pass over memory less, which is what it costs on a GPU: the negative sum as a difference.

    Its rounding is that of the positive sum, which in `alpha P + N` counts alpha times. Where nothing is positive, or
    nothing is negative, both sums are of the same values in the same order, and the difference is exact.
    """
    torch.sum(cam, 1, dtype=negative.dtype, out=negative)
    torch.sum(cam.clamp_(min=0), 1, dtype=positive.dtype, out=positive)
    negative.sub_(positive).clamp_(max=0)


class _PooledMap(torch.autograd.Function):
    """`_pool` with its gradient; keeps the features, and of the map its signs."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
        signs: list[Tensor] = []
        matrix = weight.flatten(1).to(kind)
        parts = _pool(features, matrix, bias, signs, copy=ctx.needs_input_grad[0])
        ctx.save_for_backward(features, weight, matrix, *signs)
        return parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_positive: Tensor, by_negative: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        features, weight, matrix, *signs = ctx.saved_tensors
        learns = ctx.needs_input_grad[0]  # not so where the backbone is frozen
        num_cells = features.shape[2] * features.shape[3]
        above, below = ((slope / num_cells).to(matrix.dtype).unsqueeze(1) for slope in (by_positive, by_negative))
        by_cells = matrix.new_empty((len(features), num_cells, features.shape[1])) if learns else None
        by_weight = torch.zeros_like(matrix, dtype=by_positive.dtype)
        by_bias = torch.zeros_like(by_weight[:, 0])
        for tile, sign in zip(_tiles(features, len(matrix)), signs, strict=True):
            by_cam = torch.where(sign, above[tile], below[tile])
            by_bias += by_cam.sum((0, 1), dtype=by_bias.dtype)
            _add_products(by_weight, by_cam, features[tile], copy=learns)
            if by_cells is not None:
                torch.mm(by_cam.flatten(0, 1), matrix, out=by_cells[tile].flatten(0, 1))
        by_features = None
        if by_cells is not None:  # channels last
            by_cells = by_cells.to(features.dtype).view(len(features), *features.shape[2:], features.shape[1])
            by_features = by_cells.permute(0, 3, 1, 2)
        return by_features, laid_out_as(weight, by_weight.view_as(weight)), by_bias, None


def _add_products(total: Tensor, by_cam: Tensor, features: Tensor, *, copy: bool) -> None:
    """Add the gradient by the weight [K, D] of a map [b, h w, K] of features [b, D, h, w]."""
    images = None if copy else _where_they_lie(features, by_cam.dtype)
    if images is None:
        _add_product(total, by_cam.flatten(0, 1).t(), _cells(features, by_cam.dtype))
    elif total.dtype == by_cam.dtype:
        total.addbmm_(by_cam.transpose(1, 2), images)
    else:
        total += torch.bmm(by_cam.transpose(1, 2), images).sum(0, dtype=total.dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Total += left @ right, without another matrix of its size where the types allow it."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
