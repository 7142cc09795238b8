"""Photos kept in five ways, and folders of classes in three, give equal data sets: `five_layouts.py` in small."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.five_layouts import FORMS, SINGLE, Photo, Write, digests

CLASSES = ("cat", "dog", "emu", "train")
SPLITS = ("train", "validation", "train", "test")


@pytest.fixture
def photos(tmp_path: Path) -> list[Photo]:
    """24 pictures of four classes, one of them called train, with one or two labels each."""
    (tmp_path / "images").mkdir()
    found = []
    for number in range(24):
        name = f"p {number:02d}.jpg"
        Image.new("RGB", (12, 9), (10 * number, 99, 250 - 10 * number)).save(tmp_path / "images" / name)
        labels = {CLASSES[number % 4], CLASSES[number // 4 % 4]}
        found.append(Photo(name, SPLITS[number % 3 if number % 2 else 3], tuple(sorted(labels))))
    return found


@pytest.mark.parametrize("forms", [FORMS, SINGLE], ids=["several labels", "one label"])
def test_all_forms_give_the_same_digest(forms: dict[str, Write], photos: list[Photo], tmp_path: Path) -> None:
    found = digests(tmp_path / "images", photos, tmp_path / "out", forms, "--resize", "8")
    assert len(found) == len(forms)
    assert len(set(found.values())) == 1, found
    other = [Photo(photos[0].name, photos[0].split, ("dog", "emu")), *photos[1:]]
    name = next(iter(forms))
    changed = digests(tmp_path / "images", other, tmp_path / "other", {name: forms[name]}, "--resize", "8")
    assert changed[name] != found[name], "another label is another data set"
