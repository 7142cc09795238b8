"""Moves, crops and covers the images of a batch, with parameters for each image, uint8 [b, 3, H, W] each.

Every step rounds once and works on one image, without matrix products and sums of floating-point numbers, so that no
bit of an image's result depends on the other images of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

OUTSIDE = 128
"""The grey value of the area that a moved image leaves empty."""


def move(images: Tensor, matrices: Tensor) -> Tensor:
    """Apply an affine map to each image, with bilinear interpolation; the area outside of the image is `OUTSIDE`.

    Args:
        images: uint8 [b, 3, H, W].
        matrices: float32 [b, 6]: the pixel at (x, y) is read at (m0 x + m1 y + m2, m3 x + m4 y + m5), in pixels from
            the centre of the image.
    """
    height, width = images.shape[-2:]
    x, y = (torch.arange(size, dtype=torch.float32, device=images.device) - (size - 1) / 2 for size in (width, height))
    y = y[:, None]
    m = matrices[..., None, None].unbind(1)
    across = m[0] * x + (m[1] * y + m[2])
    down = m[3] * x + (m[4] * y + m[5])
    grid = torch.stack((across / (width / 2), down / (height / 2)), -1)
    return _sampled(images.float() - OUTSIDE, grid, "zeros").add_(OUTSIDE).round_().to(torch.uint8)


def crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Crop a box of each image and enlarge it to the size of the image, with bilinear interpolation.

    Args:
        images: uint8 [b, 3, H, W].
        boxes: float32 [b, 4] top, left, height, width of boxes within the image, in whole pixels.
    """
    top, left, box_height, box_width = boxes[..., None].unbind(1)
    down = _within(top, box_height, images.shape[-2])
    across = _within(left, box_width, images.shape[-1])
    b, (height, width) = len(images), images.shape[-2:]
    grid = torch.stack((across[:, None].expand(b, height, width), down[..., None].expand(b, height, width)), -1)
    return _sampled(images.float(), grid, "border").round_().to(torch.uint8)


def cover(images: Tensor, values: Tensor) -> Tensor:
    """Cover a rectangle of each image with one colour.

    Args:
        images: uint8 [b, 3, H, W].
        values: float32 [b, 7] first row, first column, end row, end column, red, green, blue; a rectangle may extend
            beyond the image, or be empty.
    """
    b, _, height, width = images.shape
    y = torch.arange(height, dtype=torch.float32, device=images.device)[:, None]
    x = torch.arange(width, dtype=torch.float32, device=images.device)
    top, left, bottom, right = values[:, :4, None, None].unbind(1)
    x = x[:, None].expand(width, 3).flatten()  # the layout of a row of pixels, channels last
    inside = ((y >= top) & (y < bottom)) & ((x >= left) & (x < right))
    colours = values[:, 4:7].to(torch.uint8).repeat(1, width)[:, None]
    rows = images.permute(0, 2, 3, 1).reshape(b, height, 3 * width)
    return torch.where(inside, colours, rows).view(b, height, width, 3).permute(0, 3, 1, 2)


def _within(first: Tensor, length: Tensor, size: int) -> Tensor:
    """[b, size] positions, from -1 to 1, at which to read a row of pixels to enlarge a part of it to the whole row.

    Args:
        first, length: [b, 1] the part's first pixel and its number of pixels.
        size: number of pixels of the row.
    """
    places = torch.arange(size, dtype=torch.float32, device=first.device) + 0.5
    read = (first + (places * (length / size) - 0.5)).clamp(first, first + (length - 1))
    return (read + 0.5) / (size / 2) - 1


def _sampled(images: Tensor, grid: Tensor, padding: str) -> Tensor:
    return grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)
