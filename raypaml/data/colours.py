"""Converts pixels of any mode to 8-bit RGB: 12-bit, 16-bit and floating-point grey, palettes, CMYK, transparency."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageColor

WHITE = "white"
HIDDEN = "none"
"""The background that drops transparency, so that the colours of transparent pixels show, as in earlier versions."""
_BITS_PER_SAMPLE = 258


def check_background(background: str) -> str:
    """The background itself. Raises ValueError unless it is a colour or `none`."""
    try:
        if background != HIDDEN:
            ImageColor.getrgb(background)
    except ValueError:
        raise ValueError(
            f"background={background!r}: give a colour such as white, grey or #80a0ff, or {HIDDEN} for what is "
            "hidden under transparent pixels"
        ) from None
    return background


def as_rgb(image: Image.Image, background: str = WHITE) -> Image.Image:
    """The picture as 8-bit RGB.

    Grey of 16 or 12 bits keeps its 8 most significant bits; floating-point grey must lie in 0..1 and is scaled to
    0..255. Transparent pictures are composited onto `background`, a colour or `none`.

    Raises:
        ValueError: pixels that have no defined white: 32-bit integers, floating-point values outside 0..1.
    """
    image.load()  # within np.asarray an AttributeError of a decoder would be lost: numpy would make an object array
    if image.mode.startswith("I;16"):
        image = _from_16_bits(image)
    elif image.mode in ("I", "F"):
        image = _from_32_bits(image)
    if background != HIDDEN and image.has_transparency_data:
        pixels = image.convert("RGBA")
        ground = Image.new("RGBA", pixels.size, ImageColor.getrgb(background))
        return Image.alpha_composite(ground, pixels).convert("RGB")
    if "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """8-bit grey, with an alpha channel where one value is declared transparent."""
    values, transparent = np.asarray(image.convert("I")), image.info.get("transparency")
    tags: Mapping[int, tuple[int, ...]] = getattr(image, "tag_v2", {})  # a TIFF declares how many bits are used
    bits = int(tags.get(_BITS_PER_SAMPLE, (16,))[0])
    grey = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _from_32_bits(image: Image.Image) -> Image.Image:
    """8-bit grey of pixels that are integers or floating-point numbers."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "I":
        if image.format == "PPM":  # which declares its greatest value, and Pillow scales that to 65535
            return Image.fromarray((values >> 8).astype(np.uint8))
        raise ValueError(f"integer pixels of 32 bits, here {low} to {high}, have no defined white; save 8 or 16 bits")
    if not (low >= 0 and high <= 1):  # also true for NaN
        raise ValueError(f"floating-point pixels from {low:g} to {high:g}; expected 0..1: scale them, or save 8 bits")
    return Image.fromarray((values * 255).round().astype(np.uint8))
