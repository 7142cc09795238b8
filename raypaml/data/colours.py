"""Pixels of every kind as 8 bits of RGB: grey of 12, 16 and floating-point bits, palettes, inks, transparency."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageColor

WHITE = "white"
HIDDEN = "none"
"""As a background: transparency is dropped, and what was hidden under it shows. So it was before there was a choice."""
_BITS_PER_SAMPLE = 258


def check_background(background: str) -> str:
    """The background itself; ValueError unless it is a colour or `none`."""
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

    Grey of 16 bits keeps its higher 8, grey of 12 bits likewise; floating-point grey must lie in 0..1 and is scaled
    to 0..255. Transparent pictures are laid on `background`, a colour or `none`.

    Raises:
        ValueError: pixels that have no defined white: 32-bit integers, floating-point values outside 0..1.
    """
    image.load()  # numpy takes an AttributeError of a decoder for an object that is no array
    if image.mode.startswith("I;16"):
        image = _of_16_bits(image)
    elif image.mode == "I":
        image = _of_32_bits(image)
    elif image.mode == "F":
        image = _of_floats(image)
    if background != HIDDEN and image.has_transparency_data:
        pixels = image.convert("RGBA")
        ground = Image.new("RGBA", pixels.size, ImageColor.getrgb(background))
        return Image.alpha_composite(ground, pixels).convert("RGB")
    if "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]
    return image if image.mode == "RGB" else image.convert("RGB")


def _of_16_bits(image: Image.Image) -> Image.Image:
    """Grey, with an alpha channel where one value is declared transparent."""
    values, clear = np.asarray(image.convert("I")), image.info.get("transparency")
    grey = Image.fromarray((values >> (_bits(image) - 8)).astype(np.uint8))
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _bits(image: Any) -> int:
    """Bits that a pixel of a picture in 16 bits may fill: those that a TIFF declares."""
    return int(image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0]) if hasattr(image, "tag_v2") else 16


def _of_32_bits(image: Image.Image) -> Image.Image:
    if image.format != "PPM":  # whose greatest value is declared; Pillow scales it to 65535
        low, high = image.getextrema()
        raise ValueError(f"integer pixels of 32 bits, here {low} to {high}, have no defined white; save 8 or 16 bits")
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _of_floats(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # also where one is not a number
        raise ValueError(f"floating-point pixels from {low:g} to {high:g}; expected 0..1: scale them, or save 8 bits")
    return Image.fromarray((values * 255).round().astype(np.uint8))
