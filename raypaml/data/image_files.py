"""Opens all image files: only formats of a list, only up to a number of pixels, and any failure as one ValueError."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from PIL import Image, PngImagePlugin, TiffImagePlugin, features

from raypaml.cli import extra
from raypaml.files import START_BYTES, came_instead

MAX_PIXELS = 200_000_000
"""A picture with more pixels is refused before it is decoded. In memory, a pixel takes up to four bytes."""
LARGE = 50_000_000
"""A JPEG with more pixels is decoded at 1/2, 1/4 or 1/8 of its size, if that is large enough."""
MOST_SCANS = 100
"""A JPEG of more scans is refused: ten bytes of the file make one, and each takes the time of the whole picture.
Progressive JPEGs have about ten."""
MAX_BYTES = 1 << 31
"""A picture's file of more bytes is refused before it is read: MAX_PIXELS take fewer in every format, even as they are
stored without compression."""
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
"""The formats that are read, and Pillow's modules for them. Pillow's other formats are never tried, because some of
them (PostScript) are passed to programs that execute what is in the file."""
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".avifs"),
    *(".jp2", ".j2k", ".jpx", ".jpf", ".heic", ".heif", ".hif", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jxl", ".psd", ".svg", ".eps", ".ico", ".tga", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf"),
)
"""Suffixes of files that are taken for pictures. Those of them that cannot be read are reported, never ignored."""
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
"""The first bytes of common formats that are not read."""
_PROLOGUE = 4096
"""Bytes within which the first element of an SVG must begin, after XML's declaration, comments and document type."""
_OF_JPEG = ("JPEG", "MPO")
"""Pillow's names of a JPEG's format; MPO are several in one file."""
_SCAN, _SEQUENTIAL = b"\xff\xda", (0xC0, 0xC1)
"""The marker of a scan, and the second bytes of those of a sequential frame, in a JPEG."""
_NO_LENGTH = (0x00, 0x01, *range(0xD0, 0xDA), 0xFF)
"""Second bytes of what is no segment: stuffed and fill bytes, and markers that no length follows."""
_MOST_SEGMENTS = 1000
"""Segments of a JPEG before its picture that are looked at."""
_PNG_LIMITS = f"{PngImagePlugin.MAX_TEXT_CHUNK:,} bytes each, {PngImagePlugin.MAX_TEXT_MEMORY:,} together"
_SUBFILE_TYPE, _REDUCED, _DNG_VERSION = 254, 1, 50706
"""Tags of TIFF, and between them the bit of the first that marks a reduced copy of another image in the file."""
_CONTAINERS = (b"mif1", b"msf1")
"""Brands that both AVIF and HEIC files have."""


@cache
def _openers() -> dict[str, tuple[Any, Any]]:
    """For each format that can be read here, Pillow's function that opens it and the one that tests the first bytes."""
    for plugin in _PLUGINS.values():
        with suppress(ImportError):  # Pillow has AVIF since 11.3
            importlib.import_module(f"PIL.{plugin}")
    names = list(_PLUGINS)
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
        names.append("HEIF")
    return {name: Image.OPEN[name] for name in names if name in Image.OPEN}


@contextmanager
def opened(content: bytes) -> Iterator[Image.Image]:
    """Give the picture in these bytes; it is decoded in the block.

    Any exception in the block is attributed to the picture, because decoders raise many types of exceptions; those
    written in Rust even raise some that are not derived from `Exception`.

    Raises:
        ValueError: the bytes are not a picture in one of the formats, it has more than MAX_PIXELS pixels, or it cannot
            be decoded. The message is the reason, on one line.
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
    # of metadata that are damaged, as those of many photographs are; the picture is read or refused
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    for name, (factory, accepts) in _openers().items():
        if accepts(start) is not True:  # else False, or a text with a reason
            continue
        try:
            image: Image.Image = factory(io.BytesIO(content), "")
        except Exception as error:
            kind = f"damaged {name}: {_reason(error)}"
            continue  # a HEIC file may have a brand of AVIF
        check_pixels(*image.size)
        if image.format in _OF_JPEG:
            check_scans(content)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            tags = image.tag_v2  # of a camera's raw file Pillow would only decode the thumbnail
            if start[8:10] == b"CR" or tags.get(_SUBFILE_TYPE, 0) & _REDUCED or _DNG_VERSION in tags:
                raise ValueError("not an image of a known format (a camera's raw file); export it as JPEG or PNG")
        return image
    named = kind if kind and content[8:12] not in _CONTAINERS else _kind(content)
    raise ValueError(f"not an image of a known format ({named})")


def check_pixels(width: int, height: int) -> None:
    """Raise ValueError for a picture that has too many pixels to be decoded."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width:,} x {height:,} pixels; the limit is {MAX_PIXELS:,}: make it smaller first")


