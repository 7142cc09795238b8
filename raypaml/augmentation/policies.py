"""The functions of the augmentations: (images, draws, settings) -> images, on the device, for a whole batch.

Random numbers are drawn on the host, for each sample separately (`draws`).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypaml.augmentation import geometry
from raypaml.augmentation.draws import Draws
from raypaml.augmentation.operations import IDENTITY, Steps, at_once, take_steps, to_device

ASL_OPERATIONS = (
    *("invert", "patch", "sharpness", "auto_contrast", "posterize", "shear_x", "translate_x", "translate_y"),
    *("shear_y", "rotate", "equalize", "contrast", "saturation", "solarize", "brightness", IDENTITY),
)
"""The operations of the package randaugment 1.0.2, in its order; the last stands for an operation that is left out."""
RANDAUGMENT_OPERATIONS = (
    *(IDENTITY, "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "saturation", "contrast"),
    *("sharpness", "posterize", "solarize", "auto_contrast", "equalize"),
)
"""The operations of RandAugment (E. Cubuk et al., 2020), in torchvision's order."""
JITTER_OPERATIONS = ("brightness", "contrast", "saturation", "hue")
MOST_MAGNITUDE = 30
CROP_ATTEMPTS = 10
ASPECTS = 3 / 4, 4 / 3
"""Least and greatest aspect ratio, width / height, of a cropped box."""
_SHEAR, _TRANSLATE, _DEGREES, _FACTOR = 0.3, 150 / 331, 30.0, 0.9
"""The greatest amounts of RandAugment: tangent of the shear, share of the side, degrees, factor minus 1."""


def asl_published(images: Tensor, draws: Draws, *, cutout: float) -> Tensor:
    """Cover a rectangle of `cutout` of each side, then apply two operations, each with probability 0.5.

    The code of ASL, CSL, Hill and SPLC does the same: CutoutPIL, then RandAugment of the package randaugment.
    """
    return take_steps(_cut_out(images, draws, cutout), asl_steps(draws, *_size(images)))


def light(images: Tensor, draws: Draws, *, crop: float, jitter: float, hue: float) -> Tensor:
    """Crop a box, then change the colours at random."""
    return take_steps(_crop(images, draws, crop), jitter_steps(draws, jitter, hue))


def strong(images: Tensor, draws: Draws, *, crop: float, operations: float, magnitude: float, cutout: float) -> Tensor:
    """Crop a box, apply RandAugment, then cover a rectangle."""
    cropped = _crop(images, draws, crop)
    changed = take_steps(cropped, randaugment_steps(draws, *_size(images), int(operations), magnitude))
    return _cut_out(changed, draws, cutout)


def asl_steps(draws: Draws, height: int, width: int) -> Steps:
    """Draw two of 15 operations, each with probability 0.5, one of 9 magnitudes, and a random sign where it has one.

    As in the package, translation is by whole pixels and rotation always counter-clockwise. Shear and rotation
    interpolate bilinearly here; Pillow's shear is bicubic and its rotation takes the nearest pixel.
    """
    last = ASL_OPERATIONS.index(IDENTITY)
    chosen = np.where(draws.integers(2, 2) == 1, draws.integers(last, 2), last)
    share, sign = (1 + draws.integers(9, 2)) / 9, draws.signs(2)
    amounts = {
        "patch": np.rint(20 * share),
        "posterize": np.rint(8 - 4 * share),
        "rotate": _DEGREES * share,
        "solarize": 256 - 256 * share,
        "translate_x": -np.floor(_TRANSLATE * share * width * sign + 0.5),
        "translate_y": -np.floor(_TRANSLATE * share * height * sign + 0.5),
    }
    amounts |= dict.fromkeys(("shear_x", "shear_y"), _SHEAR * share * sign)
    amounts |= dict.fromkeys(("brightness", "contrast", "saturation", "sharpness"), 1 + _FACTOR * share * sign)
    steps = Steps(ASL_OPERATIONS, chosen, _chosen_amounts(ASL_OPERATIONS, chosen, amounts))
    steps.amounts[..., 1:] = draws.uniform(4).reshape(-1, 2, 2)  # where `patch` covers the image
    return steps


