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

IMAGES_AT_ONCE = 32
"""Images that are changed at once, at most: it bounds the memory for them in float32."""
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
    changed = images.clone(memory_format=torch.channels_last)
    order = np.argsort(steps.chosen, axis=0, kind="stable")
    rows, numbers = to_device(order.T, images.device), to_device(_numbers(steps, images, order), images.device)
    for place, mine in enumerate(np.sort(steps.chosen, axis=0).T):
        for number, name in enumerate(steps.names):
            first, end = np.searchsorted(mine, (number, number + 1)).tolist()
            for start in range(first, end if name != IDENTITY else first, IMAGES_AT_ONCE):
                piece = slice(start, min(start + IMAGES_AT_ONCE, end))
                group = rows[place, piece]
                result = OPERATIONS[name].change(changed.index_select(0, group), numbers[place, piece])
                changed.index_copy_(0, group, result)
    return changed


def _numbers(steps: Steps, images: Tensor, order: NDArray[np.int64]) -> NDArray[np.float32]:
    """[N, B, n] what the operations need for each image, in this order [B, N] of images."""
    height, width = images.shape[-2:]
    numbers = np.zeros((*order.shape, _NUMBERS), np.float32)
    for number, name in enumerate(steps.names):
        mine = steps.chosen == number
        needed = OPERATIONS[name].numbers(steps.amounts[mine], height, width)
        numbers[mine, : needed.shape[-1]] = needed
    return np.take_along_axis(numbers, order[..., None], 0).swapaxes(0, 1).copy()


def to_device(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """An array on the device. A GPU copies it when it gets there, and the host does not wait."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


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
    "solarize": Operation(_value, colours.solarize),  # from this value on
    "invert": Operation(_none, colours.invert),
    "auto_contrast": Operation(_none, colours.auto_contrast),
    "equalize": Operation(_none, colours.equalize),
    "patch": Operation(_patch, geometry.cover),  # a square of so many pixels; then its centre, as shares of H and W
}
"""Every operation by name, and what its amount is."""
