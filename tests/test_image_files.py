"""Pictures as people have them: read and right, or named with the true reason; and never a program started for one."""

from __future__ import annotations

import io
import json
import re
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, PngImagePlugin

from raypaml import shard
from raypaml.data import image_files
from raypaml.data.batches import BrokenSampleError, Reader
from raypaml.data.hidden_files import PassedOver
from raypaml.data.images import decode
from raypaml.data.index import open_index
from raypaml.data.shards import Sample, write_dataset
from raypaml.data.verify_shard import verify_shard
from raypaml.inference import predict_onnx
from raypaml.inference.pictures import find_pictures, fit_to_size, read_picture
from raypaml.preparation.image_form import ImageForm, convert
from tests.odd_images import encoded, picture

ROOT = Path(__file__).parents[1] / "raypaml"
NONE = ImageForm("none")
SIDE = 16


def prepared(content: bytes, form: ImageForm = NONE) -> NDArray[np.uint8]:
    return decode(convert(content, form).content)


def predicted(content: bytes, folder: Path, background: str = "white") -> NDArray[np.uint8]:
    (folder / "picture").write_bytes(content)
    (found,) = find_pictures([str(folder / "picture")], background)
    return read_picture(found, SIDE, SIDE)


def said(content: bytes, folder: Path) -> str:
    """The reason, one line and the same from training, preparation and prediction."""
    doors: list[Callable[[], Any]] = [lambda: decode(content), lambda: prepared(content)]
    reasons = set()
    for door in [*doors, lambda: predicted(content, folder)]:
        with pytest.raises(ValueError) as raised:
            door()
        reasons.add(str(raised.value).removeprefix("cannot be decoded: "))
    (reason,) = reasons
    assert "\n" not in reason
    return reason


def flat(value: Any, dtype: Any = np.uint8) -> Image.Image:
    """A grey or coloured square."""
    return Image.fromarray(np.full((SIDE, SIDE, *np.shape(value)), value, dtype))


# --- What is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
def test_each_format_is_read_by_training_preparation_and_prediction(kind: str, tmp_path: Path) -> None:
    content = encoded(flat((200, 40, 90)), kind)
    for pixels in (decode(content), prepared(content), predicted(content, tmp_path)):
        assert np.abs(pixels.astype(int) - (200, 40, 90)).max() <= 6


def test_pictures_are_opened_in_one_place() -> None:
    opening = re.compile(r"Image\.(open|OPEN)\b|ImagePlugin|PIL import open")
    places = {path.name for path in ROOT.rglob("*.py") if opening.search(path.read_text())}
    assert places == {"image_files.py", "predict_onnx.py"}  # an example that runs without raypaml
    assert tuple(image_files._PLUGINS) == predict_onnx.PICTURE_FORMATS


