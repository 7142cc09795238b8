"""Stand-ins for the papers' data sets in their true form: the released names and layouts, random photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from raypaml.preparation.formats.voc import CLASSES

TRAIN, TEST = 40, 24


def _photo(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((96, 72)).save(path)


def voc(root: Path) -> list[str]:
    """The devkit; returns the flags of reproduce.py that find it."""
    rng, folder = np.random.default_rng(0), root / "VOCdevkit" / "VOC2012"
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name, count in (("train", TRAIN), ("val", TEST)):
        keys = [f"2008_{'1' if name == 'val' else '0'}{n:05d}" for n in range(count)]
        present = rng.random((count, len(CLASSES))) < 0.15
        present[np.arange(count), np.arange(count) % len(CLASSES)] = True
        for k, class_id in enumerate(CLASSES):
            rows = [f"{key} {1 if here else -1:2d}" for key, here in zip(keys, present[:, k], strict=True)]
            (lists / f"{class_id}_{name}.txt").write_text("\n".join(rows) + "\n")
        for key in keys:
            _photo(folder / "JPEGImages" / f"{key}.jpg", rng)
    return ["--files", str(folder)]


def coco(root: Path) -> list[str]:
    """Instances of two years' splits, and their images."""
    rng = np.random.default_rng(1)
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": k, "name": f"thing {k}"} for k in range(1, 81)]
    for name, count in (("train", TRAIN), ("val", TEST)):
        files = [f"COCO_{name}2014_{n:012d}.jpg" for n in range(1, count + 1)]
        images = [{"id": n, "file_name": file} for n, file in enumerate(files, 1)]
        boxes = [(image["id"], k) for image in images for k in rng.choice(80, 3, replace=False) + 1]
        rows = [
            {"id": n, "image_id": image, "category_id": int(k), "bbox": [1, 2, 30, 40], "iscrowd": 0}
            for n, (image, k) in enumerate(boxes)
        ]
        content = {"images": images, "annotations": rows, "categories": categories}
        (root / "annotations" / f"instances_{name}2014.json").write_text(json.dumps(content))
        for file in files:
            _photo(root / f"{name}2014" / file, rng)
    return ["--files", str(root)]


def nus(root: Path) -> list[str]:
    """The official lists, and the images apart from them."""
    rng = np.random.default_rng(2)
    for folder in ("ImageList", "Groundtruth/TrainTestLabels"):
        (root / folder).mkdir(parents=True)
    concepts = [f"concept{k}" for k in range(81)]
    (root / "Concepts81.txt").write_text("\n".join(concepts) + "\n")
    for name, count in (("Train", TRAIN), ("Test", TEST)):
        files = [f"actor\\{name.lower()}{n:04d}.jpg" for n in range(count)]
        (root / "ImageList" / f"{name}Imagelist.txt").write_text("".join(f"{file}\r\n" for file in files))
        present = rng.random((count, len(concepts))) < 0.05
        present[:, 0] = True
        for k, concept in enumerate(concepts):
            rows = "".join(f"{int(here)}\n" for here in present[:, k])
            (root / f"Groundtruth/TrainTestLabels/Labels_{concept}_{name}.txt").write_text(rows)
        for file in files:
            _photo(root / "Flickr" / file.replace("\\", "/"), rng)
    return ["--files", str(root), "--images", str(root / "Flickr")]


def cub(root: Path) -> list[str]:
    """Images, attributes and the official split."""
    rng, folder = np.random.default_rng(3), root / "CUB_200_2011"
    (folder / "attributes").mkdir(parents=True)
    (root / "attributes.txt").write_text("".join(f"{k} has_part::colour_{k}\n" for k in range(1, 313)))
    files = [f"001.Albatross/A_{n:04d}.jpg" for n in range(1, TRAIN + TEST + 1)]
    (folder / "images.txt").write_text("".join(f"{n} {file}\n" for n, file in enumerate(files, 1)))
    (folder / "train_test_split.txt").write_text("".join(f"{n} {int(n <= TRAIN)}\n" for n in range(1, len(files) + 1)))
    rows = [f"{n} {k} {int(rng.random() < 0.1)} 3 1.0\n" for n in range(1, len(files) + 1) for k in range(1, 313)]
    (folder / "attributes" / "image_attribute_labels.txt").write_text("".join(rows))
    for file in files:
        _photo(folder / "images" / file, rng)
    return ["--files", str(root)]
