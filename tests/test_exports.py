"""What labelling tools export: small files in the true forms give the expected labels, splits and boxes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raypaml.preparation.formats.coco import read_coco
from raypaml.preparation.formats.own_labels import TableForm, read_table
from raypaml.preparation.formats.table_file import Dialect
from raypaml.shard import main
from tests.test_tables import named

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><project><name>x</name><labels><label><name>dog</name></label></labels></project></meta>
<image id="0" name="a.jpg" subset="Train" width="72" height="56">
 <tag label="dog" source="manual"></tag>
 <box label="cat" source="manual" occluded="0" xtl="1.5" ytl="2" xbr="30" ybr="40">
  <attribute name="q">1</attribute></box>
</image>
<image id="1" name="sub/b.jpg" subset="val" width="72" height="56">
 <polygon label="dog" points="1,2;3,4;5,6"></polygon></image>
<image id="2" name="c.jpg" subset="Test" width="72" height="56"></image>
</annotations>
"""


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_cvat(tmp_path: Path) -> None:
    source = read_table(written(tmp_path / "annotations.xml", CVAT), TableForm())
    assert source.classes.class_ids == ("cat", "dog")
    assert named(source, "train") == {"a.jpg": (["cat", "dog"], [])}
    assert named(source, "validation") == {"sub/b.jpg": (["dog"], [])}
    assert named(source, "test") == {"c.jpg": ([], [])}
    assert source.splits["train"].boxes == [[{"class": 0, "x0": 1.5, "y0": 2.0, "x1": 30.0, "y1": 40.0}]]
    complete = read_table(tmp_path / "annotations.xml", TableForm(complete=True))
    assert complete.splits["train"].negatives is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CVAT.replace('subset="val" ', ""), "1 images have no split, such as sub/b.jpg; give one to each"),
        (
            "<annotations><track id='0' label='dog'/></annotations>",
            "holds tracks of a video; export it as `CVAT for images",
        ),
        ("<annotation><object/></annotation>", "its root is <annotation>, not CVAT's <annotations>"),
        ("<annotations>", "cannot be read: no element found"),
        ("<?xml version='1.0' encoding='klingon'?><annotations/>", "a.xml: cannot be read: "),
        (CVAT.replace('xtl="1.5"', 'xtl="a"'), "a.xml: a.jpg: a box has the corners 'a', '2', '30', '40'; expected"),
    ],
)
def test_what_is_not_cvats_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_table(written(tmp_path / "a.xml", content), TableForm())


def result(choices: list[str], name: str = "kind") -> dict[str, Any]:
    return {"from_name": name, "to_name": "image", "type": "choices", "value": {"choices": choices}}


def task(image: str, *answers: list[dict[str, Any]], cancelled: bool = False) -> dict[str, Any]:
    annotations = [{"id": n, "result": results, "was_cancelled": cancelled} for n, results in enumerate(answers)]
    return {"id": 1, "data": {"image": image, "note": "x"}, "annotations": annotations, "predictions": []}


def test_label_studio(tmp_path: Path) -> None:
    region = {"from_name": "kind", "type": "rectanglelabels", "value": {"x": 1, "rectanglelabels": ["cow"]}}
    tasks = [
        task("/data/upload/1/8f-a.jpg", [result(["bird", "hot dog"])]),
        task("/data/local-files/?d=b.jpg", [result(["cat"]), region], [result(["cat", "bird"])]),
        task("c.jpg", [result(["cat"])], cancelled=True),
        task("d.jpg", [{"from_name": "tree", "type": "taxonomy", "value": {"taxonomy": [["a", "b"]]}}]),
    ]
    source = read_table(written(tmp_path / "p.json", tasks), TableForm())
    assert named(source, "train") == {
        "1/8f-a.jpg": (["bird", "hot dog"], []),
        "b.jpg": (["bird", "cat", "cow"], []),
        "d.jpg": ([], []),
    }
    assert source.about == "Label Studio's tasks; not read: answers of taxonomy"
    counts = source.splits["train"].findings.counts
    assert counts["tasks without an annotation, left out"] == 1
    assert counts["tasks whose annotators differ, any of them counts"] == 1


