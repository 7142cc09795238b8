"""What can be done to an image, by name, and sequences of it in which every image has operations of its own.

An operation has an amount for each image. The host turns amounts into the numbers that the device computes with, in
float64, as torchvision does; they are sent once for the whole sequence, and nobody waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypaml.augmentation import colours, geometry

Amounts = NDArray[np.float64]
"""[b, 3] what an operation is done by; most need only the first."""

CACHED_PIXELS, GPU_PIXELS = 2**18, 2**23
"""Pixels that are changed at once, about: on a CPU its cache should hold them in float32, on a GPU the memory."""
_NUMBERS = 7
"""What an operation needs for each image, at most."""


@dataclass(frozen=True)
class Operation:
    """Something that can be done to an image."""

    numbers: Callable[[Amounts, int, int], NDArray[np.float64]]
    """(amounts [b, 3], H, W) -> [b, n], what `change` takes for each image."""
    change: Callable[[Tensor, Tensor], Tensor]
    """(uint8 images [b, 3, H, W], float32 numbers [b, n]) -> uint8 [b, 3, H, W]."""


@dataclass(frozen=True)
class Steps:
    """A sequence of operations for each image."""

    names: Sequence[str]
    """Operations, in any order."""
    chosen: NDArray[np.int64]
    """[B, N] what is done to each image, one after the other, as a place in `names`."""
    amounts: NDArray[np.float64]
    """[B, N, 3] by how much."""


def take_steps(images: Tensor, steps: Steps) -> Tensor:
    """Every image changed by its own operations, in its own order.

    Images that have the same operation at the same place go through it together.

    Args:
        images: uint8 [B, 3, H, W], which are left as they are.
        steps: what to do.

    Returns:
        New uint8 images [B, 3, H, W], channels last.
    """
    orders = np.argsort(steps.chosen, axis=0, kind="stable").T  # [N, B] images with the same operation are neighbours
    moves = to_device(_moves(orders), images.device)
    numbers = to_device(_numbers(steps, images, orders), images.device)
    size = at_once(images)
    for place, order in enumerate(orders):
        images = _moved(images, moves[place])
        ends = np.searchsorted(steps.chosen[order, place], np.arange(len(steps.names) + 1)).tolist()
        pieces = (
            (OPERATIONS[name], slice(start, min(start + size, end)))
            for name, first, end in zip(steps.names, ends, ends[1:], strict=False)
            for start in range(first, end, size)
        )
        images = torch.cat([each.change(images[piece], numbers[place, piece]) for each, piece in pieces])
    return _moved(images, moves[-1])


def at_once(images: Tensor) -> int:
    """How many of the images to change at once; what comes out does not depend on it."""
    most = CACHED_PIXELS if images.device.type == "cpu" else GPU_PIXELS
    return max(1, most // (images.shape[-2] * images.shape[-1]))


def _moves(orders: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N + 1, B] where each image of an order lies in the one before it, first and last being the batch's."""
    batch = np.arange(orders.shape[1])[None]
    before, after = np.concatenate((batch, orders)), np.concatenate((orders, batch))
    return np.take_along_axis(np.argsort(before, axis=1), after, 1)


def _moved(images: Tensor, order: Tensor) -> Tensor:
    """The images in another order, channels last."""
    return images.permute(0, 2, 3, 1).index_select(0, order).permute(0, 3, 1, 2)


def _numbers(steps: Steps, images: Tensor, orders: NDArray[np.int64]) -> NDArray[np.float32]:
    """[N, B, n] what the operations need for each image, in these orders [N, B] of images."""
    height, width = images.shape[-2:]
    numbers = np.zeros((*steps.chosen.shape, _NUMBERS), np.float32)
    for number, name in enumerate(steps.names):
        mine = steps.chosen == number
        needed = OPERATIONS[name].numbers(steps.amounts[mine], height, width)
        numbers[mine, : needed.shape[-1]] = needed
    return np.take_along_axis(numbers.swapaxes(0, 1), orders[..., None], 1)


