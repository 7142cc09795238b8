"""From the bytes of a JPEG to pixels."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError


def decode(content: bytes) -> NDArray[np.uint8]:
    """[H, W, 3] RGB, as it is stored: no resize; grey and other modes are converted.

    Raises:
        ValueError: not an image, or a broken one.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"cannot be decoded: {error}") from None
