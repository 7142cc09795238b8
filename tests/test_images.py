"""Every odd picture becomes one defined JPEG: compared with the steps written out, and with other arithmetic."""

from __future__ import annotations

import io
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from raypaml.preparation.image_form import ImageForm, codec_versions, convert
from tests.odd_images import BROKEN, ODD_FORMS, RESIZED, encoded, picture

SQUASH = ImageForm("squash", RESIZED)
NONE = ImageForm("none")
READABLE = [name for name in ODD_FORMS if name != "right size"]


def to_jpeg(content: bytes, form: ImageForm) -> bytes:
    return convert(content, form).content


def made(name: str) -> bytes:
    return (ODD_FORMS | BROKEN)[name](np.random.default_rng(5))


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def pixels(content: bytes) -> NDArray[np.float64]:
    image = opened(content)
    assert (image.format, image.mode) == ("JPEG", "RGB")
    return np.asarray(image).astype(np.float64)


def by_hand(name: str) -> Image.Image:
    """The upright RGB picture of an odd form, by other means than `convert` where there are any."""
    image = opened(made(name))
    raw = np.asarray(image)
    if name == "exif 6":  # the camera lay on its side: first row is the right-hand side
        return Image.fromarray(np.rot90(raw, -1).copy())
    if name == "16 bit":
        assert raw.dtype == np.uint16
        return Image.fromarray(np.stack([(raw >> 8).astype(np.uint8)] * 3, -1))
    if name == "cmyk":
        c, m, y, k = (raw[..., channel].astype(np.float64) / 255 for channel in range(4))
        return Image.fromarray(np.stack([255 * (1 - ink) * (1 - k) for ink in (c, m, y)], -1).round().astype(np.uint8))
    if name == "grey":
        return Image.fromarray(np.stack([raw] * 3, -1))
    if name == "palette":
        colours = np.array(image.getpalette(), np.float64).reshape(-1, 3)[raw]
        return on_white(colours, np.frombuffer(image.info["transparency"], np.uint8)[raw])
    return on_white(raw[..., :3], raw[..., 3]) if raw.shape[2] == 4 else Image.fromarray(raw)


def on_white(colours: NDArray[np.float64], alpha: NDArray[np.uint8]) -> Image.Image:
    share = alpha[..., None] / 255
    return Image.fromarray((colours * share + 255 * (1 - share)).round().astype(np.uint8))


@pytest.mark.parametrize("name", READABLE)
def test_odd_forms_become_the_same_defined_picture(name: str) -> None:
    expected = by_hand(name).resize((RESIZED, RESIZED), Image.Resampling.BILINEAR)
    found = pixels(to_jpeg(made(name), SQUASH))
    again = pixels(encoded(expected, quality=90, subsampling="4:2:0"))
    assert found.shape == (RESIZED, RESIZED, 3)
    assert np.abs(found - again).max() <= (6 if name == "cmyk" else 0)  # inks are rounded once more by hand
    assert np.abs(found - np.asarray(expected)).mean() < 6  # JPEG itself


@pytest.mark.parametrize("name", list(ODD_FORMS))
@pytest.mark.parametrize("form", [SQUASH, ImageForm("short", 32), NONE], ids=["squash", "short", "none"])
def test_what_was_written_is_copied_byte_for_byte(name: str, form: ImageForm) -> None:
    once = to_jpeg(made(name), form)
    assert to_jpeg(once, form) == once
    assert pixels(once).shape[2] == 3


def test_a_jpeg_of_the_right_size_is_copied_whatever_its_quality() -> None:
    content = made("right size")
    assert to_jpeg(content, SQUASH) == content
    assert to_jpeg(content, NONE) == content
    assert to_jpeg(content, ImageForm("squash", RESIZED + 1)) != content
    assert to_jpeg(content + bytes(20), SQUASH) == content + bytes(20)  # padding, as some cameras write


