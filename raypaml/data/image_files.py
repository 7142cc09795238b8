"""The one door through which pictures come in: a list of formats, a limit of pixels, every fault that of its file."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from PIL import Image, features

from raypaml.cli import extra
from raypaml.files import START_BYTES, came_instead

MAX_PIXELS = 200_000_000
"""A picture with more pixels is refused before one is decoded. In memory a pixel takes up to four bytes."""
LARGE = 50_000_000
"""Pixels from which a JPEG is decoded at a half, a quarter or an eighth of its size, where that is enough."""
_PLUGINS = {
    "JPEG": "JpegImagePlugin",
    "PNG": "PngImagePlugin",
    "WEBP": "WebPImagePlugin",
    "GIF": "GifImagePlugin",
    "BMP": "BmpImagePlugin",
    "TIFF": "TiffImagePlugin",
    "AVIF": "AvifImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
    "PPM": "PpmImagePlugin",
}
"""What is read, and where Pillow reads it. No other format that Pillow knows is ever tried: some of them (PostScript)
are handed to programs that run what is in the file."""
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".avifs"),
    *(".jp2", ".j2k", ".jpx", ".jpf", ".heic", ".heif", ".hif", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jxl", ".psd", ".svg", ".eps", ".ico", ".tga", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf"),
)
"""Names by which files are taken for pictures; one that cannot be read is then named, never passed over."""
_SIGNS: tuple[tuple[bytes, str], ...] = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"<svg", "SVG"),
    (b"FUJIFILM", "a camera's raw file"),
    (b"PK\3\4", "a ZIP archive"),
)
"""How formats begin that people meet and that are not read."""
_PROLOGUE = 4096
"""Bytes in which an SVG's first element begins, after XML's declaration, comments and the type of the document."""
_SUBFILE_TYPE, _REDUCED, _DNG_VERSION = 254, 1, 50706
"""Tags of TIFF. The bit of the first says that this picture is a small copy of another one in the same file."""
_CONTAINERS = (b"mif1", b"msf1")
"""Brands of AVIF and HEIC alike."""


@cache
def _openers() -> dict[str, tuple[Any, Any]]:
    """What opens each format that can be read here, and what knows it by its first 16 bytes."""
    for plugin in _PLUGINS.values():
        with suppress(ImportError):  # AVIF is Pillow's since 11.3
            importlib.import_module(f"PIL.{plugin}")
    names = list(_PLUGINS)
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
        names.append("HEIF")
    return {name: Image.OPEN[name] for name in names if name in Image.OPEN}


@contextmanager
def opened(content: bytes) -> Iterator[Image.Image]:
    """The picture in these bytes; what is done with it in the block may decode it.

    Whatever is raised in the block is this picture's fault: decoders raise exceptions of many kinds, those written in
    Rust even some that are no `Exception`.

    Raises:
        ValueError: not a picture of a format that is read, larger than MAX_PIXELS, or one whose decoding fails. The
            message is the reason, on one line.
    """
    try:
        with _open(content) as image:
            yield image
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise ValueError(_reason(error)) from None


def _open(content: bytes) -> Image.Image:
    start, kind = content[:16], ""
    for name, (factory, accepts) in _openers().items():
        if accepts(start) is not True:  # False, or a text that says why not
            continue
        try:
            image: Image.Image = factory(io.BytesIO(content), "")
        except Exception as error:
            kind = f"damaged {name}: {_reason(error)}"
            continue  # HEIC has brands of AVIF
        check_pixels(*image.size)
        if name == "TIFF":
            _refuse_raw(image, start)
        return image
    named = kind if kind and content[8:12] not in _CONTAINERS else _kind(content)
    raise ValueError(f"not an image of a known format ({named})")


def check_pixels(width: int, height: int) -> None:
    """Raise ValueError for a picture that is too large to be decoded."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width:,} x {height:,} pixels; the limit is {MAX_PIXELS:,}: make it smaller first")


def _refuse_raw(image: Any, start: bytes) -> None:
    """Raise ValueError for a camera's raw file, of which Pillow would give the thumbnail."""
    tags = image.tag_v2
    if start[8:10] == b"CR" or tags.get(_SUBFILE_TYPE, 0) & _REDUCED or _DNG_VERSION in tags:
        raise ValueError("not an image of a known format (a camera's raw file); export it as JPEG or PNG")


def _kind(content: bytes) -> str:
    """What bytes seem to be that are no picture of a format that is read."""
    start = content.lstrip(b"\xef\xbb\xbf \t\r\n")
    instead = came_instead(content[:START_BYTES])
    if start.startswith((b"<?xml", b"<!--", b"<!DOCTYPE svg")) and b"<svg" in start[:_PROLOGUE]:
        return "SVG"
    if instead:
        return instead
    if content[4:8] == b"ftyp":
        return _kind_of_brand(content[8:12])
    return next((kind for sign, kind in _SIGNS if start.startswith(sign)), f"it begins with {content[:8]!r}")


def _kind_of_brand(brand: bytes) -> str:
    if brand in (b"avif", b"avis"):
        return f"AVIF, which Pillow {features.version('pil')} cannot read; install Pillow 11.3 or later"
    if brand[:2] in (b"he", b"mi", b"ms"):
        return f"HEIC; reading it needs pillow-heif: {extra('heif')}"
    return f"ISO media of the brand {brand.decode('latin-1')!r}"


def _reason(error: BaseException) -> str:
    """One line; the type's name where the text alone says nothing."""
    text = " ".join(str(error).split())[:200]
    if isinstance(error, MemoryError):
        return f"not enough memory to decode it {text}".strip()
    plain = isinstance(error, OSError | ValueError | SyntaxError | Image.DecompressionBombError)
    return text if plain and text else f"{type(error).__name__} {text}".strip()


def shrink_early(image: Image.Image, width: int, height: int) -> None:
    """Have a large JPEG decoded at a fraction of its size, as long as it stays twice as wide and high as this.

    A JPEG of 13,000 x 13,000 pixels then takes a few megabytes instead of 0.7 GB. (libjpeg's scaled decoding.)
    """
    if image.format in ("JPEG", "MPO") and image.width * image.height > LARGE:
        side = 2 * max(width, height)  # of either side, for it may still be turned
        image.draft(None, (side, side))
