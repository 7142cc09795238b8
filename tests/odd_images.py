"""Pictures as they lie in the wild, made on the spot: odd but readable, and broken."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

RESIZED = 64
"""Pixels that the tests squash to; one form has that size already."""
Form = Callable[[np.random.Generator], bytes]


def encoded(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The picture as a file."""
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def picture(rng: np.random.Generator, size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Smooth noise."""
    small = rng.integers(0, 256, (4, 6, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)


def _turned(rng: np.random.Generator) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(rng, (72, 40)), exif=exif)


def _grey16(rng: np.random.Generator) -> bytes:
    grey = np.asarray(picture(rng, (48, 40), "L")).astype(np.uint16) * 256 + 77
    return encoded(Image.fromarray(grey), "PNG")


def _palette(rng: np.random.Generator) -> bytes:
    return encoded(picture(rng, (48, 40)).quantize(16), "PNG", transparency=bytes(range(0, 256, 16)))


ODD_FORMS: dict[str, Form] = {
    "cmyk": lambda rng: encoded(picture(rng, (72, 48), "CMYK")),
    "grey": lambda rng: encoded(picture(rng, (72, 48), "L")),
    "exif 6": _turned,
    "png": lambda rng: encoded(picture(rng, (72, 48), "RGBA"), "PNG"),
    "one pixel": lambda rng: encoded(picture(rng, (1, 1))),
    "16 bit": _grey16,
    "palette": _palette,
    "right size": lambda rng: encoded(picture(rng, (RESIZED, RESIZED)), quality=77),
}
"""Read and written as everything else."""
BROKEN: dict[str, Form] = {
    "truncated": lambda rng: encoded(picture(rng, (72, 48)))[:-300],
    "empty": lambda _: b"",
    "html": lambda _: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "head only": lambda rng: encoded(picture(rng, (72, 48)))[:40],
    "zeros": lambda _: bytes(5000),
    "cut png": lambda rng: encoded(picture(rng, (72, 48)), "PNG")[:200],
}
