"""Readers of other data sets, on small fixtures in the true formats, oddities included."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from raypaml.preparation.formats.coco import read_coco
from raypaml.preparation.formats.common import Source
from raypaml.preparation.formats.cub import read_cub
from raypaml.preparation.formats.nuswide import read_nuswide
from raypaml.preparation.formats.voc import CLASSES, read_voc


def labels(source: Source, split: str) -> dict[str, list[str]]:
    found, names = source.splits[split], source.classes.class_ids
    return {file: [names[k] for k in row] for file, row in zip(found.files, found.positives, strict=True)}


def voc(root: Path, names: tuple[str, str] = ("train", "val")) -> Path:
    """Two splits: 2008_1 person and dog, 2008_2 nothing but a difficult cat, 2008_3 cat."""
    lists = root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    states = {"2008_000003": {"cat": 1}, "2008_000001": {"person": 1, "dog": 1, "cat": -1}, "2008_000002": {"cat": 0}}
    for name in names:
        for class_id in CLASSES:
            rows = [f"{image} {found.get(class_id, -1):2d}" for image, found in states.items()]
            (lists / f"{class_id}_{name}.txt").write_text("\n".join(rows) + "\n")
    annotations = lists.parent.parent / "Annotations"
    annotations.mkdir()
    box = "<bndbox><xmin>11</xmin><ymin>21</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
    parts = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    xml = (
        f"<annotation><object><name>dog</name>{box}{parts}</object><object><name>head</name>{box}</object></annotation>"
    )
    (annotations / "2008_000001.xml").write_text(xml)
    return root


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc(tmp_path: Path, below: str) -> None:
    source = read_voc(voc(tmp_path) / below)
    assert source.classes.class_ids == CLASSES
    assert labels(source, "train") == {"2008_000001.jpg": ["dog", "person"], "2008_000003.jpg": ["cat"]}
    assert source.splits["train"].negatives is None
    assert source.splits["train"].boxes == [[{"class": 11, "x0": 10.0, "y0": 20.0, "x1": 30.0, "y1": 40.0}], []]
    counts = source.splits["train"].findings.counts
    assert counts["images listed"] == 3
    assert counts["difficult only, taken for negative"] == 1
    assert counts["images without a positive, left out"] == 1
    assert source.splits["train"].findings.examples["images without a positive, left out"] == ["2008_000002"]


def test_voc_2007_trains_on_trainval_and_tests_on_test(tmp_path: Path) -> None:
    source = read_voc(voc(tmp_path, ("trainval", "test")))
    assert set(source.splits) == {"train", "test"}


def test_voc_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no ImageSets/Main here; give VOCdevkit/VOC2012"):
        read_voc(tmp_path)
    lists = voc(tmp_path) / "VOCdevkit/VOC2012/ImageSets/Main"
    (lists / "cat_train.txt").write_text("2008_000001  1\n2008_000002 yes\n")
    with pytest.raises(ValueError, match=r"cat_train.txt:2: '2008_000002 yes'; expected an image and 1, 0 or -1"):
        read_voc(tmp_path)
    (lists / "cat_train.txt").unlink()
    with pytest.raises(ValueError, match=r"cat_train.txt: no such file"):
        read_voc(tmp_path)


def coco(root: Path) -> Path:
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}, {"id": 90, "name": "toothbrush"}]
    for name in ("train", "val"):
        images = [{"id": n, "file_name": f"COCO_{name}2014_{n:012d}.jpg"} for n in (9, 10, 500, 7)]
        annotations = [
            {"id": 1, "image_id": 9, "category_id": 90, "bbox": [10, 20, 5, 6], "iscrowd": 0},
            {"id": 2, "image_id": 9, "category_id": 1, "bbox": [0, 0, 50, 60], "iscrowd": 1},
            {"id": 3, "image_id": 10, "category_id": 3, "bbox": [1.5, 2, 3, 4]},
            {"id": 4, "image_id": 10, "category_id": 3, "bbox": [1, 2, 3, 4]},
            {"id": 5, "image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]},
            {"id": 6, "image_id": 12345, "category_id": 1, "bbox": [1, 2, 3, 4]},
            {"id": 7, "image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4]},
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{name}2014.json").write_text(json.dumps(content))
    return root


def test_coco(tmp_path: Path) -> None:
    source = read_coco(coco(tmp_path))
    assert source.classes.class_ids == ("person", "car", "toothbrush")
    train = source.splits["train"]
    assert labels(source, "train") == {
        "train2014/COCO_train2014_000000000010.jpg": ["car"],  # ids in the order of their texts
        "train2014/COCO_train2014_000000000007.jpg": ["person"],
        "train2014/COCO_train2014_000000000009.jpg": ["person", "toothbrush"],
    }
    assert [file[-6:-4] for file in train.files] == ["10", "07", "09"]
    assert train.boxes is not None
    assert train.boxes[2] == [{"class": 2, "x0": 10, "y0": 20, "x1": 15, "y1": 26}]  # crowds have no box
    assert train.findings.counts["images without an annotation, left out"] == 1
    assert train.findings.counts["annotations of unknown images or categories"] == 2
    assert source.splits["test"].files[0] == "val2014/COCO_val2014_000000000010.jpg"


def test_coco_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0 files annotations/instances_train\*.json"):
        read_coco(tmp_path)
    path = coco(tmp_path) / "annotations" / "instances_val2014.json"
    path.write_text('{"images": [], "annotations": []}')
    with pytest.raises(ValueError, match=r"instances_val2014.json: no categories; not COCO's instances JSON"):
        read_coco(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"instances_val2014.json: not a table in JSON"):
        read_coco(tmp_path)


def cub(root: Path) -> Path:
    folder = root / "CUB_200_2011"
    (folder / "attributes").mkdir(parents=True)
    (root / "attributes.txt").write_text(
        "1 has_bill_shape::curved_(up_or_down)\n2 has_wing_color::blue\n3 has_size::tiny\n"
    )
    (folder / "images.txt").write_text("1 001.Albatross/A_0001.jpg\n2 001.Albatross/A_0002.jpg\n3 002.Auk/A_0001.jpg\n")
    (folder / "train_test_split.txt").write_text("1 1\n2 0\n3 1\n")
    rows = ["1 1 1 3 12.7", "1 2 0 1 1.1", "1 3 1 4 0", "2 1 0 1 1", "2 2 0 1 1", "2 3 0 1 1", "3 1 0 1 1", "3 2 1 2 3"]
    (folder / "attributes" / "image_attribute_labels.txt").write_text("\n".join(rows) + "\n")
    return root


def test_cub(tmp_path: Path) -> None:
    source = read_cub(cub(tmp_path))
    first, blue, tiny = source.classes.class_ids
    assert labels(source, "train") == {"001.Albatross/A_0001.jpg": [first, tiny], "002.Auk/A_0001.jpg": [blue]}
    assert labels(source, "test") == {"001.Albatross/A_0002.jpg": []}  # without an attribute, and kept, as published
    assert source.splits["train"].findings.counts["attributes without a row, taken for negative"] == 1
    assert read_cub(tmp_path / "CUB_200_2011").splits.keys() == source.splits.keys()


def test_cub_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no images\.txt here nor in CUB_200_2011"):
        read_cub(tmp_path)
    path = cub(tmp_path) / "CUB_200_2011" / "attributes" / "image_attribute_labels.txt"
    path.write_text("1 1 1 3 12.7\n1 9 1 3 1\n")
    with pytest.raises(ValueError, match=r"image_attribute_labels.txt:2: '1 9 1 3 1'; expected image, attribute and"):
        read_cub(tmp_path)


def nuswide(root: Path) -> Path:
    for folder in ("ImageList", "Groundtruth/TrainTestLabels"):
        (root / folder).mkdir(parents=True)
    (root / "Concepts81.txt").write_text("airport\nanimal\n")
    for name in ("Train", "Test"):
        (root / "ImageList" / f"{name}Imagelist.txt").write_text(
            "actor\\0001_21.jpg\r\nactor\\0002_4.jpg\r\nzebra\\1.jpg\r\n"
        )
        for concept, values in (("airport", "0\n0\n1\n"), ("animal", "1\n0\n1\n")):
            (root / f"Groundtruth/TrainTestLabels/Labels_{concept}_{name}.txt").write_text(values)
    return root


def test_nuswide_official(tmp_path: Path) -> None:
    source = read_nuswide(nuswide(tmp_path))
    assert labels(source, "train") == {"actor/0001_21.jpg": ["animal"], "zebra/1.jpg": ["airport", "animal"]}
    assert source.splits["test"].findings.counts["images without a concept, left out"] == 1


def test_nuswide_recrawled(tmp_path: Path) -> None:
    for name in ("train", "val"):
        np.save(tmp_path / f"formatted_{name}_images.npy", np.array(["/a/1.jpg", "b/2.jpg"]))
        np.save(tmp_path / f"formatted_{name}_labels.npy", np.array([[0.0, 1.0], [0.0, 0.0]]))
    source = read_nuswide(tmp_path)
    assert labels(source, "test") == {"a/1.jpg": ["concept_01"], "b/2.jpg": []}


def test_nuswide_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no Concepts81.txt, nor formatted_train_images.npy"):
        read_nuswide(tmp_path)
    (nuswide(tmp_path) / "Groundtruth/TrainTestLabels/Labels_animal_Test.txt").write_text("1\n0\n")
    with pytest.raises(ValueError, match=r"Labels_animal_Test.txt: 2 lines for 3 images"):
        read_nuswide(tmp_path)


def test_an_array_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "ran"),)

    for name in ("train", "val"):
        for part in ("images", "labels"):
            np.save(tmp_path / f"formatted_{name}_{part}.npy", np.array([Payload()], object), allow_pickle=True)
    with pytest.raises(ValueError, match="nothing is read that runs code"):
        read_nuswide(tmp_path)
    assert not (tmp_path / "ran").exists()
