"""The colours of images changed, each image by a number of its own: torchvision's and Pillow's operations, batched.

Every function takes uint8 images [b, 3, H, W] and float32 values [b, n], and returns uint8 images of the same shape.
Where torchvision cuts a product off to a whole number, so do these. Sums are of whole numbers and other steps round
once, so that the result does not depend, to the bit, on which images share a batch.

A factor comes with its complement: values[:, 1] is 1 - values[:, 0], rounded from float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LIGHT = 0.2989, 0.587, 0.114
"""How much red, green and blue make a pixel light."""
_CENTRE, _ALL = 5, 13
"""Weights of Pillow's filter SMOOTH: of the pixel itself, and of all; each of its neighbours has 1."""


def brightness(images: Tensor, values: Tensor) -> Tensor:
    """Every value times a factor."""
    return _whole(images.float().mul_(_each(values)))


def saturation(images: Tensor, values: Tensor) -> Tensor:
    """Away from the image in grey, by a factor: 0 makes it grey, 1 leaves it."""
    return _blend(images, _grey(images), values)


def contrast(images: Tensor, values: Tensor) -> Tensor:
    """Away from the mean of the image in grey, by a factor."""
    pixels = images.shape[-1] * images.shape[-2]
    mean = _grey(images).to(torch.int64).sum((-3, -2, -1), keepdim=True).double() / pixels
    return _blend(images, mean.float(), values)


def sharpness(images: Tensor, values: Tensor) -> Tensor:
    """Away from the image smoothed, by a factor: 0 smooths it, 1 leaves it, and so are its outermost pixels."""
    if min(images.shape[-2:]) <= 2:
        return images
    whole = images.to(torch.int16)  # 13 x 255 fits
    rows = whole[..., :-2, :] + whole[..., 1:-1, :] + whole[..., 2:, :]
    inner = whole[..., 1:-1, 1:-1]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + inner * (_CENTRE - 1)
    sharp = inner.float()
    smooth = total.float().div_(_ALL).round_()
    result = images.clone()
    result[..., 1:-1, 1:-1] = _whole(sharp.add_(smooth.sub_(sharp).mul_(values[:, 1:2, None, None])))
    return result


def hue(images: Tensor, values: Tensor) -> Tensor:
    """The hue turned by a share of the circle, -0.5 to 0.5, in the hexagon model (HSV)."""
    red, green, blue = (images[:, n].float().div_(255) for n in range(3))
    high, low = torch.maximum(red, green).maximum(blue), torch.minimum(red, green).minimum(blue)
    spread = high - low
    by = torch.where(spread == 0, 1.0, spread)  # grey pixels stay as they are, whatever their hue
    sector = torch.where(high == green, (blue - red).div_(by).add_(2), (red - green).div_(by).add_(4))
    sector = torch.where(high == red, (green - blue).div_(by), sector)
    turned = sector.div_(6).add_(values[:, :1, None])
    sixth = turned.sub_(turned.floor()).mul_(6)
    planes = [_share(sixth, place).mul_(spread).add_(low) for place in (0.0, 2.0, 4.0)]
    return torch.stack([plane.mul_(255.999).to(torch.uint8) for plane in planes], -1).permute(0, 3, 1, 2)


def posterize(images: Tensor, values: Tensor) -> Tensor:
    """The bits of every value that a mask keeps."""
    return images & _each(values).to(torch.uint8)


def solarize(images: Tensor, values: Tensor) -> Tensor:
    """Values from a threshold on, a whole number up to 255, inverted."""
    return images ^ (images >= _each(values).to(torch.uint8)).to(torch.uint8).mul_(255)


def invert(images: Tensor, _values: Tensor) -> Tensor:
    """Every value v becomes 255 - v."""
    return ~images


def auto_contrast(images: Tensor, _values: Tensor) -> Tensor:
    """Each colour stretched so that its values reach from 0 to 255."""
    low, high = (bound.float() for bound in (images.amin((-2, -1), True), images.amax((-2, -1), True)))
    is_flat = low == high
    scale = torch.where(is_flat, 1.0, (high - low) * (1 / 255))
    return _whole(images.float().sub_(torch.where(is_flat, 0.0, low)).div_(scale))


def equalize(images: Tensor, _values: Tensor) -> Tensor:
    """Each colour mapped so that its values are spread evenly, as Pillow does."""
    flat = images.flatten(2).long()
    counts = torch.zeros((*flat.shape[:2], 256), dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, flat, counts.new_ones(1).expand_as(flat))
    total = counts.cumsum(2, dtype=torch.int32)
    last = counts.gather(2, total.argmax(2, keepdim=True))  # the first to reach all is the highest value there is
    step = (flat.shape[2] - last) // 255
    table = ((total - counts + step // 2) // step.clamp(min=1)).clamp_(max=255).to(torch.uint8)
    mapped = table.gather(2, flat).view_as(images)
    return torch.where((step == 0)[..., None], images, mapped)


def _each(values: Tensor) -> Tensor:
    """[b, 1, 1, 1] the first value of each image."""
    return values[:, :1, None, None]


def _grey(images: Tensor) -> Tensor:
    """[b, 1, H, W] float32, whole numbers."""
    red, green, blue = (images[:, n : n + 1].float().mul_(share) for n, share in enumerate(_LIGHT))
    return red.add_(green).add_(blue).floor_()


def _blend(images: Tensor, other: Tensor, values: Tensor) -> Tensor:
    factor, rest = values[:, :2, None, None, None].unbind(1)
    return _whole(images.float().mul_(factor).add_(other * rest))


def _share(sixth: Tensor, place: float) -> Tensor:
    """The share of the spread that a colour has: 1 within a sixth of its place on the circle of six, then down to 0."""
    away = (sixth - place).abs_()
    return away.minimum(6 - away).neg_().add_(2).clamp_(0, 1)


def _whole(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)
