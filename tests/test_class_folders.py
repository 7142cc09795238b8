"""Folders named by class as people have them: splits, links, hidden files, and what is read in two ways."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raypaml.data.data_folder import open_folder
from raypaml.data.hidden_files import PassedOver
from raypaml.inference.pictures import find_pictures
from raypaml.preparation.formats.class_folders import read_folder
from raypaml.preparation.formats.common import Source
from raypaml.preparation.formats.folder_layouts import Layout
from raypaml.shard import main
from tests.shard_tool import ledger

Placed = dict[str, dict[str, str]]


def made(root: Path, files: Sequence[str]) -> Path:
    """Empty files, and links written as `PATH -> TARGET`, the target as seen from the folder."""
    for name, _, target in (file.partition(" -> ") for file in files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if target:
            path.symlink_to(root / target)
        else:
            path.touch()
    return root


def placed(source: Source) -> Placed:
    """Class of each file, by split."""
    names = source.classes.class_ids
    return {
        split: {file: names[int(row[0])] for file, row in zip(found.files, found.positives, strict=True)}
        for split, found in source.splits.items()
    }


def reasons(source: Source) -> dict[str, str]:
    return {file: reason for _, file, reason in source.skipped}


LAYOUTS: dict[str, tuple[list[str], Placed]] = {
    "splits": (
        ["train/cat/1.jpg", "validation/cat/1.jpg", "test/dog/2.jpg"],
        {
            "train": {"train/cat/1.jpg": "cat"},
            "validation": {"validation/cat/1.jpg": "cat"},
            "test": {"test/dog/2.jpg": "dog"},
        },
    ),
    "other names": (
        ["Train/cat/1.jpg", "VAL/cat/1.jpg", "Test/dog/2.jpg"],
        {
            "train": {"Train/cat/1.jpg": "cat"},
            "validation": {"VAL/cat/1.jpg": "cat"},
            "test": {"Test/dog/2.jpg": "dog"},
        },
    ),
    "two folders of a split": (
        ["training/cat/1.jpg", "valid/cat/1.jpg", "dev/dog/2.jpg"],
        {
            "train": {"training/cat/1.jpg": "cat"},
            "validation": {"dev/dog/2.jpg": "dog", "valid/cat/1.jpg": "cat"},
        },
    ),
    "a class called train": (
        ["bird/1.jpg", "train/1.jpg"],
        {"train": {"bird/1.jpg": "bird", "train/1.jpg": "train"}},
    ),
    "splits of a year": (
        ["train2017/cat/1.jpg", "val2017/cat/1.jpg"],
        {"train": {"train2017/cat/1.jpg": "cat"}, "validation": {"val2017/cat/1.jpg": "cat"}},
    ),
    "splits in words": (
        ["Training Set/cat/1.jpg", "testset/dog/2.jpg", "test_images/cat/3.jpg"],
        {
            "train": {"Training Set/cat/1.jpg": "cat"},
            "test": {"test_images/cat/3.jpg": "cat", "testset/dog/2.jpg": "dog"},
        },
    ),
    "classes with words of splits": (
        ["bullet train/1.jpg", "bus/1.jpg", "photos/1.jpg"],
        {"train": {"bullet train/1.jpg": "bullet train", "bus/1.jpg": "bus", "photos/1.jpg": "photos"}},
    ),
    "a class called train in a split": (
        ["train/bird/1.jpg", "train/train/1.jpg"],
        {"train": {"train/bird/1.jpg": "bird", "train/train/1.jpg": "train"}},
    ),
    "a folder of images in each class": (
        ["train/cat/images/1.jpg", "train/dog/images/1.jpg"],
        {"train": {"train/cat/images/1.jpg": "cat", "train/dog/images/1.jpg": "dog"}},
    ),
    "subfolders": (
        ["cat/1.jpg", "cat/old/2.jpg", "cat/old/er/3.jpg", "dog/new/1.jpg"],
        {"train": {"cat/1.jpg": "cat", "cat/old/2.jpg": "cat", "cat/old/er/3.jpg": "cat", "dog/new/1.jpg": "dog"}},
    ),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts(case: str, tmp_path: Path) -> None:
    files, expected = LAYOUTS[case]
    source = read_folder(made(tmp_path, files))
    assert placed(source) == expected
    assert source.skipped == ()


TWO_WAYS: dict[str, tuple[list[str], str, dict[Layout, list[str]]]] = {
    "a class called train with subfolders": (
        ["bird/1.jpg", "train/steam/1.jpg", "train/2.jpg"],
        "train may be splits with folders of classes, or classes as bird",
        {"class": ["bird", "train"], "split": ["steam"]},
    ),
    "no classes": (
        ["train/1.jpg", "test/2.jpg"],
        "images lie directly in test, train, named like splits, in no folder of a class",
        {"class": ["test", "train"]},
    ),
    "splits below classes": (
        ["cat/train/1.jpg", "cat/test/2.jpg", "dog/train/3.jpg"],
        "cat/test, cat/train, dog/train may be splits below what is no split",
        {"class": ["cat", "dog"]},
    ),
    "a folder around it": (
        ["animals/cat/1.jpg", "animals/dog/1.jpg", "__MACOSX/animals/._1.jpg"],
        "all images lie in animals, with animals/cat, animals/dog",
        {"class": ["animals"], "any/class": ["cat", "dog"]},
    ),
    "a folder around splits": (
        ["images/train/cat/1.jpg", "images/val/dog/1.jpg"],
        "images/train, images/val may be splits below what is no split",
        {"any/split/class": ["cat", "dog"]},
    ),
    "splits with another word": (
        ["seg_train/seg_train/cat/1.jpg", "seg_test/seg_test/dog/1.jpg", "seg_pred/seg_pred/9.jpg"],
        "seg_test, seg_train may be splits with folders of classes, or classes as seg_pred",
        {"class": ["seg_pred", "seg_test", "seg_train"], "split/any/class": ["cat", "dog"]},
    ),
    "splits of a year without classes": (
        ["train2017/1.jpg", "val2017/2.jpg"],
        "images lie directly in train2017, val2017, named like splits",
        {"class": ["train2017", "val2017"]},
    ),
    "splits by a name of their own": (
        ["fold_a/cat/1.jpg", "fold_a/dog/1.jpg", "fold_b/cat/1.jpg"],
        "fold_a/cat, fold_b/cat: the folders with the same names may be classes",
        {"class": ["fold_a", "fold_b"], "any/class": ["cat", "dog"]},
    ),
    "a folder of images in each split": (
        ["train/images/cat/1.jpg", "train/images/dog/2.jpg", "val/images/cat/1.jpg"],
        "within the splits all images lie in images, with images/cat, images/dog",
        {"split": ["images"], "split/any/class": ["cat", "dog"]},
    ),
    "YOLO": (
        ["train/images/1.jpg", "train/labels/1.txt", "val/images/2.jpg", "val/labels/2.txt"],
        r"all images lie in images, which is hardly a class; .*raypaml.shard table FILE",
        {"split": ["images"]},
    ),
    "YOLO without splits": (
        ["images/1.jpg", "labels/1.txt"],
        r"all images lie in images, which is hardly a class; .*raypaml.shard table FILE",
        {"class": ["images"]},
    ),
    "images of no class beside classes": (
        ["cat/1.jpg", "dog/2.jpg", "Unlabeled/3.jpg"],
        "images lie in Unlabeled, which is hardly a class",
        {"class": ["Unlabeled", "cat", "dog"]},
    ),
    "images without classes in one split": (
        ["train/cat/1.jpg", "train/dog/2.jpg", "test/pictures/3.jpg"],
        "in test all images lie in pictures, which is hardly a class",
        {"split": ["cat", "dog", "pictures"]},
    ),
    "splits in splits": (
        ["train/train/cat/1.jpg", "val/val/dog/1.jpg"],
        "within the splits train, val may be splits with folders of classes",
        {"split/any/class": ["cat", "dog"]},
    ),
}


@pytest.mark.parametrize("case", TWO_WAYS)
def test_what_can_be_read_in_two_ways_is_refused_until_it_is_said(case: str, tmp_path: Path) -> None:
    files, message, said = TWO_WAYS[case]
    made(tmp_path, files)
    with pytest.raises(ValueError, match=f"{message}.*give --layout class .* or --layout split"):
        read_folder(tmp_path)
    assert {layout: list(read_folder(tmp_path, layout).classes.class_ids) for layout in said} == said


def test_the_split_above_another_folder_is_that_of_its_name(tmp_path: Path) -> None:
    made(tmp_path, ["seg_train/seg_train/cat/1.jpg", "seg_test/seg_test/cat/2.jpg", "seg_pred/seg_pred/9.jpg"])
    source = read_folder(tmp_path, "split/any/class")
    assert placed(source) == {
        "train": {"seg_train/seg_train/cat/1.jpg": "cat"},
        "test": {"seg_test/seg_test/cat/2.jpg": "cat"},
    }
    assert reasons(source) == {"seg_pred/seg_pred/9.jpg": "no_class_folder"}


def test_a_layout_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images in folders named by class"):
        read_folder(made(tmp_path, ["cat/1.jpg"]), "split")


def test_files_that_are_not_taken_have_a_reason_each(tmp_path: Path) -> None:
    source = read_folder(
        made(
            tmp_path,
            [
                *("train/cat/1.jpg", "train/cat/.ipynb_checkpoints/1-checkpoint.jpg", "train/cat/._1.jpg"),
                *("__MACOSX/train/cat/1.jpg", ".DS_Store", "val/cat/2.jpg", "val/cat/notes.txt", "val/loose.jpg"),
                *("readme.md", "test/3.jpg", "train/cat/lost.jpg -> nowhere.jpg"),
            ],
        )
    )
    assert placed(source) == {"train": {"train/cat/1.jpg": "cat"}, "validation": {"val/cat/2.jpg": "cat"}}
    assert reasons(source) == {
        "train/cat/.ipynb_checkpoints/1-checkpoint.jpg": "hidden",
        "train/cat/._1.jpg": "hidden",
        "__MACOSX/train/cat/1.jpg": "hidden",
        ".DS_Store": "hidden",
        "val/cat/notes.txt": "not_an_image",
        "readme.md": "not_an_image",
        "val/loose.jpg": "no_class_folder",
        "test/3.jpg": "no_class_folder",
        "train/cat/lost.jpg": "broken_link",
    }
    assert {file for split, file, _ in source.skipped if split == "validation"} == {
        "val/cat/notes.txt",
        "val/loose.jpg",
    }


SYSTEM_FILES = [
    "@eaDir/1.jpg/THUMB_M.jpg",
    "cat/@eaDir/1.jpg",
    "$RECYCLE.BIN/9.jpg",
    "lost+found/9.jpg",
    "#recycle/9.jpg",
]
SYSTEM_FILES += ["System Volume Information/9.jpg", "cat/Thumbs.db", "dog/desktop.ini", "train/__pycache__/9.jpg"]


def test_what_systems_put_beside_images_is_hidden_to_preparation_and_prediction(tmp_path: Path) -> None:
    source = read_folder(made(tmp_path, ["cat/1.jpg", "dog/2.jpg", *SYSTEM_FILES]))
    assert placed(source) == {"train": {"cat/1.jpg": "cat", "dog/2.jpg": "dog"}}
    assert reasons(source) == dict.fromkeys(SYSTEM_FILES, "hidden")
    passed_over = PassedOver(list)
    found = [Path(picture.name) for picture in find_pictures([str(tmp_path)], passed_over=passed_over)]
    assert found == [tmp_path / "cat/1.jpg", tmp_path / "dog/2.jpg"]
    assert passed_over == {"hidden": sorted(SYSTEM_FILES)}


def test_prediction_follows_a_link_once_and_names_what_it_leaves_out(tmp_path: Path) -> None:
    files = ["a/1.jpg", "a/up -> .", "a/lost.jpg -> nowhere", "b.jpg -> a/1.jpg", "notes.txt", "LICENSE", "c -> pool"]
    made(tmp_path, [*files, ".pool/2.jpg", "pool -> .pool"])
    os.mkfifo(tmp_path / "pipe.jpg")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("x.jpg", "__MACOSX/._x.jpg"):
            tar.add(tmp_path / "a/1.jpg", name)
    passed_over = PassedOver(list)
    found = [picture.name for picture in find_pictures([str(tmp_path)], passed_over=passed_over)]
    assert found == [str(tmp_path / name) for name in ("a/1.jpg", "c/2.jpg", "s.tar/x.jpg")]
    assert passed_over == {
        ".txt": ["notes.txt"],
        "no suffix": ["LICENSE"],
        "hidden": [".pool/2.jpg", f"{tmp_path}/s.tar/__MACOSX/._x.jpg"],
        "linked before": ["a/up", "b.jpg", "pool"],
        "broken link": ["a/lost.jpg"],
        "not a file": ["pipe.jpg"],
    }


def test_names_that_are_no_text_are_counted(tmp_path: Path) -> None:
    made(tmp_path, ["cat/1.jpg", "cat/a -> cat/b", "cat/b -> cat/a"])
    Path(os.fsdecode(bytes(tmp_path) + b"/cat/\xe9t\xe9.jpg")).touch()
    source = read_folder(tmp_path)
    assert placed(source) == {"train": {"cat/1.jpg": "cat"}}
    broken = dict.fromkeys(("cat/a", "cat/b"), "broken_link")
    assert reasons(source) == broken | {"cat/\\xe9t\\xe9.jpg": "name_not_utf8"}


def test_links_are_followed_once(tmp_path: Path) -> None:
    made(tmp_path / "pool", ["8.jpg", "9.jpg"])
    files = ["cat/1.jpg", "cat/more -> ../pool", "cat/again -> ../pool", "cat/up -> .", "cat/self -> cat"]
    files += ["cat/a.jpg -> cat/1.jpg", "dog/.cache/blob", "dog/1.jpg -> dog/.cache/blob"]
    source = read_folder(made(tmp_path / "data", files))
    assert placed(source) == {
        "train": {"cat/1.jpg": "cat", "cat/again/8.jpg": "cat", "cat/again/9.jpg": "cat", "dog/1.jpg": "dog"}
    }
    assert reasons(source) == {
        **dict.fromkeys(("cat/a.jpg", "cat/more", "cat/self", "cat/up"), "linked_before"),
        "dog/.cache/blob": "hidden",
    }


@pytest.mark.parametrize("link", ["dog/1.jpg -> cat/1.jpg", "dog/1.jpg -> dog/a.jpg", "pets -> cat", "dog/more -> cat"])
def test_a_link_that_gives_one_image_two_classes_is_refused(link: str, tmp_path: Path) -> None:
    files = ["cat/1.jpg", link] if "dog/a.jpg" not in link else ["cat/1.jpg", "dog/a.jpg -> cat/1.jpg", link]
    with pytest.raises(ValueError, match=r"cat.* and (dog|pets).* are the same by a link, under two classes or splits"):
        read_folder(made(tmp_path, files))


def test_a_split_that_links_to_another_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="test/ and val/ are the same by a link"):
        read_folder(made(tmp_path, ["train/cat/1.jpg", "test/cat/2.jpg", "val -> test"]))


# --- From folder or table to shards -------------------------------------------------------------------------------


def photos(root: Path, files: Sequence[str]) -> Path:
    """A small picture of its own at each path."""
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (9 * number, 50, 99)).save(root / file)
    return root


def sharded(tmp_path: Path, *arguments: object) -> dict[str, list[str]]:
    """Keys by split of what `raypaml shard` makes."""
    out = tmp_path / "out"
    assert main([*map(str, arguments), "--out", str(out), "--resize", "8", "--workers", "1"]) == 0
    return {split: sorted(index.keys(np.arange(len(index)))) for split, index in open_folder(out).splits.items()}


def test_splits_of_classes_become_shards_and_every_other_file_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [f"{split}/{name}/{n}.jpg" for split in ("train", "val", "test") for name in ("cat", "dog") for n in (1, 2)]
    data = made(photos(tmp_path / "data", files), [".DS_Store", "train/cat/._1.jpg", "val/notes.txt"])
    (data / "test/dog/3.jpg").write_bytes(b"no picture")
    assert sharded(tmp_path, "folder", data)["validation"] == ["val_cat_1", "val_cat_2", "val_dog_1", "val_dog_2"]
    counts = "written 12, hidden 2 (such as .DS_Store), not an image 1 (such as val/notes.txt), "
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        f"train, validation, test: {counts}undecodable 1 (such as test/dog/3.jpg); ledger.parquet names each"
    )
    others = {(row["split"], row["file"], row["fate"]) for row in ledger(tmp_path / "out") if row["fate"] != "written"}
    assert others == {
        ("train", ".DS_Store", "hidden"),
        ("train", "train/cat/._1.jpg", "hidden"),
        ("validation", "val/notes.txt", "not_an_image"),
        ("test", "test/dog/3.jpg", "undecodable"),
    }


TABLES = {
    "the split in the path": ("train/{}.jpg", "train/{}.jpg"),
    "beside a folder called train": ("{}.jpg", "{}.jpg"),
    "the folder of the split in the path alone": ("Train/{}.jpg", "{}.jpg"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_finds_its_images(case: str, tmp_path: Path) -> None:
    place, listed = TABLES[case]
    split_of = {"1": "train", "2": "train", "3": "validation", "4": "test"}
    photos(tmp_path, [place.format(name) for name in split_of])
    if "beside" in case:
        photos(tmp_path, ["train/other.jpg"])
        (tmp_path / "train.tar.gz").write_bytes(b"not looked at")
    if "alone" in case:
        (tmp_path / "VAL").mkdir()
        (tmp_path / "Train/3.jpg").rename(tmp_path / "VAL/3.jpg")
        (tmp_path / "Train/4.jpg").rename(tmp_path / "4.jpg")
    rows = [f"{listed.format(name)},cat,{split}" for name, split in split_of.items()]
    (tmp_path / "t.csv").write_text("\n".join(["image,labels,split", *rows]) + "\n")
    keys = sharded(tmp_path, "table", tmp_path / "t.csv", "--images", tmp_path, "--complete")
    assert keys == {"train": ["1", "2"], "validation": ["3"], "test": ["4"]}