def test_label_studios_short_json(tmp_path: Path) -> None:
    rows = [
        {"image": "/data/upload/1/a.jpg", "id": 1, "choice": {"choices": ["hot dog", "cat"]}, "annotator": 1},
        {"image": "/data/upload/1/b.jpg", "id": 2, "choice": "hot dog", "lead_time": 1.5},
        {"image": "/data/upload/1/c.jpg", "id": 3, "choice": None},
    ]
    source = read_table(written(tmp_path / "min.json", rows), TableForm(columns={"labels": "choice"}))
    expected = {"1/a.jpg": (["cat", "hot dog"], []), "1/b.jpg": (["hot dog"], []), "1/c.jpg": ([], [])}
    assert named(source, "train") == expected
    read_as = "labels in lists, elsewhere labels one a cell, as the classes show"
    assert source.about == f"{read_as}; columns not read: id, annotator, lead_time"


def test_several_questions_or_images_are_asked_about(tmp_path: Path) -> None:
    tasks = [task("a.jpg", [result(["cat"]), result(["blurred"], "quality")])]
    path = written(tmp_path / "p.json", tasks)
    with pytest.raises(
        ValueError, match=r"the tasks have several questions \(kind, quality\); choose by --labels-column NAME"
    ):
        read_table(path, TableForm())
    assert named(read_table(path, TableForm(columns={"labels": "kind"})), "train") == {"a.jpg": (["cat"], [])}
    tasks[0]["data"] = {"photo": "a.jpg", "other": "b.jpg"}
    with pytest.raises(ValueError, match="data are photo, other; name the field of the image by --image-column"):
        read_table(written(path, tasks), TableForm())
    columns = {"labels": "kind", "image": "other"}
    assert named(read_table(path, TableForm(columns=columns)), "train") == {"b.jpg": (["cat"], [])}


@pytest.mark.parametrize("by_number", [True, False])
def test_fiftyones_classifications(tmp_path: Path, by_number: bool) -> None:
    for file in ("data/a.jpg", "data/a.txt", "data/a.json", "data/sub/b.png", "data/c.jpg"):
        written(tmp_path / file, "")
    labels: dict[str, Any] = {"a": [1, 0], "sub/b": {"label": 1, "confidence": 0.9}, "c": None, "lost": 0}
    if not by_number:
        labels = {"a": ["dog", "cat"], "sub/b": {"label": "dog"}, "c": None, "lost": "cat"}
    content = {"classes": ["cat", "dog"] if by_number else None, "labels": labels}
    source = read_table(written(tmp_path / "labels.json", content), TableForm())
    expected = {"a.jpg": ["cat", "dog"], "sub/b.png": ["dog"], "c.jpg": [], "lost": ["cat"]}
    assert named(source, "train") == {f"data/{file}": (names, []) for file, names in expected.items()}
    written(tmp_path / "data/a.png", "")
    with pytest.raises(ValueError, match=r"a may be any of a\.jpg, a\.png in .*data; keep one"):
        read_table(tmp_path / "labels.json", TableForm())


def test_fiftyones_names_are_looked_up_below_links_and_not_among_hidden_files(tmp_path: Path) -> None:
    for file in ("elsewhere/a.jpg", "in/data/@eaDir/b.png", "in/data/b.jpg", "in/data/.cache/c.jpg"):
        written(tmp_path / file, "")
    (tmp_path / "in/data/sub").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/data/z.jpg").symlink_to("b.jpg")
    content = {"classes": ["cat"], "labels": {"sub/a": 0, "b": 0, "z": 0, ".cache/c": 0}}
    source = read_table(written(tmp_path / "in/labels.json", content), TableForm())
    assert list(named(source, "train")) == ["data/sub/a.jpg", "data/b.jpg", "data/z.jpg", "data/.cache/c"]


