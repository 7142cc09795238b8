"""One's own labels: tables with quoting, byte order mark and CRLF, Parquet lists, and folders named by class."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypaml.preparation.formats.class_folders import read_folder
from raypaml.preparation.formats.common import Source
from raypaml.preparation.formats.own_labels import TableForm, read_table

COMPLETE = TableForm(separator=" ", complete=True)


def named(source: Source, split: str) -> dict[str, tuple[list[str], list[str] | None]]:
    found, names = source.splits[split], source.classes.class_ids
    negatives = found.negatives or [None] * len(found.files)
    return {
        file: ([names[k] for k in positive], None if negative is None else [names[k] for k in negative])
        for file, positive, negative in zip(found.files, found.positives, negatives, strict=True)
    }


def write(path: Path, text: str, *, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_a_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    text = 'image,labels,split\r\n"a, b.jpg",cat dog,train\r\nsub/ü.jpg,,train\r\nc.jpg,dog,test\r\n'
    source = read_table(write(tmp_path / "t.csv", text, encoding="utf-8-sig"), COMPLETE)
    assert source.classes.class_ids == ("cat", "dog")
    assert named(source, "train") == {"a, b.jpg": (["cat", "dog"], None), "sub/ü.jpg": ([], None)}
    assert named(source, "test") == {"c.jpg": (["dog"], None)}
    assert source.images == tmp_path


def test_what_is_not_listed_is_unobserved_unless_complete(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,labels,negatives\na.jpg,x;long name,z\nb.jpg,, y ;z;\n")
    source = read_table(path, TableForm(separator=";"))
    assert source.classes.class_ids == ("long name", "x", "y", "z")
    assert named(source, "train") == {"a.jpg": (["long name", "x"], ["z"]), "b.jpg": ([], ["y", "z"])}


def test_rows_of_one_image_are_merged_and_contradictions_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,labels,negatives\na.jpg,x,y\na.jpg,x y,z\nb.jpg,z,\n")
    source = read_table(path, TableForm(separator=" "))
    assert named(source, "train") == {"a.jpg": (["x"], ["z"]), "b.jpg": (["z"], [])}
    counts = source.splits["train"].findings.counts
    assert counts["rows of an image listed before, merged"] == 1
    assert counts["duplicate labels"] == 1
    assert counts["conflicting labels dropped"] == 1
    assert source.splits["train"].findings.examples["conflicting labels"] == ["a.jpg y"]


def test_a_class_list_fixes_the_order_and_leaves_others_out(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,labels\na.jpg,x y\nb.jpg,z\n")
    source = read_table(path, COMPLETE, class_ids=("z", "x"))
    assert source.classes.class_ids == ("z", "x")
    assert named(source, "train") == {"a.jpg": (["x"], None), "b.jpg": (["z"], None)}
    assert source.splits["train"].findings.counts["labels outside the classes"] == 1
    assert source.splits["train"].findings.examples["labels outside the classes"] == ["y"]


def test_parquet_with_lists(tmp_path: Path) -> None:
    table = pa.table({"image": ["a.jpg", "b.jpg"], "labels": [["long name"], []], "split": ["train", "validation"]})
    pq.write_table(table, tmp_path / "t.parquet")
    source = read_table(tmp_path / "t.parquet", COMPLETE)
    assert named(source, "train") == {"a.jpg": (["long name"], None)}
    assert named(source, "validation") == {"b.jpg": ([], None)}


def test_boxes_beside_a_table(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,labels\na.jpg,x\nb.jpg,x\n")
    boxes = write(
        tmp_path / "b.csv", "image,class,xmin,ymin,xmax,ymax\na.jpg,x,1,2,3.5,4\nc.jpg,x,1,2,3,4\na.jpg,w,1,1,1,1\n"
    )
    found = read_table(path, COMPLETE, boxes=boxes).splits["train"]
    assert found.boxes == [[{"class": 0, "x0": 1.0, "y0": 2.0, "x1": 3.5, "y1": 4.0}], []]
    assert found.findings.examples["boxes of unknown images or classes"] == ["a.jpg w", "c.jpg x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture,labels\na.jpg,x\n", r"t\.csv: no column image; it has picture, labels. Flags such as --image-column"),
        ("image,labels\na.jpg,\n", r"t\.csv: no label in it; expected names of classes for its 1 rows"),
        (
            "image,labels,split\na.jpg,x,eval\n",
            r"t\.csv: row 1: split 'eval'; expected train, training, validation, val",
        ),
        ("image,labels,split\na.jpg,x,train\na.jpg,x,test\n", r"t\.csv: row 2: a\.jpg is in two splits; keep one"),
        (
            "image,labels\na.jpg,x,y\n",
            r"t\.csv: line 2: 3 cells instead of 2; a cell that holds the delimiter or a line",
        ),
        ('image,labels\na.jpg,"x\nb.jpg,y\n', r"t\.csv: line 3: unexpected end of data; its quotes do not match"),
        ('image,labels\na.jpg,"x"y\n', r"t\.csv: line 2: ',' expected after '\"'; its quotes do not match"),
        ("image,labels,Labels\na.jpg,x,y\n", None),
        ("image,Labels,LABELS\na.jpg,x,y\n", r"t\.csv: 2 columns are called 'labels'; rename all but one"),
        ("image,labels\n,x\n", r"t\.csv: a row has labels and no image"),
        ("image,labels\n/home/me/a.jpg,x\n", r"t\.csv: /home/me/a\.jpg: not below the folder of images; --path-prefix"),
        (
            "image,labels\nC:\\\\me\\\\a.jpg,x\n",
            r"t\.csv: C:.*me.*a\.jpg: not below the folder of images; --path-prefix",
        ),
        ("", r"t\.csv: empty; expected a first row with the names of the columns"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, message: str | None) -> None:
    if message is None:
        assert read_table(write(tmp_path / "t.csv", text), COMPLETE).classes.class_ids == ("x",)
        return
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path / "t.csv", text), COMPLETE)


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"t\.csv: cannot be read"):
        read_table(tmp_path / "t.csv", COMPLETE)


@pytest.mark.parametrize("splits", [("",), ("train", "test")])
def test_folders_named_by_class(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for split in splits:
        for file in ("cat/1.JPG", "cat/2.png", "dog/1.jpg", "dog/notes.txt"):
            (tmp_path / split / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / split / file).touch()
    source = read_folder(tmp_path)
    assert source.classes.class_ids == ("cat", "dog")
    last = splits[-1]
    below = f"{last}/" if last else ""
    expected = {
        f"{below}cat/1.JPG": (["cat"], None),
        f"{below}cat/2.png": (["cat"], None),
        f"{below}dog/1.jpg": (["dog"], None),
    }
    assert named(source, last or "train") == expected


def test_a_folder_without_classes(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").touch()
    with pytest.raises(ValueError, match="no images in folders named by class; expected CLASS/IMAGE"):
        read_folder(tmp_path)
