"""A prepared data set grows into a new version: shards appended, labels and ledger kept, the old folder untouched."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raypaml.data.data_folder import DataFolder, open_folder
from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED
from raypaml.preparation.formats.label_cells import label_lists
from raypaml.shard import main
from tests.conftest import verify_split
from tests.shard_tool import hashes, ledger

SPLITS = ("train", "validation", "test")
UNCUT = ("--test", "0", "--validation", "0")
Row = tuple[str, str, str, str]
"""Image, positives, negatives, split."""
OLD: list[Row] = [
    *((f"a{n}.jpg", "cat" if n % 2 else "dog", "dog" if n % 2 else "cat", "train") for n in range(6)),
    *(("v0.jpg", "cat", "dog", "validation"), ("v1.jpg", "dog", "cat", "validation")),
    *(("t0.jpg", "cat", "dog", "test"), ("t1.jpg", "dog", "cat", "test"), ("lost.jpg", "dog", "cat", "train")),
]
NEW: list[Row] = [("b0.jpg", "emu", "cat", "train"), ("b1.jpg", "cat dog", "", "train"), ("t2.jpg", "emu", "", "test")]


def table(folder: Path, name: str, rows: Sequence[Row], *, photos: bool = True) -> Path:
    """A table, and a small picture of its own for each image but lost.jpg."""
    for image, *_ in rows if photos else ():
        shade = sum(map(ord, image)) % 256
        if image != "lost.jpg":
            Image.new("RGB", (8, 8), (shade, 255 - shade, 7 * shade % 256)).save(folder / image)
    lines = ["image,labels,negatives,split", *map(",".join, rows)]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def shard(*arguments: object) -> int:
    return main([*map(str, arguments), "--resize", "8", "--workers", "1", "--shard-samples", "4"])


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A prepared data set of OLD; its images and its table lie beside it."""
    assert shard("table", table(tmp_path, "old.csv", OLD), "--out", tmp_path / "old") == 0
    return tmp_path / "old"


def labels(data: DataFolder) -> dict[str, list[int]]:
    """Labels by key, of all splits."""
    found = {}
    for index in data.splits.values():
        rows = np.arange(len(index))
        found |= dict(zip(index.keys(rows), index.labels(rows).tolist(), strict=True))
    return found


@pytest.mark.parametrize("rows", [NEW, [*OLD, *NEW]], ids=["what is added", "all of it"])
def test_a_new_version_has_the_shards_of_before_and_new_ones(
    rows: list[Row], old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = hashes(old)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "lost.jpg")
    table(tmp_path, "new.csv", NEW)
    given = table(tmp_path, "new.csv", rows, photos=False)
    out = tmp_path / "new"
    assert shard("table", given, "--grow", old, "--out", out) == 0
    said = capsys.readouterr().err
    assert hashes(old) == before, "the old folder stays as it is"
    assert all(hashes(out)[name] == digest for name, digest in before.items() if name.endswith(".tar"))
    data = open_folder(out)
    again = 1 if rows != NEW else 0  # lost.jpg is there now, and is written if it is asked for again
    assert {split: len(index) for split, index in data.splits.items()} == {
        "train": 8 + again,
        "validation": 2,
        "test": 3,
    }
    assert data.splits["train"].shards == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    assert data.vocabulary.class_ids == ("cat", "dog", "emu")
    assert labels(data) | {"lost": []} == {
        **{key: [*row, UNOBSERVED] for key, row in labels(open_folder(old)).items()},
        "b0": [NEGATIVE, UNOBSERVED, POSITIVE],
        "b1": [POSITIVE, POSITIVE, UNOBSERVED],
        "t2": [UNOBSERVED, UNOBSERVED, POSITIVE],
        "lost": [],
    }
    for index in data.splits.values():
        assert verify_split(out, index) == []
    assert data.vocabulary.train_positives.tolist() == [3 + 1, 3 + 1 + again, 1]
    assert "1 new classes (emu); they are unobserved in the images of" in said
    assert "class groups counted again: " in said
    fates = {row["file"]: (row["split"], row["fate"], row["shard"]) for row in ledger(out)}
    assert len(fates) == len(ledger(out)) == len(OLD) + len(NEW)
    assert fates["lost.jpg"][:2] == ("train", "written" if again else "not_found")
    assert fates["b0.jpg"] == ("train", "written", 2)
    assert shard("table", "--out", out, "--verify") == 0


