"""The list of an audit for Label Studio and FiftyOne, and the answers that Label Studio exports."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from raypaml.auditing.annotation_tools import write_fiftyone, write_label_studio
from raypaml.auditing.answer_tables import read_answer_table
from tests.test_audit_page import candidates

LISTED = candidates(6, 6)


def exported(path: Path, *annotations: Any) -> Path:
    """A JSON export as Label Studio writes it, of the fields that matter here, with annotations of the first task."""
    data = {"key": "k", "class": "c", "image": "/data/local-files/?d=audit/data/00001.jpg"}
    path.write_text(json.dumps([{"id": 1, "data": data, "annotations": list(annotations), "predictions": []}]))
    return path


def chosen(*choices: str, **more: Any) -> dict[str, Any]:
    one = {"from_name": "answer", "to_name": "image", "type": "choices", "value": {"choices": list(choices)}}
    return {"result": [{"from_name": "place", "value": {"x": 1}}, one], "was_cancelled": False} | more


def test_tasks_have_pictures_facts_and_predictions(tmp_path: Path) -> None:
    out = tmp_path / "my audit #1"
    out.mkdir()
    write_label_studio(out, "my run", LISTED)
    tasks = json.loads((out / "label_studio.json").read_text())
    assert [task["data"]["key"] for task in tasks] == [one.key for one in LISTED]
    assert [task["data"]["class"] for task in tasks] == [one.class_id for one in LISTED]
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=my%20audit%20%231/data/00001.jpg"
    (predicted,) = tasks[0]["predictions"]
    assert (predicted["model_version"], predicted["score"]) == ("my run", 1.0)
    answer, place = predicted["result"]
    assert answer["value"] == {"choices": ["yes"]}
    assert {name: place["value"][name] for name in ("x", "y", "width", "height")} == {
        "x": 20,
        "y": 25,
        "width": 40,
        "height": 50,
    }
    names = {(one.tag, one.get("name")) for one in ET.parse(out / "label_studio.xml").iter() if one.get("name")}
    assert names == {("Image", "image"), ("RectangleLabels", "place"), ("Choices", "answer")}
    assert {one["from_name"] for one in predicted["result"]} == {"answer", "place"}


def test_a_folder_is_a_fiftyone_dataset(tmp_path: Path) -> None:
    write_fiftyone(tmp_path, LISTED)
    assert json.loads((tmp_path / "metadata.json").read_text())["media_type"] == "image"
    (sample,) = json.loads((tmp_path / "samples.json").read_text())["samples"]  # one picture of six entries
    assert sample["filepath"] == "data/00001.jpg"
    labels = sample["missing"]["classifications"]
    assert [label["label"] for label in labels] == [one.name for one in LISTED]
    assert [label["confidence"] for label in labels] == [one.score for one in LISTED]  # numbers
    assert sample["places"]["detections"][0]["bounding_box"] == [0.2, 0.25, 0.4, 0.5]


def test_an_export_gives_the_answers_of_everybody(tmp_path: Path) -> None:
    path = exported(tmp_path / "export.json", chosen("yes"), chosen("no", was_cancelled=True), chosen("Yes"))
    assert [(one.key, one.class_id, one.text) for one in read_answer_table(path)] == [
        ("k", "c", "yes"),
        ("k", "c", "Yes"),
    ]
    assert [one.text for one in read_answer_table(exported(tmp_path / "none.json"))] == [""]
    brief = tmp_path / "min.JSON"
    brief.write_text(json.dumps([{"key": "k", "class": "c", "answer": "no", "id": 1}, {"key": "l", "class": "c"}]))
    assert [(one.where, one.key, one.text) for one in read_answer_table(brief)] == [
        (f"{brief}: task 1", "k", "no"),
        (f"{brief}: task 2", "l", ""),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "not answers of Label Studio .tasks=.*export the project from there as JSON or CSV"),
        ("[1]", r"tasks\[0\]=1: must be an object"),
        ('[{"data": {"class": "c"}, "annotations": []}]', "task 1.key=None: must be text"),
        ('[{"data": 1}]', "task 1.data=1"),
        ('[{"key": "k", "class": "c", "answer": {"choices": ["yes", "no"]}}]', "task 1.answer=.*must be text"),
        ('[{"data": {}, "annotations": [{"result": [{"from_name": "answer", "value": 3}]}]}]', "task 1.value=3"),
        ("[", "no JSON"),
    ],
)
def test_what_is_no_export_is_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        read_answer_table(tmp_path / "a.json")