def test_fiftyones_samples(tmp_path: Path) -> None:
    def sample(file: str, tags: list[str], *names: str) -> dict[str, Any]:
        several = {
            "_cls": "Classifications",
            "classifications": [{"_cls": "Classification", "label": n} for n in names],
        }
        return {"filepath": file, "tags": tags, "kind": several, "metadata": {"_cls": "ImageMetadata"}}

    samples = [sample("data/a.jpg", ["train", "x"], "cat", "dog"), sample("data/b.jpg", ["val"], "dog")]
    source = read_table(written(tmp_path / "samples.json", {"samples": samples}), TableForm())
    assert named(source, "train") == {"data/a.jpg": (["cat", "dog"], [])}
    assert named(source, "validation") == {"data/b.jpg": (["dog"], [])}
    samples[0]["other"] = {"_cls": "Classification", "label": "day"}
    with pytest.raises(ValueError, match="fields with classifications: kind, other; choose one by --labels-column"):
        read_table(written(tmp_path / "samples.json", {"samples": samples}), TableForm())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [], "annotations": [], "categories": []}, "COCO's JSON is read by `.*raypaml.shard coco`"),
        ([{"image": "a.jpg", "choice": "cat"}], "no column labels, and not all others are classes"),
        ([{"data": {"image": "a.jpg"}}], "not Label Studio's JSON of tasks with data and annotations"),
        ({"labels": {"a": 7}, "classes": ["cat"]}, "not the export it seems to be"),
        ('{"labels": ', r"not a table in JSON \(no JSON: Expecting value"),
        (
            [task("a.jpg", [{**result([]), "value": {"choices": "cat"}}])],
            "kind holds 'cat'; expected a list of names",
        ),
        ("[1, 2]", "not the export it seems to be"),
    ],
)
def test_what_is_no_export_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_table(written(tmp_path / "x.json", content), TableForm())


def coco(*files: str) -> dict[str, Any]:
    """As Roboflow writes it: a category that nothing has comes first, under the name of the project."""
    images = [{"id": n, "file_name": file} for n, file in enumerate(files)]
    annotations = [{"id": n, "image_id": n, "category_id": 1 + n % 2, "bbox": [1, 2, 3, 4]} for n in range(len(files))]
    categories = [{"id": 0, "name": "pets"}, {"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def test_coco_as_roboflow_lays_it_out(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        written(tmp_path / split / "_annotations.coco.json", coco("a.jpg", "b.jpg"))
        written(tmp_path / split / "a.jpg", "")
    source = read_coco(tmp_path)
    assert source.classes.class_ids == ("cat", "dog")
    for split, folder in (("train", "train"), ("validation", "valid"), ("test", "test")):
        assert named(source, split) == {f"{folder}/a.jpg": (["dog"], None), f"{folder}/b.jpg": (["cat"], None)}
        assert source.splits[split].findings.examples["categories without an annotation here"] == ["pets"]


@pytest.mark.parametrize(
    ("file", "listed", "there"),
    [
        ("annotations/instances_default.json", "a.jpg", "images/default/a.jpg"),  # CVAT
        ("result.json", "images\\8f-a.jpg", "images/8f-a.jpg"),  # Label Studio on Windows
        ("labels.json", "a.jpg", "data/a.jpg"),  # FiftyOne
    ],
)
def test_coco_of_one_file(tmp_path: Path, file: str, listed: str, there: str) -> None:
    path = written(tmp_path / file, coco(listed))
    written(tmp_path / there, "")
    assert named(read_coco(tmp_path), "train") == {there: (["dog"], None)}
    if path.parent == tmp_path:
        assert named(read_coco(path), "train") == {there: (["dog"], None)}


def test_coco_of_cvat_with_three_subsets(tmp_path: Path) -> None:
    for subset in ("Train", "Validation", "Test"):
        written(tmp_path / "annotations" / f"instances_{subset}.json", coco(f"{subset}.jpg"))
        written(tmp_path / "images" / subset / f"{subset}.jpg", "")
    source = read_coco(tmp_path)
    assert {split: found.files for split, found in source.splits.items()} == {
        "train": ["images/Train/Train.jpg"],
        "validation": ["images/Validation/Validation.jpg"],
        "test": ["images/Test/Test.jpg"],
    }
    written(tmp_path / "annotations" / "instances_more.json", coco("x.jpg"))
    with pytest.raises(ValueError, match=r"instances_more.json \(no split\); name each file by one split"):
        read_coco(tmp_path)


def changed(part: str, **fields: Any) -> dict[str, Any]:
    """An export whose first entry of a part has other fields; those that are None are gone."""
    content = coco("a.jpg", "b.jpg")
    entry = content[part][0] | fields
    content[part][0] = {name: value for name, value in entry.items() if value is not None}
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            changed("annotations", image_id=None),
            "annotations, entry 1: image_id is not there; expected a number or text",
        ),
        (changed("annotations", category_id=[1]), r"entry 1: category_id is '\[1\]'; expected a number or text"),
        (
            changed("annotations", bbox=["a", 1, 2, 3]),
            "annotations, entry 1: bbox is .*; expected x, y, width and height",
        ),
        (changed("annotations", bbox=[1, 2]), r"bbox is '\[1, 2\]'"),
        (changed("images", file_name=None), "images, entry 1: file_name is not there; expected text"),
        (changed("images", file_name="b.jpg"), "images: two entries with file_name 'b.jpg'; keep one"),
        (changed("images", id=1), "images: two entries with id '1'; keep one"),
        (changed("categories", name=5), "categories, entry 1: name is '5'; expected text"),
        (coco("a.jpg") | {"annotations": None}, "x.json: no annotations; not COCO's instances JSON"),
        (coco("a.jpg") | {"images": [7]}, "images, entry 1: 7 is no object"),
        (
            coco("a.jpg") | {"images": [{"id": "0", "file_name": "a.jpg"}]},
            "none of its 1 annotations names .* such as 0; ",
        ),
        (5, "x.json: no object with images, annotations, categories"),
    ],
)
def test_what_is_wrong_in_cocos_form_is_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_coco(written(tmp_path / "x.json", content))


