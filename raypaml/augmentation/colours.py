"""Batched versions of the colour operations of torchvision and Pillow, with a parameter for each image.

Every function takes uint8 images [b, 3, H, W] and float32 values [b, n], and returns uint8 images of the same shape.
Where torchvision truncates a product to a whole number, these functions do too. Sums are sums of integers and every
other step rounds once, so that no bit of an image's result depends on the other images of the batch.

Operations with a factor take two values for each image: the factor, and 1 - factor, rounded from float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LIGHT = 0.2989, 0.587, 0.114
"""Weights of red, green and blue in the grey value of a pixel."""
_CENTRE, _ALL = 5, 13
"""Pillow's filter SMOOTH: the weight of the centre, and the sum of all nine weights; each neighbour has weight 1."""


def brightness(images: Tensor, values: Tensor) -> Tensor:
    """Multiply every value by a factor."""
    return _whole(images.float().mul_(_each(values)))


def saturation(images: Tensor, values: Tensor) -> Tensor:
    """Blend with the grey image: a factor of 0 gives the grey image, 1 the original, and above 1 extrapolates."""
    return _blend(images, _grey(images), values)


def contrast(images: Tensor, values: Tensor) -> Tensor:
    """Blend with the mean of the grey image: a factor of 0 gives the mean, 1 the original."""
    pixels = images.shape[-1] * images.shape[-2]
    mean = _grey(images).to(torch.int64).sum((-3, -2, -1), keepdim=True).double() / pixels
    return _blend(images, mean.float(), values)


def sharpness(images: Tensor, values: Tensor) -> Tensor:
    """Blend with the smoothed image: 0 gives the smoothed image, 1 the original. Border pixels are left unchanged."""
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
    """Shift the hue (HSV) by a share of the colour circle, -0.5 to 0.5."""
    red, green, blue = (images[:, n].float().div_(255) for n in range(3))
    high, low = torch.maximum(red, green).maximum(blue), torch.minimum(red, green).minimum(blue)
    spread = high - low
    by = torch.where(spread == 0, 1.0, spread)  # grey pixels stay as they are, whatever their hue
    sector = torch.where(high == green, (blue - red).div_(by).add_(2), (red - green).div_(by).add_(4))
    sector = torch.where(high == red, (green - blue).div_(by), sector)
    turned = sector.div_(6).add_(values[:, :1, None])
    sixth = turned.sub_(turned.floor()).mul_(6)
    planes = []
    for place in (0.0, 2.0, 4.0):
        away = (sixth - place).abs_()
        # 1 up to a sixth of the colour circle from the channel's place, 0 from two sixths on
        share = away.minimum(6 - away).neg_().add_(2).clamp_(0, 1)
        planes.append(share.mul_(spread).add_(low))
    return torch.stack([plane.mul_(255.999).to(torch.uint8) for plane in planes], -1).permute(0, 3, 1, 2)


def posterize(images: Tensor, values: Tensor) -> Tensor:
    """Keep the bits of every value that are set in a mask."""
    return images & _each(values).to(torch.uint8)


def solarize(images: Tensor, values: Tensor) -> Tensor:
    """Invert the values that are at least a threshold, a whole number up to 255."""
    return images ^ (images >= _each(values).to(torch.uint8)).to(torch.uint8).mul_(255)


def invert(images: Tensor, _values: Tensor) -> Tensor:
    """Replace every value v by 255 - v."""
    return ~images


def auto_contrast(images: Tensor, _values: Tensor) -> Tensor:
    """Stretch each channel so that its values range from 0 to 255."""
    low, high = (bound.float() for bound in (images.amin((-2, -1), True), images.amax((-2, -1), True)))
    is_flat = low == high
    scale = torch.where(is_flat, 1.0, (high - low) * (1 / 255))
    return _whole(images.float().sub_(torch.where(is_flat, 0.0, low)).div_(scale))


def equalize(images: Tensor, _values: Tensor) -> Tensor:
    """Equalise the histogram of each channel, as Pillow does."""
    flat = images.flatten(2).long()
    counts = torch.zeros((*flat.shape[:2], 256), dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, flat, counts.new_ones(1).expand_as(flat))
    total = counts.cumsum(2, dtype=torch.int32)
    last = counts.gather(2, total.argmax(2, keepdim=True))  # the first bin that reaches the total is the highest value
    step = (flat.shape[2] - last) // 255
    table = ((total - counts + step // 2) // step.clamp(min=1)).clamp_(max=255).to(torch.uint8)
    mapped = table.gather(2, flat).view_as(images)
    return torch.where((step == 0)[..., None], images, mapped)


def _each(values: Tensor) -> Tensor:
    """The first value of each image, as [b, 1, 1, 1]."""
    return values[:, :1, None, None]


def _grey(images: Tensor) -> Tensor:
    """The grey images [b, 1, H, W], whole numbers in float32."""
    red, green, blue = (images[:, n : n + 1].float().mul_(share) for n, share in enumerate(_LIGHT))
    return red.add_(green).add_(blue).floor_()


def _blend(images: Tensor, other: Tensor, values: Tensor) -> Tensor:
    factor, rest = values[:, :2, None, None, None].unbind(1)
    return _whole(images.float().mul_(factor).add_(other * rest))


def _whole(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)