def test_exif_that_does_not_turn_is_no_reason_to_encode_again() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 1, "maker"
    content = encoded(picture(np.random.default_rng(0), (RESIZED, RESIZED)), exif=exif)
    assert to_jpeg(content, SQUASH) == content


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_end_upright(orientation: int) -> None:
    turn = [
        lambda a: a,
        np.fliplr,
        lambda a: np.rot90(a, 2),
        np.flipud,
        lambda a: a.transpose(1, 0, 2),
        lambda a: np.rot90(a, -1),
        lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        np.rot90,
    ][orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture(np.random.default_rng(1), (40, 24))
    found = to_jpeg(encoded(stored, "PNG", exif=exif), NONE)
    expected = Image.fromarray(np.ascontiguousarray(turn(np.asarray(stored))))
    assert found == encoded(expected, quality=90, subsampling="4:2:0")
    assert opened(found).getexif().get(0x0112, 1) == 1


def test_quality_filter_and_sampling_are_those_stated() -> None:
    big = picture(np.random.default_rng(2), (300, 200))
    for quality in (50, 90):
        expected = encoded(big.resize((RESIZED, RESIZED), Image.Resampling.BILINEAR), quality=quality)
        assert to_jpeg(encoded(big, "PNG"), ImageForm("squash", RESIZED, quality)) == expected
    assert not opened(expected).info.get("progressive")


@given(width=st.integers(1, 3000), height=st.integers(1, 3000), size=st.integers(1, 600))
@settings(deadline=None)
def test_the_shorter_side_decides(width: int, height: int, size: int) -> None:
    found = ImageForm("short", size).target(width, height)
    assert min(found) == size
    assert (found[0] <= found[1]) == (width <= height) or found[0] == found[1]
    assert abs(max(found) - max(width, height) * size / min(width, height)) <= 0.5
    assert ImageForm("squash", size).target(width, height) == (size, size)
    assert NONE.target(width, height) == (width, height)


@pytest.mark.parametrize(("form", "size"), [(ImageForm("short", 24), (36, 24)), (NONE, (72, 48))])
def test_sizes_without_squashing(form: ImageForm, size: tuple[int, int]) -> None:
    assert opened(to_jpeg(made("grey"), form)).size == size


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("truncated", "image file is truncated"),
        ("empty", "not an image of a known format"),
        ("html", "not an image of a known format"),
        ("head only", "(?i)not an image of a known format|truncated"),
        ("zeros", "not an image of a known format"),
        ("cut png", "truncated|broken"),
    ],
)
def test_what_cannot_be_read_says_why_on_one_short_line(name: str, reason: str) -> None:
    for form in (SQUASH, NONE):
        with pytest.raises(ValueError, match=reason) as raised:
            to_jpeg(made(name), form)
        assert "\n" not in str(raised.value)
        assert "0x" not in str(raised.value), "an address differs from run to run"


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged EXIF
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_damage_anywhere_is_a_picture_or_a_reason(data: st.DataObject) -> None:
    """Never another exception, and never bytes that no decoder reads."""
    content = bytearray(made(data.draw(st.sampled_from(list(ODD_FORMS)))))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(content)))
    with suppress(ValueError):
        assert opened(to_jpeg(bytes(content[:cut]), ImageForm("squash", 65))).size == (65, 65)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("448", ImageForm("squash", 448)),
        ("64", ImageForm("squash", 64)),
        ("short", ImageForm("short", 448)),
        ("short:256", ImageForm("short", 256)),
        ("none", ImageForm("none")),
    ],
)
def test_forms_are_parsed(text: str, form: ImageForm) -> None:
    assert ImageForm.parse(text) == form


@pytest.mark.parametrize(
    "text", ["", "0", "9000", "tall", "short:0", "short:x", "448:short", "-1", "none:3", "short:", "²"]
)
def test_other_forms_are_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(ValueError, match=r"give pixels up to 8192 \(448: squash\), short, short:PIXELS or none"):
        ImageForm.parse(text)


@pytest.mark.parametrize("quality", [0, 96])
def test_quality_has_limits(quality: int) -> None:
    with pytest.raises(ValueError, match=rf"quality={quality}: give a JPEG quality, 1\.\.95"):
        ImageForm.parse("448", quality)


def test_the_codec_is_named() -> None:
    assert Image.__version__ in codec_versions()
