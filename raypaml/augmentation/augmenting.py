"""Applies an augmentation to the images of a training step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from raypaml.augmentation.augmentations import Augmentation
from raypaml.augmentation.draws import Draws
from raypaml.extensions import named_function


@torch.no_grad()
def augment(images: Tensor, augmentation: Augmentation, numbers: Mapping[str, float], draws: Draws) -> Tensor:
    """Apply all changes of an augmentation but the mirroring.

    Args:
        images: uint8 [B, 3, H, W] on the device, not changed in place; B may be 0.
        augmentation: its record.
        numbers: the value of each of its settings.
        draws: the random numbers of these samples.

    Returns:
        uint8 [B, 3, H, W], channels last.

    Raises:
        ValueError: the augmentation's function cannot be imported, or returns something else.
    """
    if not (augmentation.change and len(images)):
        return images
    changed: Tensor = named_function(augmentation.change)(images, draws, **numbers)
    if changed.shape != images.shape or changed.dtype != torch.uint8 or changed.device != images.device:
        raise ValueError(
            f"augmentation {augmentation.name}: {augmentation.change} returned {changed.dtype} "
            f"{list(changed.shape)} on {changed.device}; it must return uint8 {list(images.shape)} on {images.device}"
        )
    return changed.contiguous(memory_format=torch.channels_last)
