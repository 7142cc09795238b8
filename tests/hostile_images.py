"""Picture files that a hostile hand wrote: small on disk, and made to take much memory or time."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.odd_images import encoded, picture

SIDE = 24
FRAMES = 10_000
_BOMB = 1 << 26
"""Bytes of zeros, a thousandth of them on disk."""
PLAIN = picture(np.random.default_rng(0), (SIDE, SIDE))


def png_chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png_with(*chunks: bytes) -> bytes:
    whole = encoded(PLAIN, "PNG")
    return whole[:33] + b"".join(chunks) + whole[33:]


def _segments(marker: int, start: bytes, count: int) -> bytes:
    """A JPEG with many segments of 64 KB before its picture."""
    whole = encoded(PLAIN)
    segment = bytes([0xFF, marker]) + struct.pack(">H", 65535) + start.ljust(65533, b"x")
    return whole[:2] + segment * count + whole[2:]


def scans(count: int, side: int, *, progressive: bool = True) -> bytes:
    """A grey JPEG of `side` x `side` pixels in scans of ten bytes that hold nothing."""
    table = b"\xff\xdb\x00\x43\0" + bytes([1] * 64)
    codes = b"\xff\xc4\x00\x14\x00\x01" + bytes(15) + b"\0" + b"\xff\xc4\x00\x14\x10\x01" + bytes(15) + b"\0"
    colours = 1 if progressive else 3
    components = b"".join(bytes([n + 1, 0x11, 0]) for n in range(colours))
    frame = bytes([0xFF, 0xC2 if progressive else 0xC0]) + struct.pack(
        ">HBHHB", 8 + 3 * colours, 8, side, side, colours
    )
    first = b"\xff\xda\x00\x08\x01\x01\x00\x00" + (b"\x00\x01" if progressive else b"\x3f\x00")
    later = b"\xff\xda\x00\x08\x01\x01\x00\x00" + (b"\x00\x10" if progressive else b"\x3f\x00")
    return b"\xff\xd8" + table + codes + frame + components + first + later * (count - 1) + b"\xff\xd9"


def _scans_behind_a_fill_byte() -> bytes:
    """50,000 scans after a comment that is preceded by a fill byte, and holds the head of a sequential JPEG.

    Whoever takes the fill byte for a marker finds this head at byte 65,283, for the length begins with 0xfe then.
    """
    head = b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, 16, 16, 1) + b"\1\x11\0" + b"\xff\xda\0\x08\1\1\0\0\x3f\0"
    whole, before = scans(50_000, 8000), b"\xff\xff\xfe\xff\xff"
    comment = bytes(4 + 0xFEFF - len(whole[:2] + before)) + head
    return whole[:2] + before + comment.ljust(65533, b"x") + whole[2:]


def _gif() -> bytes:
    one = encoded(PLAIN.convert("P"), "GIF")
    start = 13 + 3 * 2 ** ((one[10] & 7) + 1)
    return one[:start] + one[start:-1] * FRAMES + b";"


def _webp() -> bytes:
    still = encoded(PLAIN, "WEBP", lossless=True)[12:]
    side = (SIDE - 1).to_bytes(3, "little")
    frame = bytes(6) + side * 2 + (10).to_bytes(3, "little") + b"\0" + still
    frame = b"ANMF" + struct.pack("<I", len(frame)) + frame
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + side * 2
    body += b"ANIM" + struct.pack("<I", 6) + bytes(6) + frame * FRAMES
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _tiff(frames: int = FRAMES, *, cycle: bool = False) -> bytes:
    """Many pictures, each of which is the same pixels; or the last leads to the first."""
    fields = [(256, 3, 8), (257, 3, 8), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 8)]
    fields += [(279, 4, 64)]
    size = 2 + 12 * len(fields) + 4
    first, parts = 8 + 64, []
    for number in range(frames):
        following = first + (number + 1) * size if number < frames - 1 else first * cycle
        entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in fields)
        parts.append(struct.pack("<H", len(fields)) + entries + struct.pack("<I", following))
    return b"II*\0" + struct.pack("<I", first) + bytes(range(64)) + b"".join(parts)


def _tiff_count() -> bytes:
    """A field of four thousand million values."""
    content = bytearray(_tiff(1))
    content[72 + 2 + 5 * 12 + 4 : 72 + 2 + 5 * 12 + 8] = b"\xff\xff\xff\xff"
    return bytes(content)


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    exif[0x0112] = 1
    return encoded(PLAIN, exif=exif)


def _xmp() -> bytes:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    text = f'<!DOCTYPE x [<!ENTITY e0 "ha">{entities}]><x tiff:Orientation="1">&e11;{"<a>" * 15_000}</x>'
    return encoded(PLAIN, xmp=text.encode()[:65_000])


_ZEROS = zlib.compress(bytes(_BOMB), 9)
_LARGE_TEXT = "the limits are 1,048,576 bytes each, 67,108,864 together"
READ: dict[str, Callable[[], bytes]] = {
    "GIF of 10,000 frames": _gif,
    "WebP of 10,000 frames": _webp,
    "TIFF of 10,000 pictures": _tiff,
    "TIFF whose last picture leads to the first": lambda: _tiff(3, cycle=True),
    "APNG that claims 2^31 frames": lambda: _png_with(png_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    "JPEG with 16 MB of ICC profile": lambda: _segments(0xE2, b"ICC_PROFILE\0\1\1", 250),
    "JPEG with 16 MB of XMP": lambda: _segments(0xE1, b"http://ns.adobe.com/xap/1.0/\0", 250),
    "JPEG with 16 MB of comments": lambda: _segments(0xFE, b"", 250),
    "JPEG with a long EXIF": _exif,
    "JPEG with XMP of many entities": _xmp,
    "PNG with 10,000 empty chunks": lambda: _png_with(*[png_chunk(b"teSt", b"")] * 10_000),
}
"""Their first picture is read."""
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "PNG with a compressed profile of 64 MB": (lambda: _png_with(png_chunk(b"iCCP", b"p\0\0" + _ZEROS)), _LARGE_TEXT),
    "PNG with a compressed text of 64 MB": (lambda: _png_with(png_chunk(b"zTXt", b"k\0\0" + _ZEROS)), _LARGE_TEXT),
    "PNG with an international text of 64 MB": (
        lambda: _png_with(png_chunk(b"iTXt", b"k\0\1\0\0\0" + _ZEROS)),
        _LARGE_TEXT,
    ),
    "PNG with 70 texts of 1 MB": (
        lambda: _png_with(*[png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20)))] * 70),
        _LARGE_TEXT,
    ),
    "progressive JPEG of 50,000 scans": (lambda: scans(50_000, 8000), "50,000 scans; the limit is 100"),
    "sequential JPEG of 50,000 scans": (
        lambda: scans(50_000, 8000, progressive=False),
        "50,000 scans; the limit is 100",
    ),
    "progressive JPEG behind a fill byte": (_scans_behind_a_fill_byte, "50,001 scans; the limit is 100"),
    "TIFF with a field of 2^32 values": (_tiff_count, ""),
}
"""They are refused, and what is said of the limit."""
