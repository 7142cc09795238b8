"""Tables as people have them: every form that is read with the labels it must give, every one refused with its line."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypaml.preparation.formats.label_cells import listed_names
from raypaml.preparation.formats.own_labels import TableForm, read_table
from raypaml.preparation.formats.table_file import Dialect
from tests.test_tables import named

WRITTEN = [["bird", "cat"], ["bird", "dog"], ["dog"], ["dog", "cat"], ["cat"], ["bird"], ["sheep", "cat"], ["sheep"]]
"""The positives of p0.jpg, p1.jpg, ..."""
EXPECTED = {f"p{row}.jpg": (sorted(names), []) for row, names in enumerate(WRITTEN)}


def table(path: Path, cells: list[str], *, delimiter: str = ",", end: str = "\n", encoding: str = "utf-8") -> Path:
    quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
    rows = [f"image{delimiter}labels", *(f"p{row}.jpg{delimiter}{cell}" for row, cell in enumerate(quoted))]
    path.write_bytes((end.join(rows) + end).encode(encoding))
    return path


def joined(separator: str) -> list[str]:
    return [separator.join(names) for names in WRITTEN]


@pytest.mark.parametrize("separator", [" ", ",", ";", "|", "; ", " | ", "\t", "\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_separators_and_delimiters_are_found(tmp_path: Path, separator: str, delimiter: str) -> None:
    source = read_table(table(tmp_path / "t.csv", joined(separator), delimiter=delimiter), TableForm())
    assert source.classes.class_ids == ("bird", "cat", "dog", "sheep")
    assert named(source, "train") == EXPECTED


@pytest.mark.parametrize(
    "write",
    [
        lambda names: str(names),
        lambda names: str(tuple(names)) if len(names) != 1 else f"('{names[0]}',)",
        lambda names: "{" + str(names)[1:-1] + "}",
        lambda names: str(names).replace("'", '"'),
        lambda names: "[" + " ".join(map(repr, names)) + "]",  # as NumPy prints arrays
        lambda names: '{"choices": ' + str(names).replace("'", '"') + "}" if len(names) > 1 else names[0],
    ],
)
def test_lists_in_cells(tmp_path: Path, write: Any) -> None:
    source = read_table(table(tmp_path / "t.csv", [write(names) for names in WRITTEN]), TableForm())
    assert named(source, "train") == EXPECTED


def test_names_in_lists_keep_their_signs() -> None:
    names = ("hot dog", "tench, Tinca tinca", "it's", 'a "b"', "back\\slash", "\u00e9t\u00e9")
    assert listed_names(str(list(names))) == names
    for cell in ("['a' 'b', 'c']", "[bird, cat]", "{bird,cat}", "['a", '["a", null]', "[['a']]", "['\\d']"):
        with pytest.raises(ValueError, match="begins like a list and cannot be read as one"):
            listed_names(cell)
    assert listed_names("(bird)") is None
    assert listed_names("[]") == listed_names("set()") == ()


@pytest.mark.parametrize(
    ("encoding", "delimiter"), [("utf-8-sig", ","), ("utf-16", "\t"), ("utf-16", ","), ("utf-32", ";")]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marked_encodings_are_recognised(tmp_path: Path, encoding: str, delimiter: str, end: str) -> None:
    path = table(tmp_path / "t.csv", joined("|"), delimiter=delimiter, encoding=encoding, end=end)
    assert named(read_table(path, TableForm()), "train") == EXPECTED


def test_compressed_tables_are_read_and_damaged_ones_refused(tmp_path: Path) -> None:
    content = gzip.compress(table(tmp_path / "t.csv", joined("|")).read_bytes())
    (tmp_path / "t.csv.gz").write_bytes(content)
    assert named(read_table(tmp_path / "t.csv.gz", TableForm()), "train") == EXPECTED
    (tmp_path / "t.csv.gz").write_bytes(content[:20])
    with pytest.raises(ValueError, match=r"t\.csv\.gz: cannot be read: "):
        read_table(tmp_path / "t.csv.gz", TableForm())


def test_other_encodings_are_said_by_a_word(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("image,labels\na.jpg,Käfer\nb.jpg,Käfer\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"t\.csv: line 2 is not UTF-8; give --encoding cp1252 if"):
        read_table(path, TableForm())
    source = read_table(path, TableForm(dialect=Dialect(encoding="cp1252")))
    assert source.classes.class_ids == ("Käfer",)
    path.write_bytes("image,labels\na.jpg,x\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match="holds zero bytes, so it is no UTF-8 text; if it is UTF-16, give --encoding"):
        read_table(path, TableForm())
    with pytest.raises(ValueError, match="--encoding klingon: no such encoding"):
        read_table(path, TableForm(dialect=Dialect(encoding="klingon")))


def test_the_delimiter_may_be_given_or_be_said_by_excel(tmp_path: Path) -> None:
    cells = "image|labels\na.jpg|x\n"
    (tmp_path / "t.csv").write_text(cells)
    with pytest.raises(ValueError, match=r"no column image; it has image\|labels\. .*--delimiter"):
        read_table(tmp_path / "t.csv", TableForm())
    assert read_table(tmp_path / "t.csv", TableForm(dialect=Dialect("|"))).classes.class_ids == ("x",)
    (tmp_path / "t.csv").write_text("sep=|\n" + cells)
    assert read_table(tmp_path / "t.csv", TableForm()).classes.class_ids == ("x",)
    with pytest.raises(ValueError, match="--delimiter '::': give one sign"):
        read_table(tmp_path / "t.csv", TableForm(dialect=Dialect("::")))


ONE_OR_TWO = (
    r"the labels can be read in 2 ways: separated by {}, (\d+) classes \(.*\); or one a cell, (\d+) classes \(.*"
)


@pytest.mark.parametrize(
    ("cells", "sign", "counts"),
    [
        (["polar bear", "dog", "polar bear", "cat"], "a blank", (4, 3)),
        (["chair dog", "sheep", "chair dog"], "a blank", (3, 2)),
        (["hot dog", "dog", "traffic light"], "a blank", (4, 3)),
        (["traffic light", "traffic cone", "light", "cone"], "a blank", (3, 4)),
        (["tench, Tinca tinca", "goldfish, Carassius auratus", "shark"], "','", (5, 3)),
        (["red car", "blue car", "red bus", "blue bus"], "a blank", (4, 4)),
        (["a;b", "c"], "';'", (3, 2)),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_with_both(
    tmp_path: Path, cells: list[str], sign: str, counts: tuple[int, int]
) -> None:
    path = table(tmp_path / "t.csv", cells)
    with pytest.raises(ValueError, match=ONE_OR_TWO.format(re.escape(sign))) as refused:
        read_table(path, TableForm())
    said = re.search(ONE_OR_TWO.format(re.escape(sign)), str(refused.value))
    assert said is not None
    assert (int(said[1]), int(said[2])) == counts
    assert "\n" not in str(refused.value)
    whole = read_table(path, TableForm(separator="none"))
    assert whole.classes.class_ids == tuple(sorted(set(cells)))


def test_two_separators_are_refused_with_all_readings(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", ["a;b", "b,a", "a", "b"])
    with pytest.raises(
        ValueError, match=r"in 3 ways: .*Give --separator ';' or --separator ',' or --separator none, or"
    ):
        read_table(path, TableForm())
    path = table(tmp_path / "u.csv", ["cat dog", "cat", "dog", "cat, dog"])
    with pytest.raises(ValueError, match="can be read in 2 ways"):
        read_table(path, TableForm())


def test_a_class_list_decides(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", ["polar bear", "dog", "polar bear", "cat"])
    assert named(read_table(path, TableForm(), class_ids=["polar bear", "dog", "cat"]), "train")["p0.jpg"][0] == [
        "polar bear"
    ]
    assert named(read_table(path, TableForm(), class_ids=["polar", "bear", "dog"]), "train")["p0.jpg"][0] == [
        "polar",
        "bear",
    ]
    with pytest.raises(ValueError, match="can be read in 2 ways"):
        read_table(path, TableForm(), class_ids=["polar", "bear", "polar bear"])
    with pytest.raises(ValueError, match="can be read in 2 ways"):
        read_table(path, TableForm(), class_ids=["dog"])


def test_columns_by_name_and_splits_by_any_usual_name(tmp_path: Path) -> None:
    text = 'ID,Filename , Tags,absent,fold,animal\n1,a.jpg,x,y,Train,7\n2,b.jpg,y,x,"train ",7\n3,c.jpg,x,y,val,8\n'
    (tmp_path / "t.csv").write_text(text)
    columns = {"image": "filename", "labels": "Tags", "negatives": "absent", "split": "fold", "group": "animal"}
    source = read_table(tmp_path / "t.csv", TableForm(columns=columns))
    assert named(source, "train") == {"a.jpg": (["x"], ["y"]), "b.jpg": (["y"], ["x"])}
    assert named(source, "validation") == {"c.jpg": (["x"], ["y"])}
    assert source.splits["train"].groups == ["7", "7"]
    assert source.about == "labels one a cell; columns not read: ID; images of one animal stay together"
    with pytest.raises(ValueError, match=r"--split-column flod: no such column; did you mean 'fold'\?"):
        read_table(tmp_path / "t.csv", TableForm(columns=columns | {"split": "flod"}))
    assert read_table(tmp_path / "t.csv", TableForm(columns=columns | {"group": "none"})).splits["train"].groups is None


def test_paths_of_windows_and_of_other_machines(tmp_path: Path) -> None:
    names = ["sub\\a.jpg", ".\\b.jpg", f"{tmp_path}/c.jpg", "C:\\pets\\d.jpg", "/data/local-files/?d=x%20y/e.jpg"]
    names += ["/data/upload/3/8f-f.jpg", "./a/./g.jpg", " h.jpg "]
    (tmp_path / "t.csv").write_text("image,labels\n" + "".join(f"{name},x\n" for name in names))
    source = read_table(tmp_path / "t.csv", TableForm(images=str(tmp_path), prefix="C:\\pets"))
    expected = ["sub/a.jpg", "b.jpg", "c.jpg", "d.jpg", "x y/e.jpg", "3/8f-f.jpg", "a/./g.jpg", "h.jpg"]
    assert source.splits["train"].files == expected


CHEXPERT = (
    "Path,Sex,Age,No Finding,Edema,Fracture\n"
    "a.jpg,F,68,1.0,,0.0\nb.jpg,M,5,,-1.0,1\nc.jpg,M,7, ,uncertain,true\nd.jpg,F,9,0,U,nan\n"
)


def test_one_column_a_class(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CHEXPERT)
    form = {"columns": {"image": "Path"}, "class_columns": ("No Finding..Fracture",)}
    source = read_table(tmp_path / "t.csv", TableForm(**form))  # type: ignore[arg-type]
    assert source.classes.class_ids == ("Fracture", "No Finding")
    assert named(source, "train") == {
        "a.jpg": (["No Finding"], ["Fracture"]),
        "b.jpg": (["Fracture"], []),
        "c.jpg": (["Fracture"], []),
        "d.jpg": ([], ["No Finding"]),
    }
    assert source.splits["train"].findings.counts["uncertain labels, taken as unobserved"] == 3
    assert source.about == "one column a class; columns not read: Sex, Age"
    ones = read_table(tmp_path / "t.csv", TableForm(**form, uncertain="positive"))  # type: ignore[arg-type]
    assert named(ones, "train")["b.jpg"] == (["Edema", "Fracture"], [])
    zeros = read_table(tmp_path / "t.csv", TableForm(**form, uncertain="negative", complete=True))  # type: ignore[arg-type]
    assert named(zeros, "train")["b.jpg"] == (["Fracture"], None)


def test_all_other_columns_are_classes_only_if_they_hold_labels(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CHEXPERT.replace("Path", "image"))
    with pytest.raises(
        ValueError, match=r"no column labels, and not all others .* \(Sex holds 'f'; Age holds '68'\)\. Give"
    ):
        read_table(tmp_path / "t.csv", TableForm())
    (tmp_path / "t.csv").write_text("image,x,y\na.jpg,1,0\nb.jpg,,2\n")
    with pytest.raises(ValueError, match="y holds '2'"):
        read_table(tmp_path / "t.csv", TableForm())
    (tmp_path / "t.csv").write_text("image,x,y\na.jpg,1,-1\nb.jpg,-1,1\n")
    with pytest.raises(ValueError, match="hold -1 and never 0; give --uncertain negative where -1 is that, or"):
        read_table(tmp_path / "t.csv", TableForm())
    source = read_table(tmp_path / "t.csv", TableForm(uncertain="negative"))
    assert source.splits["train"].negatives is None  # every label is there


def test_parquet_with_numbers_for_labels_and_lists_for_names(tmp_path: Path) -> None:
    columns = {"image": ["a.jpg", "b.jpg"], "x": [1.0, None], "y": [True, False], "z": pa.array([0, -1], pa.int8())}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    source = read_table(tmp_path / "t.parquet", TableForm())
    assert named(source, "train") == {"a.jpg": (["x", "y"], ["z"]), "b.jpg": ([], ["y"])}


def test_a_slash_separates_where_the_cells_show_it(tmp_path: Path) -> None:
    assert named(read_table(table(tmp_path / "t.csv", joined("/")), TableForm()), "train") == EXPECTED
    path = table(tmp_path / "u.csv", ["animal/dog", "animal/cat", "tree"])
    with pytest.raises(ValueError, match="separated by '/', 4 classes"):
        read_table(path, TableForm())


def test_messages_are_one_line_of_a_bearable_length(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", joined("|") * 500 + ["even"])
    with pytest.raises(ValueError, match="no column image; it has ") as refused:
        read_table(path, TableForm(dialect=Dialect(encoding="utf-16-le")))  # every two letters one sign, no line ends
    assert len(str(refused.value)) < 500
    (tmp_path / "w.csv").write_text("image," + ",".join(f"column {k}" for k in range(1000)) + "\na.jpg" + ",x" * 1000)
    for form in (TableForm(), TableForm(columns={"labels": "colum 7"}), TableForm(class_columns=("nothing",))):
        with pytest.raises(ValueError, match="column") as refused:
            read_table(tmp_path / "w.csv", form)
        assert len(str(refused.value)) < 700
    (tmp_path / "n.csv").write_text('"two\nlines",labels\na.jpg,x\n')
    with pytest.raises(ValueError, match="it has two lines, labels") as refused:
        read_table(tmp_path / "n.csv", TableForm())
    assert "\n" not in str(refused.value)
