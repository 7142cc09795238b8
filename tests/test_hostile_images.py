"""Hostile picture files in the decoders of training, prediction and preparation: bounded in memory and in time."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from raypaml.data.image_files import MAX_BYTES, MOST_SCANS
from raypaml.data.images import decode
from raypaml.inference.pictures import Picture, read_picture
from raypaml.preparation.image_form import ImageForm, convert
from tests.hostile_images import READ, REFUSED, scans

SECONDS = 2.0
"""Most seconds of computing that one of these files takes; the slowest takes 0.3 on the slowest of our machines."""


def in_every_way(content: bytes, path: Path) -> list[str]:
    """What training, prediction and preparation say of a file, each within its memory and time; "" where it is read."""
    path.write_bytes(content)
    return [
        bounded(lambda: decode(content), content),
        bounded(lambda: read_picture(Picture("x", str(path)), 16, 16), content),
        bounded(lambda: convert(content, ImageForm()), content),
    ]


def bounded(use: Callable[[], object], content: bytes) -> str:
    tracemalloc.start()
    before, said = time.process_time(), ""
    try:
        use()
    except ValueError as error:
        said = str(error)
    spent, (_, peak) = time.process_time() - before, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spent < SECONDS
    assert peak < 3 * len(content) + (16 << 20)
    return said


@pytest.mark.parametrize("name", READ)
def test_of_many_pictures_and_long_metadata_the_first_picture_is_read(name: str, tmp_path: Path) -> None:
    assert in_every_way(READ[name](), tmp_path / "x") == ["", "", ""]


@pytest.mark.parametrize("name", REFUSED)
def test_what_takes_memory_or_time_without_end_is_refused(name: str, tmp_path: Path) -> None:
    make, limit = REFUSED[name]
    for said in in_every_way(make(), tmp_path / "x"):
        assert limit in said
        assert "\n" not in said


@pytest.mark.parametrize("progressive", [True, False])
def test_the_limit_of_scans_is_stated_and_not_below_it(progressive: bool, tmp_path: Path) -> None:
    most = scans(MOST_SCANS, 16, progressive=progressive)
    more = scans(MOST_SCANS + 1, 16, progressive=progressive)
    assert not any("scans" in said for said in in_every_way(most, tmp_path / "x"))
    for said in in_every_way(more, tmp_path / "x"):
        assert "a JPEG of 101 scans; the limit is 100: save it again" in said


def test_a_file_of_more_bytes_than_any_picture_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ValueError, match=r"^2,147,483,649 bytes; the limit is 2,147,483,648"):
        read_picture(Picture("x", str(path)), 16, 16)