def randaugment_steps(draws: Draws, height: int, width: int, count: int, magnitude: float) -> Steps:
    """Draw `count` of 14 operations for each image, all with one magnitude, 0 to 30, and a random sign if they have
    one.

    As in torchvision's RandAugment, except that the area outside of a moved image is grey, not black.
    """
    chosen, sign = draws.integers(len(RANDAUGMENT_OPERATIONS), count), draws.signs(count)
    share = magnitude / MOST_MAGNITUDE
    amounts = {
        "translate_x": np.trunc(_TRANSLATE * width * share) * sign,
        "translate_y": np.trunc(_TRANSLATE * height * share) * sign,
        "rotate": _DEGREES * share * sign,
        "posterize": np.rint(8 - 4 * share) * np.ones_like(sign),
        "solarize": 255 * (1 - share) * np.ones_like(sign),
    }
    amounts |= dict.fromkeys(("shear_x", "shear_y"), _SHEAR * share * sign)
    amounts |= dict.fromkeys(("brightness", "contrast", "saturation", "sharpness"), 1 + _FACTOR * share * sign)
    return Steps(RANDAUGMENT_OPERATIONS, chosen, _chosen_amounts(RANDAUGMENT_OPERATIONS, chosen, amounts))


def jitter_steps(draws: Draws, jitter: float, hue: float) -> Steps:
    """Draw factors from 1 - jitter to 1 + jitter of brightness, contrast and saturation, and a shift of the hue by up
    to `hue`.

    The order of the four operations is random for each image, as in torchvision's ColorJitter.
    """
    chosen = np.argsort(draws.uniform(4), axis=1)
    by = 2 * draws.uniform(4) - 1
    amounts = {"brightness": 1 + jitter * by, "contrast": 1 + jitter * by, "saturation": 1 + jitter * by}
    return Steps(JITTER_OPERATIONS, chosen, _chosen_amounts(JITTER_OPERATIONS, chosen, amounts | {"hue": hue * by}))


def crop_boxes(draws: Draws, height: int, width: int, least: float) -> NDArray[np.int64]:
    """[B, 4] top, left, height, width of a random box in each image, of a share of its area from `least` to 1.

    As in torchvision's RandomResizedCrop, ten boxes are drawn, uniform in area and in the logarithm of the aspect
    ratio; the first that fits into the image is taken, or else the largest one in its middle.
    """
    shares, aspects = draws.uniform(2 * CROP_ATTEMPTS).reshape(-1, 2, CROP_ATTEMPTS).swapaxes(0, 1)
    area = height * width * (least + (1 - least) * shares)
    aspect = np.exp(np.log(ASPECTS[0]) + np.log(ASPECTS[1] / ASPECTS[0]) * aspects)
    sides = np.rint(np.stack((np.sqrt(area / aspect), np.sqrt(area * aspect)), -1)).astype(np.int64)
    image = np.array((height, width), np.int64)
    fits = ((sides > 0) & (sides <= image)).all(-1)
    fitting, first = fits.any(1, keepdims=True), sides[np.arange(len(sides)), fits.argmax(1)]
    middle = np.minimum(image, (round(width / ASPECTS[0]), round(height * ASPECTS[1])))
    box = np.where(fitting, first, middle)
    room = image - box
    return np.concatenate((np.where(fitting, draws.integers(room + 1, 2), room // 2), box), 1)


def cutout_boxes(draws: Draws, height: int, width: int, share: float) -> NDArray[np.int64]:
    """[B, 4] first row, first column, end row, end column of rectangles around random pixels.

    As in ASL's CutoutPIL, a side is `share` of the image's side, rounded to an odd number of pixels. A rectangle may
    extend beyond the image.
    """
    half = np.floor(share * np.array((height, width)) + 0.5).astype(np.int64) // 2
    centre = draws.integers(np.array((height, width), np.int64), 2)
    return np.concatenate((centre - half, centre + half + 1), 1)


def _chosen_amounts(
    names: tuple[str, ...], chosen: NDArray[np.int64], amounts: dict[str, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """[B, N, 3] whose first amount is that of the chosen operation, 0 where it has none; the other two are 0."""
    none = np.zeros(chosen.shape)
    first = np.choose(chosen, [amounts.get(name, none) for name in names])
    return np.stack((first, none, none), -1)


def _size(images: Tensor) -> tuple[int, int]:
    """H, W."""
    return images.shape[-2], images.shape[-1]


def _crop(images: Tensor, draws: Draws, least: float) -> Tensor:
    boxes = to_device(crop_boxes(draws, *_size(images), least).astype(np.float32), images.device)
    cropped = torch.empty_like(images)
    size = at_once(images)
    for start in range(0, len(images), size):
        piece = slice(start, start + size)
        cropped[piece] = geometry.crop(images[piece], boxes[piece])
    return cropped


def _cut_out(images: Tensor, draws: Draws, share: float) -> Tensor:
    if share == 0:  # a share of 0 would still cover one pixel
        return images
    boxes, colours = cutout_boxes(draws, *_size(images), share), draws.integers(256, 3)
    return geometry.cover(images, to_device(np.concatenate((boxes, colours), 1).astype(np.float32), images.device))