def test_an_annotation_of_an_unknown_image_needs_no_id(tmp_path: Path) -> None:
    content = coco("a.jpg")
    content["annotations"].append({"image_id": 77, "category_id": 1})
    findings = read_coco(written(tmp_path / "x.json", content)).splits["train"].findings
    assert findings.examples["annotations of unknown images or categories"] == ["of image 77"]


@pytest.mark.parametrize("names", [("train", "val"), ("Train", "Validation")])
def test_only_a_year_makes_coco_as_released(tmp_path: Path, names: tuple[str, str]) -> None:
    for subset in names:
        written(tmp_path / "annotations" / f"instances_{subset}.json", coco(f"{subset}.jpg"))
    source = read_coco(tmp_path)
    assert source.is_export
    assert source.splits["validation"].files == [f"{names[1]}.jpg"]
    assert sorted(source.splits) == ["train", "validation"]


def test_exports_in_cocos_form_are_checked_as_tables_are(tmp_path: Path) -> None:
    content = changed("categories") | {"categories": [{"id": 1, "name": "Dog"}, {"id": 2, "name": "dog"}]}
    path = written(tmp_path / "x.json", content)
    with pytest.raises(ValueError, match=r"names of classes differ by case, .*--allow similar-names"):
        main(["coco", str(path), "--out", str(tmp_path / "out"), "--dry-run"])


@pytest.mark.parametrize(
    "form",
    [
        TableForm(separator=";"),
        TableForm(dialect=Dialect(";")),
        TableForm(class_columns=("a",)),
        TableForm(columns={"split": "s"}),
        TableForm(columns={"labels": "s"}),
    ],
)
def test_flags_that_mean_nothing_for_an_export_are_refused(tmp_path: Path, form: TableForm) -> None:
    with pytest.raises(ValueError, match=r"a\.xml: .*; leave out --"):
        read_table(written(tmp_path / "a.xml", CVAT), form)


SAMPLE = {"filepath": "a.jpg", "tags": ["val"], "kind": {"_cls": "Classification", "label": "x"}}
EXPORTS = [
    [task("a.jpg", [result(["x"])])],
    {"classes": ["c", "d"], "labels": {"a": [0, 1], "b": {"label": 1}}},
    {"samples": [SAMPLE]},
    [{"image": "a.jpg", "labels": ["x"]}],
    coco("a.jpg"),
]


def places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or object within, and each of its indices or keys."""
    for key in list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield content, key
        yield from places(content[key])


@pytest.mark.parametrize("content", EXPORTS)
def test_whatever_is_damaged_in_an_export_is_one_line(tmp_path: Path, content: Any) -> None:
    for parent, key in list(places(content)):
        right = parent[key]
        for wrong in (None, 5, "s", [], {"a": 1}, [[1]]):
            parent[key] = wrong
            path = written(tmp_path / "x.json", content)
            said = ""
            try:
                _ = read_coco(path) if content is EXPORTS[-1] else read_table(path, TableForm())
            except ValueError as refused:
                said = str(refused)
            assert not said or (str(tmp_path) in said and "\n" not in said)
        parent[key] = right
