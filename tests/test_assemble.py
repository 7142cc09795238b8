"""From a source to three splits: hidden as published, truth kept, keys that fit; and shards of it by the command."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raypaml.data.data_folder import open_folder
from raypaml.labels import NEGATIVE, POSITIVE
from raypaml.preparation.assemble import Cut, assemble
from raypaml.preparation.formats.common import Source, SourceSplit, classes_of
from raypaml.preparation.hiding import Hiding, hide, validation_split
from tools.shard_dataset import main

SINGLE = Hiding.parse("single-positive")


def source(files: list[str], test: list[str], *, complete: bool = True) -> Source:
    rng = np.random.default_rng(0)

    def split(names: list[str]) -> SourceSplit:
        positives = [np.sort(rng.choice(5, rng.integers(1, 4), replace=False)) for _ in names]
        return SourceSplit(names, positives, None if complete else [np.array([], np.int64)] * len(names))

    splits = {"train": split(files)} | ({"test": split(test)} if test else {})
    return Source(classes_of("abcde"), splits, Path())


def test_labels_are_hidden_before_validation_is_cut_and_nowhere_else() -> None:
    given = source([f"{n}.jpg" for n in range(50)], [f"t{n}.jpg" for n in range(7)])
    found = assemble(given, SINGLE, Cut())
    train, validation = validation_split(50, 0.2)
    shown, _ = hide(given.splits["train"].positives, 5, SINGLE)
    assert found["train"].table["key"].to_pylist() == [str(n) for n in train]
    assert found["train"].table["positives"].to_pylist() == [shown[n].tolist() for n in train]
    assert found["train"].table["negatives"].to_pylist() == [[]] * 40
    truth = [positive.tolist() for positive in given.splits["train"].positives]
    assert found["train"].table["truth"].to_pylist() == [truth[n] for n in train]
    assert found["validation"].table["positives"].to_pylist() == [truth[n] for n in validation]
    for row in found["test"].table.to_pylist():
        assert sorted(row["positives"] + row["negatives"]) == [0, 1, 2, 3, 4]
        assert row["positives"] == row["truth"]


def test_partial_labels_have_no_truth_and_cannot_be_hidden() -> None:
    given = source(["a.jpg", "b.jpg", "c.jpg"], ["t.jpg"], complete=False)
    found = assemble(given, Hiding(), Cut(validation=0.3))
    assert found["train"].table["truth"].null_count == len(found["train"].table)
    with pytest.raises(ValueError, match="hide=single-positive: the labels of this source are not complete"):
        assemble(given, SINGLE, Cut())


def test_images_of_which_no_label_is_shown_are_kept_and_counted() -> None:
    """As published: every entry of theirs is unobserved, and takes part."""
    given = source([f"{n}.jpg" for n in range(20)], ["t.jpg"])
    train, _ = validation_split(20, 0.2)
    blank = int(train[3])
    given.splits["train"].positives[blank] = np.array([], np.int64)
    found = assemble(given, SINGLE, Cut())["train"]
    assert found.table["key"].to_pylist() == [str(n) for n in train]
    row = found.table.to_pylist()[3]
    assert (row["positives"], row["negatives"], row["truth"]) == ([], [], [])
    assert found.others["no_label"].to_pylist() == []
    assert found.findings.to_dict()["images of which no label is shown, kept"] == {
        "count": 1,
        "examples": [f"{blank}.jpg"],
    }
    before = assemble(given, SINGLE, Cut(), unlabelled="left out")["train"]
    assert before.table["key"].to_pylist() == [str(n) for n in train if n != blank]
    assert before.others["no_label"].to_pylist() == [str(blank)]


def test_images_of_partial_labels_without_one_are_left_out_and_named() -> None:
    given = source(["a.jpg", "b.jpg", "c.jpg"], ["t.jpg"], complete=False)
    given.splits["test"].positives[0] = np.array([], np.int64)
    found = assemble(given, Hiding(), Cut(validation=0.4))["test"]
    assert (len(found.table), found.others["no_label"].to_pylist()) == (0, ["t"])


def test_a_source_of_one_split_is_cut_twice() -> None:
    found = assemble(source([f"{n}.jpg" for n in range(100)], []), Hiding(), Cut(validation=0.25, test=0.2))
    assert {split: len(labels.table) for split, labels in found.items()} == {"train": 60, "validation": 20, "test": 20}
    keys = [key for labels in found.values() for key in labels.table["key"].to_pylist()]
    assert len(set(keys)) == 100


def test_keys_fit_and_differ() -> None:
    found = assemble(source(["x/a b.jpg", "y/a b.png", "ü.jpg"], ["x/c.jpg"]), Hiding(), Cut(validation=0.3))
    keys = sorted(key for labels in found.values() for key in labels.table["key"].to_pylist())
    assert keys == ["_", "x_a_b", "x_c", "y_a_b"]
    found = assemble(source(["\u732b.jpg", "\u72ac.jpg"], ["t.jpg"]), Hiding(), Cut(validation=0.5), taken=["t"])
    keys = sorted(key for labels in found.values() for key in labels.table["key"].to_pylist())
    assert keys == ["_-1acfcbe7", "_-cf0960aa", "t-f559887e"]
    with pytest.raises(ValueError, match=r"1 images are listed twice, such as a\.jpg; keep each in one split"):
        assemble(source(["a.jpg", "b.jpg"], ["a.jpg"]), Hiding(), Cut(validation=0.5))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """30 images of two classes with a box each."""
    rows, boxes = ["image,labels,split"], ["image,class,xmin,ymin,xmax,ymax"]
    rng = np.random.default_rng(1)
    for number in range(30):
        name, label = f"im {number}.png", "red" if number % 2 else "blue"
        pixels = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        rows.append(f"{name},{label},{'test' if number < 6 else 'train'}")
        boxes.append(f"{name},{label},10.0,20.0,30.0,40.0")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "boxes.csv").write_text("\n".join(boxes) + "\n")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["shard_dataset", *map(str, arguments), "--workers", "1"])
    return main()


def test_a_table_becomes_shards_with_truth_and_boxes(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ["table", table / "labels.csv", "--boxes", table / "boxes.csv", "--complete", "--out", out]
    assert run(monkeypatch, *arguments, "--hide", "single-positive", "--resize", "32") == 0
    data = open_folder(out)
    assert {split: len(index) for split, index in data.splits.items()} == {"train": 20, "validation": 4, "test": 6}
    index = data.splits["train"]
    rows = np.arange(len(index))
    assert index.has_truth
    truth, observed = index.truth(rows), index.labels(rows)
    assert ((observed == POSITIVE) == (truth == POSITIVE)).all()  # one label an image: the positive one is shown
    assert not (observed == NEGATIVE).any()
    box = index.boxes(0)[0]
    assert [box[side] for side in ("x0", "y0", "x1", "y1")] == pytest.approx([10 * 32 / 60, 16, 16, 32], abs=0.01)


def test_a_broken_shard_is_repaired_to_the_same_bytes(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(monkeypatch, "table", table / "labels.csv", "--boxes", table / "boxes.csv", "--complete", "--out", out)
    shard = out / "train-000000.tar"
    before = hashlib.sha256(shard.read_bytes()).hexdigest()
    content = bytearray(shard.read_bytes())
    content[3000] ^= 1
    shard.write_bytes(content)
    assert run(monkeypatch, "--out", out, "--verify") == 1
    assert run(monkeypatch, "--out", out, "--repair", "--images", table) == 0
    assert hashlib.sha256(shard.read_bytes()).hexdigest() == before


def test_odd_images_and_labels_are_kept_or_counted_by_name(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    Image.new("1", (30_000, 8)).save(tmp_path / "wide.png")
    Image.new("1", (30_000, 30_000)).save(tmp_path / "huge.png")
    (tmp_path / "text.jpg").write_bytes(b"no image")
    with (table / "labels.csv").open("a") as file:
        for name in ("one.png", "wide.png", "huge.png", "text.jpg", "lost.jpg"):
            file.write(f"{name},red,test\n")
        file.write("im 0.png,zebra,test\n")
    (tmp_path / "classes.txt").write_text("red\nblue\n")
    out = tmp_path / "out"
    arguments = ["table", table / "labels.csv", "--classes", tmp_path / "classes.txt", "--complete", "--out", out]
    assert run(monkeypatch, *arguments, "--resize", "32") == 0
    index = open_folder(out).splits["test"]
    assert {"one", "wide"} < set(index.keys(np.arange(len(index))))
    assert len(index) == 8
    rows = pq.read_table(out / "ledger.parquet").to_pylist()
    fates = {row["file"]: row["fate"] for row in rows if row["fate"] != "written"}
    assert fates == {"huge.png": "undecodable", "text.jpg": "undecodable", "lost.jpg": "not_found"}
    card = json.loads((out / "data_card.json").read_text())
    assert card["splits"]["test"]["images"] == {"requested": 11, "not_found": 1, "undecodable": 2, "written": 8}
    found = card["splits"]["test"]["doctor"]["labels outside the classes"]
    assert found == {"count": 1, "examples": ["zebra"]}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("voc", "no ImageSets/Main here; give VOCdevkit/VOC2012"),
        ("coco", r"0 files annotations/instances_train\*.json"),
        ("nuswide", "no Concepts81.txt, nor formatted_train_images.npy"),
        ("cub", "no images.txt here nor in CUB_200_2011"),
        ("folder", "no images in folders named by class"),
    ],
)
def test_files_of_another_format_are_refused(
    kind: str, message: str, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=message):
        run(monkeypatch, kind, table, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"give a format \(table, folder, voc, coco, nuswide, cub\) and the path of its files"
    ):
        run(monkeypatch, "--out", tmp_path / "out")
    with pytest.raises(ValueError, match="nowhere: no such folder; give the one that holds the voc files"):
        run(monkeypatch, "voc", tmp_path / "nowhere", "--out", tmp_path / "out")
