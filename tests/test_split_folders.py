"""Pictures of one name in the folders of several splits: which one a label means."""

from __future__ import annotations

from pathlib import Path

import pytest

from raypaml.preparation.image_store import Archives, find_images
from raypaml.shard import main


def found(images: Path, split: str, file: str, *, by_split: bool = True) -> bytes:
    store = find_images(str(images), split, listed=True, by_split=by_split)
    assert not isinstance(store, Archives)
    return store._fetch("key", file).content


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("train/0.jpg", "val/0.jpg", "1.jpg", "val/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_a_split_that_was_cut_says_nothing_of_folders(images: Path) -> None:
    assert found(images, "validation", "0.jpg") == b"val/0.jpg"
    assert found(images, "validation", "1.jpg") == b"1.jpg"
    assert found(images, "validation", "0.jpg", by_split=False) == b""


def test_two_folders_of_one_split_are_asked_about(images: Path) -> None:
    (images / "valid").mkdir()
    with pytest.raises(ValueError, match=r"valid and val may both hold the images of split 'validation'; name the"):
        found(images, "validation", "0.jpg")
    (images / "valid").rmdir()
    (images / "valid").symlink_to(images / "val")
    assert found(images, "validation", "0.jpg") == b"val/0.jpg"


def test_a_table_without_splits_takes_nothing_from_their_folders(images: Path) -> None:
    for number in range(10):
        (images / "train" / f"{number}.jpg").touch()
    (images / "1.jpg").unlink()
    (images / "a.csv").write_text("image,labels\n" + "".join(f"{number}.jpg,cat\n" for number in range(10)))
    with pytest.raises(ValueError, match=r"none of the first . labelled images of split 'train' is there"):
        main(["table", str(images / "a.csv"), "--images", str(images), "--out", str(images / "out")])