@pytest.mark.parametrize("lead", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, 200)])
def test_postscript_never_reaches_ghostscript(lead: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording `gs` stands where Pillow would find it; the same bytes do reach it through Image.open."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\necho > {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None, raising=False)
    body = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"
    content = body if lead.startswith(b"%") else lead.ljust(32, b"\0") + body.ljust(200)
    assert said(content, tmp_path) == "not an image of a known format (PostScript)"
    assert not (tmp_path / "ran").exists()
    with pytest.raises(OSError), Image.open(io.BytesIO(body)) as image:
        image.load()
    assert (tmp_path / "ran").exists()


# --- What is refused by name ------------------------------------------------------------------------------------------


def isobmff(brand: bytes) -> bytes:
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + brand + b"\0\0\0\0" + bytes(100)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "0 bytes"),
        (bytes(500), "nothing but zeros"),
        (b"\n <!DOCTYPE HTML><html>404</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer: run git lfs pull"),
        (b"%PDF-1.7", "PDF"),
        (b"8BPS\0\1" + bytes(50), "Photoshop"),
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'<!DOCTYPE svg PUBLIC "x">\n<svg/>', "SVG"),
        (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "XML, such as a store's error"),
        (b"\x1f\x8b\x08" + bytes(20), "a gzip archive"),
        (b"FUJIFILMCCD-RAW 0201", "a camera's raw file"),
        (isobmff(b"qt  "), "ISO media of the brand"),
        (isobmff(b"avif"), "damaged AVIF: "),
        (b"just text", "it begins with b'just tex'"),
        (encoded(flat(9))[:30], "damaged JPEG: Truncated File Read"),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(content: bytes, kind: str, tmp_path: Path) -> None:
    assert said(content, tmp_path).startswith(f"not an image of a known format ({kind}")


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_heic_names_what_it_needs(brand: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    image_files._openers.cache_clear()
    assert re.search(
        r"HEIC; reading it needs pillow-heif: \S+ -m pip install '.*\[heif\]'", said(isobmff(brand), tmp_path)
    )


def test_heic_is_read_by_pillow_heif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plugin is asked for; that a real one reads real files was tried by hand (version 1.8.1)."""

    def register() -> None:
        monkeypatch.setitem(Image.OPEN, "HEIF", (lambda *_: flat((1, 2, 3)), lambda start: b"heic" in start))

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    image_files._openers.cache_clear()
    assert decode(isobmff(b"heic"))[0, 0].tolist() == [1, 2, 3]
    image_files._openers.cache_clear()


@pytest.mark.parametrize(("tag", "value"), [(254, 1), (50706, b"\1\4\0\0")])
def test_raw_photographs_are_not_taken_for_their_thumbnails(tag: int, value: Any, tmp_path: Path) -> None:
    content = encoded(flat(100), "TIFF", tiffinfo={tag: value})
    assert said(content, tmp_path) == ("not an image of a known format (a camera's raw file); export it as JPEG or PNG")


class Panic(BaseException):
    """As exceptions of decoders in Rust are."""


FAULTS = [RuntimeError("lost"), Panic("at line 3"), MemoryError(), KeyError(5), struct.error("short"), zlib.error("-3")]
FAULTS += [AttributeError("x"), EOFError(), ZeroDivisionError("by zero"), RecursionError("deep"), SyntaxError("odd")]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_whatever_a_decoder_raises_is_that_files_fault(
    fault: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: object) -> None:
        raise fault

    content = encoded(picture(np.random.default_rng(0), (40, 30)), "PNG")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    reason = said(content, tmp_path)
    assert "not enough memory" in reason if isinstance(fault, MemoryError) else str(fault) in reason
    assert reason


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_whoever_stops_the_process_stops_it(stop: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: object) -> None:
        raise stop

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(stop):
        decode(encoded(flat(7), "PNG"))


# --- Size -------------------------------------------------------------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    """The head of a PNG of any size."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 100) + b"IDAT" + bytes(104)


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose head tells another size."""
    content = encoded(flat((9, 9, 9)))
    return content.replace(struct.pack(">HH", SIDE, SIDE), struct.pack(">HH", height, width), 1)


@pytest.mark.parametrize("make", [png_of, jpeg_of])
def test_more_than_200_million_pixels_are_refused(make: Callable[[int, int], bytes], tmp_path: Path) -> None:
    assert said(make(20_001, 10_000), tmp_path) == (
        "20,001 x 10,000 pixels; the limit is 200,000,000: make it smaller first"
    )


def test_190_million_pixels_are_not_refused_for_their_number(tmp_path: Path) -> None:
    assert "limit" not in said(png_of(19_000, 10_000), tmp_path)


def test_a_large_jpeg_is_decoded_at_a_fraction(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nearly the same picture, its boxes to the same scale, and a data set that was begun without goes on without."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(picture(np.random.default_rng(3), (800, 404)), exif=exif)
    whole = convert(content, ImageForm("squash", SIDE))
    decoded = []
    load = JpegImagePlugin.JpegImageFile.load

    def watched(image: Any) -> Any:
        decoded.append(image.size)
        return load(image)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", watched)
    monkeypatch.setattr(image_files, "LARGE", 800 * 404 - 1)
    reduced = convert(content, ImageForm("squash", SIDE))
    assert decoded[0] == (100, 51)
    assert reduced.scale == whole.scale == (SIDE / 404, SIDE / 800)
    assert np.abs(decode(reduced.content).astype(int) - decode(whole.content)).mean() < 3
    assert convert(content, ImageForm("squash", SIDE, large_jpegs="whole")) == whole
    assert np.abs(predicted(content, tmp_path).astype(int) - decode(whole.content)).mean() < 12  # not encoded
    assert {size for size in decoded if size[0] < 800} == {(100, 51)}
    decoded.clear()
    assert convert(content, NONE).scale == (1, 1)  # what keeps its size is decoded whole
    assert decoded[0] == (800, 404)


# --- Colours ----------------------------------------------------------------------------------------------------------


def half_clear(mode: str) -> bytes:
    """Red, hidden in its left half."""
    pixels = np.full((SIDE, SIDE, 4), (255, 0, 0, 255), np.uint8)
    pixels[:, : SIDE // 2, 3] = 0
    image = Image.fromarray(pixels)
    if mode == "P":
        image = Image.fromarray((pixels[..., 3] > 0).astype(np.uint8), "L").convert("P")
        image.putpalette([255, 0, 0, 255, 0, 0])
        return encoded(image, "PNG", transparency=0)
    if mode == "LA":
        image = Image.merge("LA", (Image.new("L", image.size, 76), image.getchannel("A")))
    return encoded(
        image, "WEBP" if mode == "webp" else "PNG", **({"lossless": True, "exact": True} if mode == "webp" else {})
    )


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "webp"])
def test_what_is_transparent_shows_the_background(mode: str, tmp_path: Path) -> None:
    content = half_clear(mode)
    opaque = (76, 76, 76) if mode == "LA" else (255, 0, 0)
    for background, clear in (("white", (255, 255, 255)), ("#204060", (32, 64, 96)), ("none", opaque)):
        pixels = [prepared(content, ImageForm("none", background=background)), predicted(content, tmp_path, background)]
        pixels += [decode(content)] if background == "white" else []
        for found in pixels:
            assert np.abs(found[5, 2].astype(int) - clear).max() <= 6
            assert np.abs(found[5, -2].astype(int) - opaque).max() <= 6


def test_a_background_that_is_no_colour_is_refused() -> None:
    with pytest.raises(ValueError, match="background='whitte': give a colour such as white, grey or #80a0ff, or none"):
        ImageForm.parse("448", background="whitte")


def grey16(values: NDArray[np.uint16], kind: str, **options: Any) -> bytes:
    return encoded(Image.fromarray(values), kind, **options)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_of_grey_keep_the_higher_8(kind: str, tmp_path: Path) -> None:
    content = grey16(np.full((SIDE, SIDE), 180 * 256 + 77, np.uint16), kind)
    for pixels in (decode(content), prepared(content), predicted(content, tmp_path)):
        assert np.abs(pixels.astype(int) - 180).max() <= 1


def grey12(value: int, orientation: int) -> bytes:
    """A TIFF with 12 bits in a pixel, which Pillow reads and cannot write."""
    pixels = bytes.fromhex(f"{value:03x}" * SIDE * SIDE)
    tags = {256: SIDE, 257: SIDE, 258: 12, 259: 1, 262: 1, 273: 8, 274: orientation, 277: 1, 278: SIDE}
    tags[279] = len(pixels)
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, number, 0) for tag, number in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("orientation", [1, 6])
def test_12_bits_of_grey_are_scaled_by_12(orientation: int, tmp_path: Path) -> None:
    content = grey12(4000, orientation)
    for pixels in (decode(content), prepared(content), predicted(content, tmp_path)):
        assert np.abs(pixels.astype(int) - 250).max() <= 1


def test_a_transparent_value_of_16_bits(tmp_path: Path) -> None:
    values = np.full((SIDE, SIDE), 1000, np.uint16)
    values[:, 8:] = 40_000
    assert decode(grey16(values, "PNG", transparency=1000))[0, [0, -1], 0].tolist() == [255, 40_000 >> 8]


def test_floating_point_from_0_to_1_is_scaled(tmp_path: Path) -> None:
    content = encoded(flat(0.6, np.float32), "TIFF")
    for pixels in (decode(content), prepared(content), predicted(content, tmp_path)):
        assert np.abs(pixels.astype(int) - 153).max() <= 1


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (flat(120.0, np.float32), "floating-point pixels from 120 to 120; expected 0..1: scale them, or save 8 bits"),
        (flat(-0.5, np.float32), "floating-point pixels from -0.5 to -0.5; expected 0..1"),
        (flat(np.nan, np.float32), "floating-point pixels from nan to nan; expected 0..1"),
        (flat(200, np.int32), "integer pixels of 32 bits, here 200 to 200, have no defined white; save 8 or 16 bits"),
    ],
)
def test_pixels_without_a_defined_white_are_refused(image: Image.Image, reason: str, tmp_path: Path) -> None:
    assert said(encoded(image, "TIFF"), tmp_path).startswith(reason)


# --- Orientation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ['tiff:Orientation="6"', "<tiff:Orientation>6</tiff:Orientation>"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_in_xmp_counts_as_in_exif(kind: str, form: str, tmp_path: Path) -> None:
    stored = flat((10, 10, 10))
    stored.paste((250, 250, 250), (0, 0, SIDE, 8))  # light above, so light on the right once it is turned
    xmp = f'<x:xmpmeta><rdf:Description {form} xmlns:tiff="t"/></x:xmpmeta>'
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp)
        content = encoded(stored, kind, pnginfo=info)
    else:
        content = encoded(stored, kind, xmp=xmp.encode())
    for pixels in (prepared(content), predicted(content, tmp_path)):
        assert pixels[8, -2].min() > 200 > 60 > pixels[8, 2].max()
    assert Image.open(io.BytesIO(convert(content, NONE).content)).getexif().get(0x0112, 1) == 1


def test_a_turned_tiff_is_turned_once_and_its_boxes_scaled_so(tmp_path: Path) -> None:
    stored = Image.new("RGB", (40, 20))
    found = convert(encoded(stored, "TIFF", tiffinfo={0x0112: 6}), ImageForm("squash", 10))
    assert found.scale == (10 / 20, 10 / 40)


def test_the_given_picture_stays_as_it_is() -> None:
    image = Image.open(io.BytesIO(half_clear("P")))
    before = image.info.copy()
    fit_to_size(image, SIDE, SIDE, "none")
    assert (image.info, image.size) == (before, (SIDE, SIDE))


# --- Folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_gives_every_picture_and_counts_the_rest(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.jfif", "c.avif", "d.jp2", "e.heic", "f.nef", "g.txt", "h.TXT", "LICENSE", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"")
    passed_over = PassedOver(list)
    found = [Path(one.name).name for one in find_pictures([str(tmp_path)], passed_over=passed_over)]
    assert found == ["a.JPG", "b.jfif", "c.avif", "d.jp2", "e.heic", "f.nef"]
    assert passed_over == {".txt": ["g.txt", "h.TXT"], "no suffix": ["LICENSE"], "hidden": [".hidden.jpg"]}


# --- A whole preparation ----------------------------------------------------------------------------------------------


def shard_folder(folder: Path, out: Path, *more: str) -> int:
    return shard.main(["folder", str(folder), "--out", str(out), "--resize", "none", "--workers", "1", *more])


def test_a_begun_data_set_keeps_its_background(tmp_path: Path) -> None:
    """One of an earlier version, which dropped transparency, goes on so; another background is refused."""
    for split in ("train", "validation", "test"):
        for name in ("a", "b"):
            (tmp_path / "in" / split / name).mkdir(parents=True)
            (tmp_path / "in" / split / name / f"{split}_{name}.png").write_bytes(half_clear("RGBA"))
    assert shard_folder(tmp_path / "in", tmp_path / "new") == 0
    assert shard_folder(tmp_path / "in", tmp_path / "old", "--split", "train", "--background", "none") == 0
    path = tmp_path / "old" / "preparation.json"
    record = json.loads(path.read_text())
    assert record["parameters"].pop("background") == "none"
    assert record["parameters"].pop("large_jpegs") == "reduced"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"background=none \(asked: white\); give another --out"):
        shard_folder(tmp_path / "in", tmp_path / "old", "--background", "white")
    assert shard_folder(tmp_path / "in", tmp_path / "old") == 0
    assert json.loads(path.read_text())["parameters"]["large_jpegs"] == "whole"
    clear = {name: first_pixel(tmp_path / name) for name in ("old", "new")}
    assert clear["new"].min() > 250
    assert clear["old"][1:].max() < 10 < 250 < clear["old"][0]


def first_pixel(data: Path) -> NDArray[np.uint8]:
    return Reader(data, open_index(data / "test.arrow"), []).image(0)[2, 2]


def test_each_file_that_cannot_be_read_is_named_and_the_rest_is_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Formats that cannot be read here: an AVIF that Pillow's decoder gives up, and HEIC."""
    for split in ("train", "validation", "test"):
        (tmp_path / "in" / split / "a").mkdir(parents=True)
        (tmp_path / "in" / split / "a" / f"{split}.jfif").write_bytes(encoded(flat((90, 90, 90))))
    avif = bytearray(encoded(picture(np.random.default_rng(1), (64, 64)), "AVIF"))
    avif[avif.index(b"mdat") + 4 :] = b"\xff" * (len(avif) - avif.index(b"mdat") - 4)
    files = {"b.avif": bytes(avif), "c.heic": isobmff(b"heic"), "d.jp2": encoded(flat((1, 2, 3)), "JPEG2000")}
    files["e.jpg"] = b"%!PS-Adobe-3.0 EPSF-3.0\n"
    for name, content in files.items():
        (tmp_path / "in" / "train" / "a" / name).write_bytes(content)
    assert shard_folder(tmp_path / "in", tmp_path / "out") == 0
    assert "written 4, undecodable 3" in capsys.readouterr().err
    ledger = {row["key"]: row["detail"] or "" for row in pq.read_table(tmp_path / "out" / "ledger.parquet").to_pylist()}
    assert "RuntimeError" in ledger["b"]
    assert "HEIC" in ledger["c"]
    assert "PostScript" in ledger["e"]
    assert (ledger["d"], ledger["train"]) == ("", "")


def test_a_picture_that_the_decoder_gives_up_is_a_broken_sample_of_its_shard(tmp_path: Path) -> None:
    """Training skips it within its budget or names it, and `verify` finds it, as any other broken sample."""
    avif = bytearray(encoded(picture(np.random.default_rng(1), (64, 64)), "AVIF"))
    avif[avif.index(b"mdat") + 4 :] = b"\xff" * (len(avif) - avif.index(b"mdat") - 4)
    good = Sample(key="good", image=encoded(flat((9, 9, 9))), positive=("a",), negative=())
    broken = {"avif": bytes(avif), "ps": b"%!PS-"}
    given = [good, *(replace(good, key=key, image=image) for key, image in broken.items())]
    write_dataset(tmp_path, dict.fromkeys(("train", "validation", "test"), given), "a", "a")
    reader = Reader(tmp_path, open_index(tmp_path / "train.arrow"), [])
    for row, reason in ((1, "image 'avif' at byte .* cannot be decoded: RuntimeError"), (2, "image 'ps' .*PostScript")):
        with pytest.raises(BrokenSampleError, match=reason) as raised:
            reader.image(row)
        assert raised.value.reason == "cannot be decoded"
    assert len(verify_shard(tmp_path, open_index(tmp_path / "train.arrow"), 0)) == 2
