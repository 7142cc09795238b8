"""What the command says of labels before it works, what it refuses as wrong, and data sets that were begun before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raypaml.data.data_folder import open_folder
from raypaml.labels import UNOBSERVED
from raypaml.preparation.label_overview import check_names
from raypaml.shard import main


def photos(folder: Path, cells: list[str], *columns: str, header: str = "image,labels") -> Path:
    """A table of as many small pictures as there are cells."""
    rows = (
        zip(cells, *(column.split(",") for column in columns), strict=True) if columns else ((cell,) for cell in cells)
    )
    for row in range(len(cells)):
        Image.new("RGB", (8, 8), (row, 0, 0)).save(folder / f"p{row}.png")
    lines = [header, *(f"p{row}.png," + ",".join(values) for row, values in enumerate(rows))]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return folder / "t.csv"


def run(table: Path, out: Path, *more: object) -> None:
    assert main(["table", str(table), "--out", str(out), "--workers", "1", "--resize", "32", *map(str, more)]) == 0


@pytest.mark.parametrize("dry", [True, False])
def test_classes_labels_and_splits_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], dry: bool) -> None:
    cells = [f"c{row % 12:02d}|c{(row + 1) % 12:02d}" if row % 3 else f"c{row % 12:02d}" for row in range(60)]
    table = photos(tmp_path, [*cells, "", "c00|c01|c02"])
    run(table, tmp_path / "out", *["--dry-run"] * dry)
    said = capsys.readouterr().err.splitlines()
    assert said[:5] == [
        "read as: labels separated by '|', as the cells show",
        "12 classes; 62 images with 1.66 positive labels each (1 with 0, 20 with 1, 40 with 2, 1 with 3)",
        "most frequent: c00 11, c02 11, c03 10, c05 10, c06 10, c08 10, c09 10, c11 10, c01 6, c04 5",
        "least frequent: c10 5, c07 5, c04 5, c01 6, c11 10, c09 10, c08 10, c06 10, c05 10, c03 10",
        said[4],
    ]
    assert said[4].startswith("splits: train 3")
    assert sum(int(part.split()[-1]) for part in said[4].removeprefix("splits: ").split(", ")) == 62
    assert (tmp_path / "out").exists() != dry


@pytest.mark.parametrize(
    ("cells", "allow", "message"),
    [
        (
            ["a", "b", "c", "d", "e", "f", "f"],
            "rare-classes",
            "in one image only: 5 of 6, such as 'a', 'b', 'c', 'd', ...",
        ),
        (
            ["cat", "Cat ", "cat", "Cat"],
            "similar-names",
            "differ by case, blanks or invisible signs only: 2 of 2, such as 'Cat', 'cat'",
        ),
        (
            ['"[""cat"", ""a&b""]"', '"[""a""]"', '"[""b"", ""cat""]"'],
            "separators",
            "made of other names: 1 of 4, such as 'a&b'",
        ),
    ],
)
def test_what_looks_wrong_is_refused_unless_allowed(tmp_path: Path, cells: list[str], allow: str, message: str) -> None:
    cells = cells if allow == "rare-classes" else cells * 2
    splits = ",".join(("train", "val", "test")[row % 3] for row in range(len(cells)))
    table = photos(tmp_path, cells, splits, header="image,labels,split")
    with pytest.raises(ValueError, match=f"{message}.* if they are right, --allow {allow}") as refused:
        run(table, tmp_path / "out", "--dry-run")
    assert "\n" not in str(refused.value)
    run(table, tmp_path / "out", "--dry-run", "--allow", allow)
    with pytest.raises(
        ValueError, match=r"--allow rare: no such check; there are rare-classes, similar-names, separators"
    ):
        run(table, tmp_path / "out", "--dry-run", "--allow", "rare")


@pytest.mark.parametrize("name", ["a,b", "a;b", "a|b", "a\tb", "['a'", '"a"'])
def test_separators_in_names_that_were_cut_out_of_text(name: str) -> None:
    if name != "['a'":
        with pytest.raises(ValueError, match="hold separators, or are made of other names: 1 of 2"):
            check_names(["x", name], np.array([2, 2]), [], from_text=[name])
    check_names(["x", name], np.array([2, 2]), [], from_text=["x"])
    check_names(["x", name], np.array([2, 2]), ["separators"], from_text=[name])


def test_a_data_set_that_was_begun_before_goes_on_as_it_began(tmp_path: Path) -> None:
    groups = ",".join(f"g{row // 10}" for row in range(40))
    table = photos(tmp_path, ["hot dog", "Dog"] * 20, groups, header="image,labels,group")
    begun = ("--split-method", "random", "--separator", "blank", "--group-column", "none", "--allow", "similar-names")
    run(table, tmp_path / "old", *begun, "--complete")
    record = json.loads((tmp_path / "old" / "preparation.json").read_text())
    assert record["parameters"].pop("split_method") == "random"  # then it was not recorded
    record["splits"]["test"]["finished"] = False  # interrupted
    (tmp_path / "old" / "preparation.json").write_text(json.dumps(record))
    before = (tmp_path / "old" / "test.arrow").read_bytes()
    run(table, tmp_path / "old", "--complete")
    assert (tmp_path / "old" / "test.arrow").read_bytes() == before
    with pytest.raises(ValueError, match="the labels can be read in 2 ways"):
        run(table, tmp_path / "new", "--complete")


def test_training_images_without_a_shown_label_are_kept_but_in_what_was_begun_before(tmp_path: Path) -> None:
    table = photos(tmp_path, ["cat", "dog", ""] * 8)
    asked = ("--complete", "--hide", "single-positive")
    run(table, tmp_path / "new", *asked)
    record = json.loads((tmp_path / "new" / "preparation.json").read_text())
    assert record["parameters"].pop("unlabelled") == "kept"  # before, it was not recorded
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "preparation.json").write_text(json.dumps(record | {"splits": {}}))
    run(table, tmp_path / "old", *asked)
    new, old = (open_folder(tmp_path / name).splits["train"] for name in ("new", "old"))
    blank = (new.labels(np.arange(len(new))) == UNOBSERVED).all(1)
    assert 0 < blank.sum() == len(new) - len(old)
    assert set(new.keys(np.flatnonzero(~blank))) == set(old.keys(np.arange(len(old))))
    card = json.loads((tmp_path / "new" / "data_card.json").read_text())
    assert card["splits"]["train"]["doctor"]["images of which no label is shown, kept"]["count"] == blank.sum()


def test_the_way_of_splitting_is_recorded(tmp_path: Path) -> None:
    table = photos(tmp_path, ["cat", "dog"] * 20)
    run(table, tmp_path / "out", "--complete")
    assert json.loads((tmp_path / "out" / "preparation.json").read_text())["parameters"]["split_method"] == "stratified"
    run(table, tmp_path / "out", "--complete")
    sizes = {split: len(index) for split, index in open_folder(tmp_path / "out").splits.items()}
    assert sizes == {"train": 26, "validation": 6, "test": 8}
    with pytest.raises(
        ValueError, match=r"holds another data set, made with split_method=stratified \(asked: random\)"
    ):
        run(table, tmp_path / "out", "--complete", "--split-method", "random")


def test_a_group_stays_in_one_split(tmp_path: Path) -> None:
    groups = ",".join(f"g{row // 4}" for row in range(40))
    table = photos(tmp_path, ["cat", "dog"] * 20, groups, header="image,labels,group")
    run(table, tmp_path / "out", "--complete")
    where = {}
    for split, index in open_folder(tmp_path / "out").splits.items():
        where |= dict.fromkeys(index.keys(np.arange(len(index))), split)
    assert len(where) == 40
    assert all(len({where[f"p{row}"] for row in range(first, first + 4)}) == 1 for first in range(0, 40, 4))


def test_labels_outside_the_classes_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.txt").write_text("cat\ndog\n")
    table = photos(tmp_path, ["cat", "dog", "fox"] * 10)
    run(table, tmp_path / "out", "--dry-run", "--classes", tmp_path / "c.txt")
    assert "10 labels outside the classes, left out: fox" in capsys.readouterr().err.splitlines()
