"""Turns every picture, whatever its format, into one defined form: an RGB JPEG of the chosen size."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image, features

from raypaml.data.colours import HIDDEN, WHITE, as_rgb, check_background
from raypaml.data.image_files import opened, shrink_early
from raypaml.preparation.requests import Parameters

SIZE = 448
QUALITY = 90
END_OF_IMAGE = b"\xff\xd9"
_END_BYTES = 64
"""The end marker of a complete JPEG lies within so many last bytes; some cameras add a little padding."""
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that makes a picture upright, by its orientation in EXIF or XMP."""
_SIDEWAYS = (5, 6, 7, 8)
"""Orientations whose operation swaps width and height."""
EARLIER_FORM: Parameters = {"background": HIDDEN, "large_jpegs": "whole"}
"""The values of these parameters in data sets that were begun before they could be chosen."""


@dataclass(frozen=True)
class ImageForm:
    """The form into which every image of a data set is converted.

    An image is rotated as EXIF or XMP says, converted to RGB on a background where it is transparent, resized with
    Pillow's antialiased bilinear filter, which is that of torchvision's Resize, and encoded as baseline JPEG with 4:2:0
    chroma. An upright RGB JPEG of the right size is copied byte for byte.
    """

    resize: Literal["squash", "short", "none"] = "squash"
    """squash: to size x size, as both papers do; short: the shorter side to size; none: the size is kept."""
    size: int = SIZE
    """Side in pixels."""
    quality: int = QUALITY
    """JPEG quality, 1..95."""
    background: str = WHITE
    """Colour under transparent pixels; `none` shows the colours that are stored there."""
    large_jpegs: Literal["reduced", "whole"] = "reduced"
    """How JPEGs of more than 50 million pixels are decoded: at a fraction of their size that suffices, or whole."""

    @classmethod
    def parse(cls, resize: str, quality: int = QUALITY, background: str = WHITE) -> ImageForm:
        """Reads `448`, `short`, `short:256` or `none`, and a colour."""
        name, colon, size = resize.partition(":")
        if name.isdecimal() and not colon:
            name, size = "squash", name
        sized = size.isdecimal() and 1 <= int(size) <= 8192 and (name == "short" or not colon)
        if name not in ("squash", "short", "none") or ((size or colon) and not sized):
            raise ValueError(f"resize={resize!r}: give pixels up to 8192 (448: squash), short, short:PIXELS or none")
        if not 1 <= quality <= 95:
            raise ValueError(f"quality={quality}: give a JPEG quality, 1..95")
        return cls(name, int(size or SIZE), quality, check_background(background))  # type: ignore[arg-type]  # checked

    @classmethod
    def of_parameters(cls, parameters: Parameters) -> ImageForm:
        """Returns the form that a data set was made with, from the parameters of its record."""
        known = EARLIER_FORM | {"size": SIZE} | parameters
        names = ("resize", "size", "quality", "background", "large_jpegs")
        return cls(**{name: known[name] for name in names})  # type: ignore[arg-type]  # as `parameters` wrote them

    def parameters(self) -> Parameters:
        """Returns the fields that decide the bytes of a data set, for its record."""
        size: Parameters = {} if self.resize == "none" else {"size": self.size}
        rest: Parameters = {"quality": self.quality, "background": self.background, "large_jpegs": self.large_jpegs}
        return {"resize": self.resize, **size, **rest}

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Returns the width and height into which an upright image of this size is converted."""
        if self.resize == "none":
            return width, height
        if self.resize == "squash":
            return self.size, self.size
        shorter = min(width, height)
        return max(1, round(width * self.size / shorter)), max(1, round(height * self.size / shorter))


def codec_versions() -> str:
    """Names the libraries that decide the bytes of an encoded image, with their versions."""
    return f"pillow {features.version('pil')}, libjpeg-turbo {features.version('libjpeg_turbo')}"


@dataclass(frozen=True)
class Converted:
    """An image in the form of a data set."""

    content: bytes
    """The bytes of the JPEG."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Width and height relative to those of the upright source image."""


def convert(content: bytes, form: ImageForm) -> Converted:
    """Converts a picture of any format that is read into a JPEG of this form.

    Raises:
        ValueError: the picture cannot be decoded; the message is the reason.
    """
    with opened(content) as image:
        # a complete upright RGB JPEG, as far as can be told without decoding it
        is_plain = image.format == "JPEG" and image.mode == "RGB" and END_OF_IMAGE in content[-_END_BYTES:]
        is_plain = is_plain and image.getexif().get(_ORIENTATION, 1) not in _TURNS
        if is_plain and form.target(*image.size) == image.size:
            return Converted(content)
        before = image.size
        if form.large_jpegs == "reduced":
            shrink_early(image, *form.target(*before))
        picture = upright_rgb(image, form.background)
        if image.getexif().get(_ORIENTATION, 1) in _SIDEWAYS:
            before = before[::-1]
        size = form.target(*before)
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling.BILINEAR)
        encoded = io.BytesIO()
        picture.save(encoded, "JPEG", quality=form.quality, subsampling="4:2:0")
        return Converted(encoded.getvalue(), (size[0] / before[0], size[1] / before[1]))


def upright_rgb(image: Image.Image, background: str = WHITE) -> Image.Image:
    """Returns a picture rotated as EXIF or XMP says, as RGB on a background; the given picture is not changed."""
    image.load()  # the orientation of a PNG may follow its pixels
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    return as_rgb(image if turn is None else image.transpose(turn), background)
