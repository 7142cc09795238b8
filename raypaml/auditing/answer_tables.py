"""The forms in which people's answers come back: a CSV, and the JSON that Label Studio exports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from raypaml.bounded import SMALL_BYTES, read_rows
from raypaml.json_types import check
from raypaml.spreadsheets import from_cell
from raypaml.stored_json import parse_json, read_whole, refused_as

ANSWER_COLUMNS = ("key", "class", "answer")
YES, NO = ("yes", "1", "true", "positive"), ("no", "0", "false", "negative")
UNDECIDED = ("", "unsure", "skip")
_TASKS = "answers of Label Studio"
_EXPORT = "export the project from there as JSON or CSV"


class GivenAnswer(NamedTuple):
    """One answer, as it stands in a file."""

    where: str
    """The file and the line or the task, for messages."""
    key: str
    class_id: str
    text: str
    """What was answered, such as "Yes"; empty for nothing."""


def answer_meaning(text: str, where: str) -> str:
    """What an answer means: "yes", "no" or "unsure", which an empty one means too; ValueError for anything else."""
    said = text.strip().lower()
    for name, texts in (("yes", YES), ("no", NO), ("unsure", UNDECIDED)):
        if said in texts:
            return name
    raise ValueError(f"{where}: answer {text!r}; give yes, no, or nothing")


def read_answer_table(path: Path) -> list[GivenAnswer]:
    """The answers of a file: a CSV with the columns key, class (id) and answer, or a JSON export of Label Studio.

    Raises:
        ValueError: no such file, columns or fields; the message names the line or the task.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix.lower() == ".json":
        return list(_exported(path))
    rows = read_rows(path, ANSWER_COLUMNS)
    return [GivenAnswer(f"{path}:{line}", *(from_cell(row[name]) for name in ANSWER_COLUMNS)) for line, row in rows]


def _exported(path: Path) -> Iterator[GivenAnswer]:
    """The answers of tasks: those of their annotations (export "JSON"), or their field `answer` ("JSON-MIN")."""
    with refused_as(path, _TASKS, _EXPORT):
        tasks = parse_json(read_whole(path, SMALL_BYTES))
        check(tasks, list[dict[str, object]], "tasks")
        for number, task in enumerate(tasks, start=1):
            data, texts = task.get("data", task), _choices(task, number)
            check(data, dict[str, object], f"task {number}.data")
            key, class_id = (_text(data.get(name), f"task {number}.{name}") for name in ("key", "class"))
            yield from (GivenAnswer(f"{path}: task {number}", key, class_id, text) for text in texts or [""])


def _choices(task: dict[str, Any], number: int) -> list[str]:
    """What people chose for a task, each of them; those who skipped it do not count."""
    if "annotations" not in task:
        return [_text(task.get("answer", ""), f"task {number}.answer")]
    annotations = task["annotations"]
    check(annotations, list[dict[str, object]], f"task {number}.annotations")
    chosen: list[str] = []
    for annotation in annotations:
        results = annotation.get("result", [])
        check(results, list[dict[str, object]], f"task {number}.result")
        answers = (
            [] if annotation.get("was_cancelled") else [one for one in results if one.get("from_name") == "answer"]
        )
        for one in answers:
            value = one.get("value")
            check(value, dict[str, object], f"task {number}.value")
            texts = cast("dict[str, Any]", value).get("choices")
            check(texts, list[str], f"task {number}.choices")
            chosen += cast("list[str]", texts)
    return chosen


def _text(value: object, where: str) -> str:
    check(value, str, where)
    return cast("str", value)