def to_device(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """An array on the device. A GPU copies it when it gets there, and the host does not wait."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _threshold(amounts: Amounts, _height: int, _width: int) -> NDArray[np.float64]:
    return np.ceil(amounts[:, :1])  # a whole number is at least this where it is at least the amount


def _columns(*values: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """[b, n] of n values [b], or the same for all."""
    return np.stack(np.broadcast_arrays(*values), -1)


def _none(amounts: Amounts, _height: int, _width: int) -> NDArray[np.float64]:
    return amounts[:, :0]


def _value(amounts: Amounts, _height: int, _width: int) -> NDArray[np.float64]:
    return amounts[:, :1]


def _factor(amounts: Amounts, _height: int, _width: int) -> NDArray[np.float64]:
    return _columns(amounts[:, 0], 1 - amounts[:, 0])


def _mask(amounts: Amounts, _height: int, _width: int) -> NDArray[np.float64]:
    return 256 - 2 ** (8 - amounts[:, :1])


def _shear_x(amounts: Amounts, height: int, _width: int) -> NDArray[np.float64]:
    return _columns(1, amounts[:, 0], amounts[:, 0] * height / 2, 0, 1, 0)


def _shear_y(amounts: Amounts, _height: int, width: int) -> NDArray[np.float64]:
    return _columns(1, 0, 0, amounts[:, 0], 1, amounts[:, 0] * width / 2)


def _translate_x(amounts: Amounts, _height: int, _width: int) -> NDArray[np.float64]:
    return _columns(1, 0, -amounts[:, 0], 0, 1, 0)


def _translate_y(amounts: Amounts, _height: int, _width: int) -> NDArray[np.float64]:
    return _columns(1, 0, 0, 0, 1, -amounts[:, 0])


def _rotate(amounts: Amounts, _height: int, _width: int) -> NDArray[np.float64]:
    sine, cosine = np.sin(np.radians(amounts[:, 0])), np.cos(np.radians(amounts[:, 0]))
    return _columns(cosine, -sine, 0, sine, cosine, 0)


PATCH_COLOUR = 125, 122, 113
"""What `patch` covers a square with: ImageNet's mean pixel, nearly."""


def _patch(amounts: Amounts, height: int, width: int) -> NDArray[np.float64]:
    half, row, column = amounts[:, 0] // 2, np.floor(amounts[:, 1] * height), np.floor(amounts[:, 2] * width)
    return _columns(row - half, column - half, row + half, column + half, *PATCH_COLOUR)


IDENTITY = "identity"
OPERATIONS: dict[str, Operation] = {
    IDENTITY: Operation(_none, lambda images, _: images),
    "shear_x": Operation(_shear_x, geometry.move),  # by the tangent, about the top left corner
    "shear_y": Operation(_shear_y, geometry.move),
    "translate_x": Operation(_translate_x, geometry.move),  # by pixels, to the right or down
    "translate_y": Operation(_translate_y, geometry.move),
    "rotate": Operation(_rotate, geometry.move),  # by degrees, counter-clockwise
    "brightness": Operation(_factor, colours.brightness),  # these four by a factor
    "saturation": Operation(_factor, colours.saturation),
    "contrast": Operation(_factor, colours.contrast),
    "sharpness": Operation(_factor, colours.sharpness),
    "hue": Operation(_value, colours.hue),  # by a share of the circle
    "posterize": Operation(_mask, colours.posterize),  # to so many bits
    "solarize": Operation(_threshold, colours.solarize),  # from this value on, up to 255
    "invert": Operation(_none, colours.invert),
    "auto_contrast": Operation(_none, colours.auto_contrast),
    "equalize": Operation(_none, colours.equalize),
    "patch": Operation(_patch, geometry.cover),  # a square of so many pixels; then its centre, as shares of H and W
}
"""Every operation by name, and what its amount is."""
