"""A picture in its own colours with a map over it: bright where the map is high, with contour lines as on a chart."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from raypaml.labels import RealArray

SHOWN_SIDE = 240
"""The longer side of a shown picture, in pixels."""
DARKEST = 0.5
"""Brightness of the picture where the map is zero; the colours there can still be told apart."""
CONTOURS = {0.25: (120, 94, 240), 0.5: (254, 97, 0), 0.75: (255, 214, 0)}
"""Colour of the line around the places that have at least this share of the scale; all three are seen on any photo."""
OUTLINE = (90, 200, 255)
"""Colour of known boxes."""

BoxCorners = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""


def enlarged(pixels: NDArray[np.uint8]) -> Image.Image:
    """The image [H, W, 3] with a longer side of SHOWN_SIDE, in its own proportions."""
    height, width, _ = pixels.shape
    scale = SHOWN_SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.BILINEAR)


def overlay(picture: Image.Image, heat: RealArray) -> Image.Image:
    """The picture, at its own size and in its own colours, with a map over it.

    Args:
        picture: RGB.
        heat: [h, w] the map as shares of the scale, 0..1; it is resized to the picture.
    """
    smooth = Image.fromarray(heat.astype(np.float32)).resize(picture.size, Image.Resampling.BILINEAR)
    strength = np.asarray(smooth).clip(0, 1)
    lit = np.asarray(picture, np.float32) * (DARKEST + (1 - DARKEST) * strength[..., None])
    width = max(1, round(max(picture.size) / SHOWN_SIDE))
    for level, colour in CONTOURS.items():
        inside = kept = strength >= level
        for axis in (0, 1):  # kept: no place within `width` pixels lies outside; beyond the picture nothing does
            kept = ndimage.minimum_filter1d(kept, 2 * width + 1, axis, mode="nearest")
        lit[inside & ~kept] = colour
    return Image.fromarray(lit.astype(np.uint8))


def outlined(picture: Image.Image, box: BoxCorners | None, shape: tuple[int, ...]) -> Image.Image:
    """The picture with a box drawn around something, if one is given.

    Args:
        picture: the picture, of any size; it is drawn on.
        box: corners in pixels of the image that the picture shows.
        shape: height and width of that image.
    """
    if box is not None:
        across, down = picture.width / shape[1], picture.height / shape[0]
        x0, y0, x1, y1 = box
        corners = x0 * across, y0 * down, max(x0 * across, x1 * across - 1), max(y0 * down, y1 * down - 1)
        ImageDraw.Draw(picture).rectangle(corners, outline=OUTLINE)
    return picture


def data_uri(picture: Image.Image) -> str:
    """The picture as a JPEG in a data URI, which a page holds without a further file."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
