"""One defined result for every picture: an RGB JPEG of the size asked for, whatever came in."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageOps, UnidentifiedImageError, features

SIZE = 448
QUALITY = 90
END_OF_IMAGE = b"\xff\xd9"
_END_BYTES = 64
"""Within so many last bytes a whole JPEG ends; some cameras add a little padding."""
_ORIENTATION = 0x0112
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises of files that are damaged, not pictures, or larger than 179 million pixels (a bomb, perhaps)."""


@dataclass(frozen=True)
class ImageForm:
    """What every image of a data set becomes.

    Rotated as EXIF says, converted to RGB (alpha dropped), resized with Pillow's antialiased bilinear filter, the one
    of torchvision's Resize, and encoded as baseline JPEG with 4:2:0 chroma. A JPEG that already is all of that, upright
    and of that size, is copied byte for byte.
    """

    resize: Literal["squash", "short", "none"] = "squash"
    """squash: to size x size, as both papers do; short: the shorter side to size; none: as it is."""
    size: int = SIZE
    """Pixels."""
    quality: int = QUALITY
    """Of JPEG, 1..95."""

    @classmethod
    def parse(cls, resize: str, quality: int = QUALITY) -> ImageForm:
        """From `448`, `short`, `short:256` or `none`."""
        name, colon, size = resize.partition(":")
        if name.isdecimal() and not colon:
            name, size = "squash", name
        sized = size.isdecimal() and 1 <= int(size) <= 8192 and (name == "short" or not colon)
        if name not in ("squash", "short", "none") or ((size or colon) and not sized):
            raise ValueError(f"resize={resize!r}: give pixels up to 8192 (448: squash), short, short:PIXELS or none")
        if not 1 <= quality <= 95:
            raise ValueError(f"quality={quality}: of JPEG, 1..95")
        return cls(name, int(size or SIZE), quality)  # type: ignore[arg-type]  # just checked

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that an upright image of this size becomes."""
        if self.resize == "none":
            return width, height
        if self.resize == "squash":
            return self.size, self.size
        shorter = min(width, height)
        return max(1, round(width * self.size / shorter)), max(1, round(height * self.size / shorter))


def codec_versions() -> str:
    """The libraries that decide the bytes of an encoded image."""
    return f"pillow {features.version('pil')}, libjpeg-turbo {features.version('libjpeg_turbo')}"


@dataclass(frozen=True)
class Converted:
    """An image in the form of a data set."""

    content: bytes
    """JPEG."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Its pixels per pixel of the upright source image, in x and y."""


def convert(content: bytes, form: ImageForm) -> Converted:
    """The picture in `content`, of any format that Pillow reads, as a JPEG of this form.

    Raises:
        ValueError: it cannot be decoded; the message is the reason.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if _is_plain(image, content) and form.target(*image.size) == image.size:
                return Converted(content)
            picture = upright_rgb(image)
            before, size = picture.size, form.target(*picture.size)
            if size != before:
                picture = picture.resize(size, Image.Resampling.BILINEAR)
            encoded = io.BytesIO()
            picture.save(encoded, "JPEG", quality=form.quality, subsampling="4:2:0")
            return Converted(encoded.getvalue(), (size[0] / before[0], size[1] / before[1]))
    except UnidentifiedImageError:  # its text holds an address, another one each time
        raise ValueError("not an image of a known format") from None
    except UNREADABLE as error:
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from None


def _is_plain(image: Image.Image, content: bytes) -> bool:
    """A whole upright RGB JPEG, as far as can be told without decoding it."""
    whole = image.format == "JPEG" and image.mode == "RGB" and END_OF_IMAGE in content[-_END_BYTES:]
    return whole and ("exif" not in image.info or image.getexif().get(_ORIENTATION, 1) == 1)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Rotated as EXIF says, converted to RGB, alpha dropped."""
    if image.mode.startswith("I"):  # 16 bits of grey
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    image.info.pop("transparency", None)  # of palettes: dropped as any other alpha
    upright = ImageOps.exif_transpose(image)
    return upright if upright.mode == "RGB" else upright.convert("RGB")