def test_lineage_is_kept_over_versions(old: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    assert shard("table", table(tmp_path, "n.csv", NEW[:1]), "--grow", old, "--out", first) == 0
    assert shard("table", table(tmp_path, "n.csv", NEW[1:]), "--grow", first, "--out", second) == 0
    card = json.loads((second / "data_card.json").read_text())
    digests = [json.loads((folder / "data_card.json").read_text())["digest"] for folder in (old, first)]
    assert [version["digest"] for version in card["lineage"]] == digests
    assert [version["images"]["train"] for version in card["lineage"]] == [6, 7]
    assert card["splits"]["train"]["images"] == {"requested": 9, "not_found": 1, "written": 8}
    assert card["parameters"]["grown_from"] == digests[1][:16]
    assert f"- {old}, digest `{digests[0][:16]}`: train 6" in (second / "data_card.md").read_text()


def test_class_groups_are_counted_again_and_said(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = open_folder(old).vocabulary.class_group.tolist()
    rows = [(f"c{n}.jpg", "cat", "", "train") for n in range(5)]
    assert shard("table", table(tmp_path, "n.csv", rows), "--grow", old, "--out", tmp_path / "new") == 0
    now = open_folder(tmp_path / "new").vocabulary.class_group.tolist()
    assert (groups, now) == ([1, 3], [3, 1])
    said = "class groups counted again: 2 of the 2 earlier classes are in another one (cat G1 to G3, dog G3 to G1)"
    assert said in capsys.readouterr().err


def test_new_images_are_cut_by_themselves(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (8, 8), (number, 99, 10 * len(name))).save(tmp_path / "data" / name / f"{number}.jpg")
    assert shard("folder", tmp_path / "data", "--out", tmp_path / "old") == 0
    for number in range(10, 20):
        Image.new("RGB", (8, 8), (number, 99, 30)).save(tmp_path / "data" / "cat" / f"{number}.jpg")
    assert shard("folder", tmp_path / "data", "--grow", tmp_path / "old", "--out", tmp_path / "new") == 0
    before, now = (
        {split: set(index.key_column.to_pylist()) for split, index in open_folder(tmp_path / name).splits.items()}
        for name in ("old", "new")
    )
    assert all(before[split] <= now[split] for split in SPLITS), "no image changes its split"
    assert {split: len(now[split]) - len(before[split]) for split in SPLITS} == {
        "train": 6,
        "validation": 2,
        "test": 2,
    }
    assert sum(map(len, now.values())) == len(set().union(*now.values())) == 30
    few = [*("--grow", tmp_path / "new", "--out", tmp_path / "newer")]
    Image.new("RGB", (8, 8), (77, 99, 30)).save(tmp_path / "data" / "cat" / "77.jpg")
    with pytest.raises(
        ValueError, match="1 new images are too few to cut splits from; name their splits, or give --test 0"
    ):
        shard("folder", tmp_path / "data", *few)
    assert shard("folder", tmp_path / "data", *few, *UNCUT) == 0
    assert len(open_folder(tmp_path / "newer").splits["train"]) == len(now["train"]) + 1


def test_an_interrupted_growth_goes_on(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, out = table(tmp_path, "n.csv", NEW), tmp_path / "new"
    from raypaml.preparation import pipeline

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_split_index", fail)
        with pytest.raises(KeyboardInterrupt):
            shard("table", given, "--grow", old, "--out", out)
    assert shard("table", given, "--grow", old, "--out", out) == 0
    assert shard("table", given, "--grow", old, "--out", tmp_path / "straight") == 0
    assert hashes(out) == hashes(tmp_path / "straight")


REFUSED: dict[str, tuple[list[Row], list[str], str]] = {
    "nothing new": (OLD[:10], [], "it has all 10 images already; there is nothing to add"),
    "another split": (
        [("a0.jpg", "dog", "cat", "test"), *NEW],
        [],
        "1 images of split 'test' are there in another one",
    ),
    "other labels": ([("a0.jpg", "cat", "", "train"), *NEW], [], "1 images have other labels there, such as a0.jpg"),
    "a class by case": (
        [("b0.jpg", "Cat", "", "train"), *NEW[2:]],
        [],
        "invisible signs only: 2 of 4, such as 'cat', 'Cat'",
    ),
    "another size": (NEW, ["--resize", "9"], r"other settings: size=9 \(there: 8\); give the same"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str, old: Path, tmp_path: Path) -> None:
    rows, more, message = REFUSED[case]
    given = [str(table(tmp_path, "n.csv", rows)), "--grow", str(old), "--out", str(tmp_path / "new")]
    with pytest.raises(ValueError, match=message):
        main(["table", *given, "--workers", "1", *(more or ["--resize", "8"])])
    assert not (tmp_path / "new").exists()


def test_another_picture_of_the_same_name_is_refused(old: Path, tmp_path: Path) -> None:
    given = table(tmp_path, "n.csv", [OLD[0], *NEW])
    Image.new("RGB", (8, 8), (0, 0, 0)).save(tmp_path / OLD[0][0])
    with pytest.raises(ValueError, match=r"a0\.jpg is another picture there; give new images names of their own"):
        shard("table", given, "--grow", old, "--out", tmp_path / "new")


def test_only_a_finished_data_set_of_listed_files_grows(old: Path, tmp_path: Path) -> None:
    given = table(tmp_path, "n.csv", NEW[:1])
    with pytest.raises(ValueError, match=r"no prepared data set with a ledger\.parquet here"):
        shard("table", given, "--grow", tmp_path, "--out", tmp_path / "new")
    with pytest.raises(ValueError, match="the earlier version is not changed; give another folder as --out"):
        shard("table", given, "--grow", old, "--out", old)
    rows = pq.read_table(old / "ledger.parquet").replace_schema_metadata(None)
    unlisted = rows.set_column(2, "file", pa.nulls(len(rows), pa.string()))
    pq.write_table(unlisted, old / "ledger.parquet")
    with pytest.raises(
        ValueError,
        match="its images are known by key, not by file; only data sets of tables and folders can grow",
    ):
        shard("table", given, "--grow", old, "--out", tmp_path / "new")
    record = json.loads((old / "preparation.json").read_text())
    del record["splits"]["test"]
    (old / "preparation.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="test not finished; run its preparation to its end first"):
        shard("table", given, "--grow", old, "--out", tmp_path / "new")


def test_labels_that_a_hierarchy_implied_are_kept(tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_text("child,parent\ncat,animal\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\nanimal\n")
    rows = [row for row in OLD if row[0] != "lost.jpg"]
    more = ["--classes", tmp_path / "classes.txt", "--hierarchy", tmp_path / "h.csv"]
    assert shard("table", table(tmp_path, "old.csv", rows), *more, "--out", tmp_path / "old") == 0
    given = table(tmp_path, "n.csv", [("c.jpg", "cat", "", "train")])
    with pytest.raises(ValueError, match=r"other settings: hierarchy=None \(there: "):
        shard("table", given, "--grow", tmp_path / "old", "--out", tmp_path / "new", *UNCUT)
    assert shard("table", given, *more, "--grow", tmp_path / "old", "--out", tmp_path / "new", *UNCUT) == 0
    implied = pq.read_table(tmp_path / "new" / "implied-train.parquet").to_pylist()
    assert sorted(row["key"] for row in implied) == ["a1", "a3", "a5", "c"]


def test_a_group_is_not_divided_by_growing(tmp_path: Path) -> None:
    rows = [(f"g{n}.jpg", "cat" if n % 2 else "dog", "", "train") for n in range(20)]
    table(tmp_path, "t.csv", rows)
    lines = [f"{image},{label},{number // 2}" for number, (image, label, *_) in enumerate(rows)]
    given = tmp_path / "t.csv"
    given.write_text("\n".join(["image,labels,group", *lines]) + "\n")
    assert shard("table", given, "--out", tmp_path / "old") == 0
    Image.new("RGB", (8, 8), (7, 7, 7)).save(tmp_path / "more.jpg")
    given.write_text(
        "\n".join(["image,labels,group", *lines, *(f"n{n}.jpg,cat,new" for n in range(20)), "more.jpg,cat,3"])
    )
    with pytest.raises(ValueError, match=r"more\.jpg is of group '3', which is in '.*' there; give it this split"):
        shard("table", given, "--grow", tmp_path / "old", "--out", tmp_path / "new")


@pytest.mark.parametrize("new", [["polar bear", "bear"], ["sea cat"]])
def test_classes_of_before_say_nothing_about_blanks_in_new_names(new: list[str]) -> None:
    cells = {"labels": pa.array(["cat dog", "dog", *new])}
    with pytest.raises(ValueError, match=r"can be read in 2 ways: separated by a blank.*; or one a cell"):
        label_lists(cells, "", ["cat", "dog"], is_closed=False)
    lists, about, _ = label_lists(cells, "", ["cat", "dog"])
    assert (lists["labels"][2].as_py(), about) == (new[0].split(), "labels separated by a blank, as the classes show")


@pytest.mark.parametrize(("new", "between"), [(["fox cat", "fox"], " "), (["fox,hen", "fox,hen,cat"], ",")])
def test_new_names_that_are_evident_are_read_as_those_of_before(new: list[str], between: str) -> None:
    cells = {"labels": pa.array([f"cat{between}dog", *new])}
    lists, _, _ = label_lists(cells, "", ["cat", "dog"], is_closed=False)
    assert lists["labels"].to_pylist() == [["cat", "dog"], *(cell.split(between) for cell in new)]
