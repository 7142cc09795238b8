"""Files of a table without splits are never taken from a folder that is named for a split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raypaml.preparation.formats.common import Source, SourceSplit, classes_of
from raypaml.preparation.formats.split_places import check_places


def source(*files: str, has_splits: bool = False) -> Source:
    split = SourceSplit(list(files), [np.array([0])] * len(files))
    return Source(classes_of(["cat"]), {"train": split}, Path(), has_splits=has_splits)


def test_pictures_of_the_same_name_in_each_split_are_asked_about(tmp_path: Path) -> None:
    for name in ("train/00.jpg", "val/00.jpg", "train/01.jpg", "02.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    check_places(source("02.jpg", "nowhere.jpg", "train/00.jpg"), str(tmp_path))
    check_places(source("00.jpg", has_splits=True), str(tmp_path))
    with pytest.raises(
        ValueError, match=r"2 of their files, such as 00.jpg, are in train and not there; give --images"
    ):
        check_places(source("00.jpg", "01.jpg", "02.jpg"), str(tmp_path))
