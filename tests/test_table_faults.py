"""Tables that were once read with other labels than they hold, or ended in a traceback or an untrue line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypaml.preparation.formats.common import class_list
from raypaml.preparation.formats.label_cells import listed_names
from raypaml.preparation.formats.own_labels import TableForm, read_table
from raypaml.preparation.label_overview import check_names, positives_of
from tests.test_table_forms import EXPECTED, joined, table
from tests.test_tables import named


@pytest.mark.parametrize("cell", ["[]", "()", '["cat"]', "['x']"])
def test_a_list_says_nothing_about_other_cells(tmp_path: Path, cell: str) -> None:
    path = table(tmp_path / "t.csv", [*joined(","), cell])
    source = read_table(path, TableForm())
    names = listed_names(cell) or ()
    assert named(source, "train") == EXPECTED | {"p8.jpg": (list(names), [])}
    assert source.about.startswith("labels in lists, elsewhere labels separated by ',', as the c")
    assert named(read_table(path, TableForm(separator=",")), "train") == named(source, "train")
    path = table(tmp_path / "u.csv", ["a,b", "c", cell])
    with pytest.raises(ValueError, match="separated by ',', 3 classes"):
        read_table(path, TableForm())


def test_lists_of_positives_say_nothing_about_negatives(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('image;labels;negatives\na.jpg;["cat"];x,y\nb.jpg;["cat"];x,z\nc.jpg;[];y,z\n')
    with pytest.raises(ValueError, match="separated by ',', 3 classes"):
        read_table(tmp_path / "t.csv", TableForm())


@pytest.mark.parametrize("sign", ["\u3001", "\uff0c", "\uff1b", "\u00a0", "\u3000"])
def test_separators_of_other_scripts(tmp_path: Path, sign: str) -> None:
    assert named(read_table(table(tmp_path / "t.csv", joined(sign)), TableForm()), "train") == EXPECTED


def test_a_class_list_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", joined("|"))
    with pytest.raises(ValueError, match=r"1 labels differ from names of --classes by case .* \('cat' for 'Cat'\)"):
        read_table(path, TableForm(), class_ids=["Cat", "dog"])
    with pytest.raises(
        ValueError, match=r"none of its 4 labels \(.*\) is among the 2 of --classes \(horse, cow, ...\)"
    ):
        read_table(path, TableForm(separator="|"), class_ids=["horse", "cow"])
    (tmp_path / "v.csv").write_text("class_id,name,train_positives,train_negatives\ncat,Cat,1,2\n")
    assert class_list(tmp_path / "v.csv") == (("cat",), ("Cat",))
    (tmp_path / "c.txt").write_text("cat\ndog\ncat\n")
    with pytest.raises(ValueError, match="classes given twice: cat; list each class once"):
        class_list(tmp_path / "c.txt")


@pytest.mark.parametrize(
    ("header", "named_so"),
    [
        ("image,label", "label"),
        ("image,class,fold", "class, fold"),
        ("image,cat,dog,is_valid", "is_valid"),
        ("image,cat,Classes,Is Training", "Classes, Is Training"),
        ("image,cat,id", "id"),
    ],
)
def test_columns_that_may_be_no_classes_are_asked_about(tmp_path: Path, header: str, named_so: str) -> None:
    row = ",1" * header.count(",")
    (tmp_path / "t.csv").write_text(f"{header}\na.jpg{row}\nb.jpg{row.replace('1', '0')}\n")
    with pytest.raises(ValueError, match=f"may be of no class: {named_so}. Name the columns"):
        read_table(tmp_path / "t.csv", TableForm())
    last = header.split(",")[-1]
    assert read_table(tmp_path / "t.csv", TableForm(class_columns=(last,))).classes.class_ids == (last,)


@pytest.mark.parametrize("word", ["nan", "None", "NULL", "<NA>"])
def test_words_for_no_label_are_no_classes(tmp_path: Path, word: str) -> None:
    source = read_table(table(tmp_path / "t.csv", [*joined("|"), word, word]), TableForm())
    images = positives_of(source)
    with pytest.raises(ValueError, match=f"words that programs write .* such as '{word}'.*--allow missing-values"):
        check_names(source.classes.class_ids, images, [], from_text=source.names_from_text)
    check_names(source.classes.class_ids, images, ["missing-values"], from_text=source.names_from_text)
    (tmp_path / "t.json").write_text('[{"image": "a.jpg", "labels": NaN}, {"image": "b.jpg", "labels": "cat"}]')
    assert named(read_table(tmp_path / "t.json", TableForm()), "train") == {"a.jpg": ([], []), "b.jpg": (["cat"], [])}


@pytest.mark.parametrize("cells", [["[1, 0, 1]", "[0, 1, 0]"], ["1 0 1", "0 0 0", "1 1 1"]])
def test_vectors_of_zeros_and_ones_are_no_names(tmp_path: Path, cells: list[str]) -> None:
    with pytest.raises(ValueError, match="column labels holds vectors of 3 numbers 0 and 1 and no names of classes"):
        read_table(table(tmp_path / "t.csv", cells), TableForm())
    pq.write_table(pa.table({"image": ["a.jpg"], "labels": [[1, 0]]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="vectors of 2 numbers"):
        read_table(tmp_path / "t.parquet", TableForm())


def test_names_that_differ_by_invisible_signs() -> None:
    with pytest.raises(ValueError, match="invisible signs only: 2 of 2"):
        check_names(["cat", "cat\u200b"], np.array([2, 2]), [], from_text=[])
    with pytest.raises(ValueError, match="made of other names: 1 of 3"):
        check_names(["x", "y", "x~y"], np.array([2, 2, 2]), [], from_text=[])


@pytest.mark.parametrize("sign", ["/", " ", ","])
def test_another_separator_in_the_other_column_is_refused(tmp_path: Path, sign: str) -> None:
    negatives = [f"fox{sign}hen", f"ape{sign}hen", f"emu{sign}yak"]
    rows = [f'{row}.jpg;"cat|dog";"{cell}"' for row, cell in enumerate(negatives)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["image;labels;negatives", *rows, "3.jpg;cat;[]", "4.jpg;dog;"]))
    with pytest.raises(ValueError, match="can be read in"):
        read_table(path, TableForm())
    names = read_table(path, TableForm(separator="|")).classes.class_ids
    assert names == tuple(sorted(["cat", "dog", *negatives]))


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table({"image": ["a.jpg", "b.jpg"], "labels": ["x", "y"]} | columns), path)
    return path


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"image": [{"bytes": b"x", "path": "a.jpg"}] * 2},
            "column image holds struct<.*Pictures inside tables are not",
        ),
        ({"image": [b"\xff\xd8", b"y"]}, "column image holds binary"),
        ({"labels": [{"a": 1}] * 2}, "column labels holds struct<"),
        ({"labels": [[["a"]]] * 2}, "column labels holds list<"),
        ({"labels": [[{"a": 1}]] * 2}, "column labels holds struct<"),
    ],
)
def test_columns_of_other_types_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"t\.parquet: {message}"):
        read_table(parquet(tmp_path / "t.parquet", **columns), TableForm())


def test_suffixes_are_read_in_any_case(tmp_path: Path) -> None:
    names = [["bass, guitar"], ["drum"]]
    source = read_table(parquet(tmp_path / "U.PARQUET", labels=names), TableForm())
    assert named(source, "train") == {"a.jpg": (["bass, guitar"], []), "b.jpg": (["drum"], [])}
    assert not source.names_from_text  # lists are certain
    missing = parquet(tmp_path / "m.parquet", labels=[1.0, float("nan")])
    assert named(read_table(missing, TableForm()), "train") == {"a.jpg": (["1"], []), "b.jpg": ([], [])}
    (tmp_path / "M.JSON").write_text('[{"image": "a.jpg", "choice": "cat"}]')
    assert read_table(tmp_path / "M.JSON", TableForm(columns={"labels": "choice"})).classes.class_ids == ("cat",)


@pytest.mark.parametrize(
    ("content", "form", "message"),
    [
        (b"PK\x03\x04\0\0", TableForm(), "a workbook of Excel or the like; save its sheet as `CSV UTF-8`"),
        (b"PAR1", TableForm(), r"a Parquet table under another name; call it \*\.parquet"),
        (b"\n \n", TableForm(), "empty; expected a first row"),
        (b"image,cat,cat\na.jpg,1,0\n", TableForm(), "columns of classes that exist twice or are named twice: cat"),
        (b"image,b,a\na.jpg,1,0\n", TableForm(class_columns=("a..b",)), r"--class-columns a\.\.b: b comes before a"),
        (
            b"image,labels\na.jpg,x\n",
            TableForm(prefix="/data"),
            "--path-prefix /data: no name of an image begins with it",
        ),
        (b"image,labels\na.jpg,x\n", TableForm(uncertain="negative"), "has a column of names; leave out --uncertain"),
        (b"image,a\na.jpg,1\n", TableForm(separator=","), "has one column a class; leave out --separator"),
    ],
)
def test_lines_that_tell_the_truth(tmp_path: Path, content: bytes, form: TableForm, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "t.csv", form)


def test_long_cells_prefixes_within_names_and_unread_columns(tmp_path: Path) -> None:
    mask = "7" * 200_000
    (tmp_path / "t.csv").write_text(f"image,mask,labels\ns3://b/k_a.jpg,{mask},x\ns3://b/k_/b.jpg,,x\n")
    assert read_table(tmp_path / "t.csv", TableForm(prefix="s3://b/k_")).splits["train"].files == ["a.jpg", "b.jpg"]
    (tmp_path / "c.csv").write_text("image,labels,negatives,cat\na.jpg,x,y,1\n")
    assert (
        "columns not read: labels, negatives" in read_table(tmp_path / "c.csv", TableForm(class_columns=("cat",))).about
    )


def test_some_known_classes_decide_for_cells_of_known_names_only(tmp_path: Path) -> None:
    form = TableForm(known=("cat", "dog"))
    source = read_table(table(tmp_path / "t.csv", ["cat dog", "bear", "cat bear"]), form)
    assert source.classes.class_ids == ("bear", "cat", "dog")
    with pytest.raises(ValueError, match="can be read in 2 ways"):
        read_table(table(tmp_path / "t.csv", ["polar bear", "cat dog", "bear"]), form)


@pytest.mark.parametrize("corners", ["nan,1,2,3", "0,0,inf,3", "5,0,4,3", "0,9,4,3"])
def test_boxes_are_finite_and_not_turned_round(tmp_path: Path, corners: str) -> None:
    path = table(tmp_path / "t.csv", ["cat"])
    (tmp_path / "b.csv").write_text(f"image,class,xmin,ymin,xmax,ymax\np0.jpg,cat,0,0,1,1\np0.jpg,cat,{corners}\n")
    with pytest.raises(
        ValueError, match=r"b\.csv: row 2: a box has the corners .*; expected numbers of pixels, from xmin"
    ):
        read_table(path, TableForm(), boxes=tmp_path / "b.csv")


def test_uncertain_labels_stay_unobserved_in_complete_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,cat,dog\na.jpg,1,-1\nb.jpg,0,\n")
    for columns in ((), ("cat", "dog")):
        source = read_table(tmp_path / "t.csv", TableForm(complete=True, class_columns=columns))
        assert named(source, "train") == {"a.jpg": (["cat"], []), "b.jpg": ([], ["cat", "dog"])}
    with pytest.raises(ValueError, match="column image is named as labels and in another role"):
        read_table(tmp_path / "t.csv", TableForm(columns={"labels": "image"}))