def check_bytes(size: int) -> None:
    """Raise ValueError for a picture's file that is too large to be read."""
    if size > MAX_BYTES:
        raise ValueError(f"{size:,} bytes; the limit is {MAX_BYTES:,}: no picture that can be decoded needs as many")


def check_scans(content: bytes) -> None:
    """Raise ValueError for a JPEG of too many scans to be decoded in a bounded time."""
    if _is_one_scan(content):
        return  # counting takes a tenth of the time of decoding
    scans = content.count(_SCAN)
    if scans > MOST_SCANS:
        raise ValueError(f"a JPEG of {scans:,} scans; the limit is {MOST_SCANS}: save it again")


def _is_one_scan(content: bytes) -> bool:
    """Whether a JPEG is sequential and its first scan has all components, after which decoders read no other."""
    place, components = 2, 0
    for _ in range(_MOST_SEGMENTS):
        segment = content[place : place + 10]
        if len(segment) < 10 or segment[0] != 0xFF or segment[1] in _NO_LENGTH:
            return False  # decoders step over some of these, after which the segments are others than here
        if segment[1] in _SEQUENTIAL:
            components = segment[9]
        if segment[:2] == _SCAN:
            return components == segment[4]
        place += 2 + int.from_bytes(segment[2:4], "big")
    return False


def _kind(content: bytes) -> str:
    """What these bytes are, if they are not a picture in a format that is read."""
    start = content.lstrip(b"\xef\xbb\xbf \t\r\n")
    instead = came_instead(content[:START_BYTES])
    if start.startswith((b"<?xml", b"<!--", b"<!DOCTYPE svg")) and b"<svg" in start[:_PROLOGUE]:
        return "SVG"
    if instead:
        return instead
    if content[4:8] == b"ftyp":
        brand = content[8:12]
        if brand in (b"avif", b"avis"):
            return f"AVIF, which Pillow {features.version('pil')} cannot read; install Pillow 11.3 or later"
        heic = brand[:2] in (b"he", b"mi", b"ms")
        needs = f"HEIC; reading it needs pillow-heif: {extra('heif')}"
        return needs if heic else f"ISO media of the brand {brand.decode('latin-1')!r}"
    return next((kind for sign, kind in _SIGNS if start.startswith(sign)), f"it begins with {content[:8]!r}")


def _reason(error: BaseException) -> str:
    """The error's text on one line, with the name of its type where the text alone would not be understood."""
    text = " ".join(str(error).split())[:200]
    if isinstance(error, MemoryError):
        return f"not enough memory to decode it {text}".strip()
    if "MAX_TEXT" in text:  # constants of Pillow's PngImagePlugin
        return f"its texts and colour profile are too large once decompressed; the limits are {_PNG_LIMITS}"
    plain = isinstance(error, OSError | ValueError | SyntaxError | Image.DecompressionBombError)
    return text if plain and text else f"{type(error).__name__} {text}".strip()


def shrink_early(image: Image.Image, width: int, height: int) -> None:
    """Let libjpeg decode a large JPEG at a fraction of its size, at which it still has twice the given width and
    height.

    A JPEG of 13,000 x 13,000 pixels then takes a few megabytes of memory instead of 0.7 GB.
    """
    if image.format in _OF_JPEG and image.width * image.height > LARGE:
        side = 2 * max(width, height)  # for both sides, because it may still have to be rotated
        image.draft(None, (side, side))
