"""The operations that change an image, by name, and sequences of them in which every image has its own operations.

An operation has an amount for each image. The host converts amounts, in float64 as torchvision does, into the numbers
that the device computes with. They are sent once for the whole sequence, without waiting for the device.
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
"""[b, 3] amounts of an operation; most operations use only the first of the three."""

CACHED_PIXELS, GPU_PIXELS = 2**18, 2**23
"""Number of pixels changed together: few enough, in float32, for a CPU's cache or for a GPU's memory."""
_NUMBERS = 7
"""The most numbers that an operation takes for each image."""


@dataclass(frozen=True)
class Operation:
    """A change of images that has an amount for each image."""

    numbers: Callable[[Amounts, int, int], NDArray[np.float64]]
    """(amounts [b, 3], H, W) -> [b, n], the numbers that `change` takes for each image."""
    change: Callable[[Tensor, Tensor], Tensor]
    """(uint8 images [b, 3, H, W], float32 numbers [b, n]) -> uint8 [b, 3, H, W]."""


@dataclass(frozen=True)
class Steps:
    """A sequence of operations for each image."""

    names: Sequence[str]
    """Names of operations, in any order."""
    chosen: NDArray[np.int64]
    """[B, N] the N operations of each image, in the order in which they are applied, as indices into `names`."""
    amounts: NDArray[np.float64]
    """[B, N, 3] the amounts of each operation."""


def take_steps(images: Tensor, steps: Steps) -> Tensor:
    """Change every image by its own operations, in its own order.

    Images whose n-th operation is the same are changed together.

    Args:
        images: uint8 [B, 3, H, W], not changed in place.
        steps: the operations of each image.

    Returns:
        New uint8 images [B, 3, H, W], channels last.
    """
    orders = np.argsort(steps.chosen, axis=0, kind="stable").T  # [N, B] images with the same operation are neighbours
    batch = np.arange(orders.shape[1])[None]
    before, after = np.concatenate((batch, orders)), np.concatenate((orders, batch))
    # [N + 1, B] permutations from the batch's order to the first of `orders`, to the next, and back
    moves = to_device(np.take_along_axis(np.argsort(before, axis=1), after, 1), images.device)
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
    """How many of the images are changed together, which does not affect the result."""
    most = CACHED_PIXELS if images.device.type == "cpu" else GPU_PIXELS
    return max(1, most // (images.shape[-2] * images.shape[-1]))


def _moved(images: Tensor, order: Tensor) -> Tensor:
    """The images in another order, channels last."""
    return images.permute(0, 2, 3, 1).index_select(0, order).permute(0, 3, 1, 2)


def _numbers(steps: Steps, images: Tensor, orders: NDArray[np.int64]) -> NDArray[np.float32]:
    """[N, B, n] the numbers that the n-th operation of each image takes, in the orders [N, B] of images."""
    height, width = images.shape[-2:]
    numbers = np.zeros((*steps.chosen.shape, _NUMBERS), np.float32)
    for number, name in enumerate(steps.names):
        mine = steps.chosen == number
        needed = OPERATIONS[name].numbers(steps.amounts[mine], height, width)
        numbers[mine, : needed.shape[-1]] = needed
    return np.take_along_axis(numbers.swapaxes(0, 1), orders[..., None], 1)


def to_device(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """The array as a tensor on the device. The copy to a GPU is asynchronous: the host does not wait for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _columns(*values: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """[b, n] from n columns, each of values [b] or one number for all images."""
    return np.stack(np.broadcast_arrays(*values), -1)


def _none(amounts: Amounts, _height: int, _width: int) -> NDArray[np.float64]:
    return amounts[:, :0]


def _factor(amounts: Amounts, _height: int, _width: int) -> NDArray[np.float64]:
    return _columns(amounts[:, 0], 1 - amounts[:, 0])


def _rotation(amounts: Amounts, _height: int, _width: int) -> NDArray[np.float64]:
    sine, cosine = np.sin(np.radians(amounts[:, 0])), np.cos(np.radians(amounts[:, 0]))
    return _columns(cosine, -sine, 0, sine, cosine, 0)


PATCH_COLOUR = 125, 122, 113
"""The colour with which `patch` covers a square, about the mean of ImageNet's pixels."""


def _patch(amounts: Amounts, height: int, width: int) -> NDArray[np.float64]:
    half, row, column = amounts[:, 0] // 2, np.floor(amounts[:, 1] * height), np.floor(amounts[:, 2] * width)
    return _columns(row - half, column - half, row + half, column + half, *PATCH_COLOUR)


IDENTITY = "identity"
OPERATIONS: dict[str, Operation] = {
    IDENTITY: Operation(_none, lambda images, _: images),
    # the tangent of the angle; the top left corner stays in its place
    "shear_x": Operation(lambda a, height, _: _columns(1, a[:, 0], a[:, 0] * height / 2, 0, 1, 0), geometry.move),
    "shear_y": Operation(lambda a, _, width: _columns(1, 0, 0, a[:, 0], 1, a[:, 0] * width / 2), geometry.move),
    # pixels to the right, and down
    "translate_x": Operation(lambda a, *_: _columns(1, 0, -a[:, 0], 0, 1, 0), geometry.move),
    "translate_y": Operation(lambda a, *_: _columns(1, 0, 0, 0, 1, -a[:, 0]), geometry.move),
    "rotate": Operation(_rotation, geometry.move),  # degrees counter-clockwise
    "brightness": Operation(_factor, colours.brightness),  # this and the next three: a factor
    "saturation": Operation(_factor, colours.saturation),
    "contrast": Operation(_factor, colours.contrast),
    "sharpness": Operation(_factor, colours.sharpness),
    "hue": Operation(lambda a, *_: a[:, :1], colours.hue),  # a share of the colour circle
    "posterize": Operation(lambda a, *_: 256 - 2 ** (8 - a[:, :1]), colours.posterize),  # the number of bits to keep
    # the least value that is inverted, rounded up: for integers, x >= amount is x >= ceil(amount)
    "solarize": Operation(lambda a, *_: np.ceil(a[:, :1]), colours.solarize),
    "invert": Operation(_none, colours.invert),
    "auto_contrast": Operation(_none, colours.auto_contrast),
    "equalize": Operation(_none, colours.equalize),
    "patch": Operation(_patch, geometry.cover),  # the side of a square in pixels; its centre as shares of H and W
}
"""Every operation by name; the comments say what its amounts are."""
