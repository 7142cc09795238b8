"""Decodes stored images into the memory of a batch."""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from raypaml.data.colours import as_rgb
from raypaml.data.image_files import MAX_PIXELS, check_scans, opened

Pixels = NDArray[np.uint8]

_FAST = ("YCbCr", "Gray")
"""Colour spaces that simplejpeg converts to RGB exactly as PIL does; CMYK is not one of them."""


def decode(content: bytes, into: Pixels | None = None) -> Pixels:
    """The RGB pixels [H, W, 3] of an image in its stored size; other modes are converted by `colours.as_rgb`.

    JPEGs are decoded by simplejpeg, which is a third faster than PIL, gives the same bits with these settings, and
    writes directly into the memory of a batch. Where it fails, PIL decides whether the image is broken.

    Args:
        content: the bytes of the file.
        into: memory for the pixels, used if they fit; the result may nevertheless be another array.

    Raises:
        ValueError: the bytes are not an image, or it cannot be decoded.
    """
    try:
        height, width, coding = simplejpeg.decode_jpeg_header(content)[:3]
        if coding in _FAST and height * width <= MAX_PIXELS:
            check_scans(content)
            fast: Pixels = simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False, buffer=into)
            return fast
    except (ValueError, MemoryError):
        pass  # it is truncated, broken, not a JPEG, of too many scans, or too large for `into` or for the memory
    try:
        with opened(content) as image:
            return np.asarray(as_rgb(image))
    except ValueError as error:
        raise ValueError(f"cannot be decoded: {error}") from None
