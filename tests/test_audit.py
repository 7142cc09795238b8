"""`python -m raypaml.audit`: what was rejected, ranked and shown; answers become labels, and only what they may."""

from __future__ import annotations

import csv
import html
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raypaml.api.audited import Audited
from raypaml.audit import main
from raypaml.auditing import answers
from raypaml.auditing.candidates import history, precision, times_rejected
from raypaml.auditing.given_answers import read_given
from raypaml.auditing.places import place
from raypaml.data.batches import Reader
from raypaml.data.data_folder import open_folder
from raypaml.labels import POSITIVE, UNOBSERVED
from raypaml.runs.history import read_history
from raypaml.runs.transfer import HostCopy
from raypaml.training.rejections import Rejections, read_epochs
from tests.conftest import run_distributed
from tests.test_loop import config, train_here

Run = tuple[Path, str]


@pytest.fixture(scope="module")
def audited(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audit")
    assert main([str(trained[0]), "--top", "12", "--out", str(out)]) == 0
    return out


def test_what_training_rejected_is_what_it_wrote(trained: Run, evaluated_digits: Path) -> None:
    index = open_folder(evaluated_digits).splits["train"]
    epochs = dict(read_epochs(trained[0], index))
    records = read_history(trained[0])
    assert {record["epoch"]: record["rejected"] for record in records if record["rejected"]} == {
        epoch: len(entries) for epoch, entries in epochs.items()
    }
    labels = index.labels(np.arange(len(index))).ravel()
    for entries in epochs.values():
        assert (labels[entries] == UNOBSERVED).all()
    hits = sum(int(precision(index, entries, len(entries)) * len(entries) + 0.5) for entries in epochs.values())
    assert hits == sum(record["rejected_missed"] for record in records)


def test_rejections_are_the_same_over_workers_and_interruptions(tiny_digits: Path, tmp_path: Path) -> None:
    settings = config(checkpoint_steps=1)
    assert train_here(0, 1, settings, tiny_digits, tmp_path / "one", None)
    run_distributed(train_here, 2, settings, tiny_digits, tmp_path / "two", 5)
    assert train_here(0, 1, settings, tiny_digits, tmp_path / "two", None)
    index = open_folder(tiny_digits).splits["train"]
    one, two = (dict(read_epochs(tmp_path / name, index)) for name in ("one", "two"))
    assert one.keys() == two.keys() == {1, 2}
    for epoch in one:
        np.testing.assert_array_equal(one[epoch], two[epoch])
    train_here(0, 1, config(history=False), tiny_digits, tmp_path / "three", None)
    assert list(read_epochs(tmp_path / "three", index)) == []


def written(folder: Path, index: Any, epochs: dict[int, list[int]]) -> Path:
    for epoch, entries in epochs.items():
        for half in (entries[::2], entries):  # some twice
            notes = Rejections(folder, index, rank=len(half))
            mask = torch.zeros((len(index), index.num_classes), dtype=torch.bool)
            mask.view(-1)[half] = True
            notes.fresh.add(np.arange(len(index)), HostCopy.of(mask))
            notes.write(epoch, 3)
    return folder


def test_the_epochs_of_an_entry_are_those_that_rejected_it(tiny_digits: Path, tmp_path: Path) -> None:
    index = open_folder(tiny_digits).splits["train"]
    run = written(tmp_path, index, {1: [3, 70, 90], 2: [70, 90], 4: [5, 90]})
    assert history(run, index, np.array([90, 5, 8])) == {90: [1, 2, 4], 5: [4], 8: []}
    assert [times_rejected(epochs, 6, keeping=False) for epochs in ([1, 2, 4], [4], [])] == [3, 1, 0]
    assert [times_rejected(epochs, 6, keeping=True) for epochs in ([4], [5], [])] == [2, 1, 0]  # from then on


def test_an_audit_leaves_tables_pictures_and_a_page(trained: Run, audited: Path, evaluated_digits: Path) -> None:
    table = pq.read_table(audited / "candidates.parquet").to_pylist()
    assert [row["rank"] for row in table] == list(range(1, 13))
    assert any(row["times"] for row in table)
    assert [row["chance"] for row in table] == sorted((row["chance"] for row in table), reverse=True)
    index = open_folder(evaluated_digits).splits["train"]
    reader = Reader(open_folder(evaluated_digits).shards, index, ())
    for row in table:
        (number,) = index.rows_of(pa.chunked_array([[row["key"]]]))
        with Image.open(audited / "data" / row["picture"]) as picture:  # the picture as it is stored
            assert picture.size == (row["width"], row["height"])
            assert np.abs(np.asarray(picture, int) - reader.image(int(number))).mean() < 4
        assert row["outline"][:1] in ("", "M")
    assert {path.name for path in (audited / "data").iterdir()} == {row["picture"] for row in table}
    assert not re.search("https?:", (audited / "index.html").read_text())
    record = json.loads((audited / "audit.json").read_text())
    assert 0 < record["figures"]["chance"] < 0.1
    assert record["asked"] == {"data": "", "top": 12, "alpha": "", "class_share": 0.25, "classes": []}
    with (audited / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"key": row["key"], "class": row["class_id"], "answer": ""} for row in table]


def test_answers_outlive_an_audit_anew(
    trained: Run, audited: Path, evaluated_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(audited / "candidates.parquet").to_pylist()
    out = tmp_path / "audit"
    out.mkdir()
    given = [
        (row["key"], row["class_id"], said) for row, said in zip(table[4:8], ("Yes", "no", "1", "skip"), strict=True)
    ]
    answer(out / "answers.csv", given)
    assert main([str(trained[0]), "--top", "6", "--out", str(out)]) == 0
    assert "answers.csv: keeps the 4 answers that it had" in capsys.readouterr().err
    kept = dict(zip([line[:2] for line in given], ("yes", "no", "yes", "unsure"), strict=True))
    assert read_given(out / "answers.csv") == kept  # those that are not in this list too
    listed = [(row["key"], row["class_id"]) for row in pq.read_table(out / "candidates.parquet").to_pylist()]
    assert 0 < len(set(listed) & set(kept)) < 4
    shown = [[number, kept[entry]] for number, entry in enumerate(listed) if entry in kept]
    assert f'"given":{json.dumps(shown, separators=(",", ":"))}' in (out / "index.html").read_text()
    index = open_folder(evaluated_digits).splits["train"]
    observed = open_folder(evaluated_digits).vocabulary.class_ids[int(index.classes("positives", 0)[0])]
    for lines, said in (
        ([(index.keys(np.array([0]))[0], observed, "no")], "observed already.*give another --out, or move the file"),
        ([("nobody", "red_1", "yes")], "not in the training split.*give another --out, or move the file"),
        ([(*given[0][:2], "maybe")], "answer 'maybe'; give yes, no, or nothing"),
    ):
        before = answer(out / "answers.csv", lines).read_bytes()
        with pytest.raises(ValueError, match=said):
            main([str(trained[0]), "--top", "6", "--out", str(out)])
        assert (out / "answers.csv").read_bytes() == before
    (out / "answers.csv").write_text("key,class,answer,note\na,b,yes,mine\n")
    with pytest.raises(ValueError, match="has a column of its own, 'note'"):
        main([str(trained[0]), "--top", "6", "--out", str(out)])


def test_the_place_is_where_the_map_is_large() -> None:
    cam = np.zeros((4, 4), np.float32)
    cam[1, 2], cam[2, 2] = 2.0, 1.2
    assert place(cam, 64, 80) == (40, 16, 60, 48)
    assert place(-np.ones((4, 4), np.float32), 64, 80) == (0, 0, 80, 64)


# --- Answers ---------------------------------------------------------------------------------------------------------


def answer(path: Path, lines: list[tuple[str, str, str]]) -> Path:
    path.write_text("key,class,answer\n" + "".join(f"{key},{name},{said}\n" for key, name, said in lines))
    return path


def test_commands_that_are_printed_can_be_pasted(
    trained: Run, evaluated_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = tmp_path / "it's a run", tmp_path / "my data"
    run.symlink_to(trained[0])
    data.symlink_to(evaluated_digits)
    out = tmp_path / "a; b"
    assert main([str(run), "--top", "2", "--data", str(data), "--out", str(out)]) == 0
    shown = html.unescape((out / "index.html").read_text()).split("Then <code>")[1].split("</code>")[0]
    given = ["--apply", "answers.csv", "--out", "NEW_DATA", "--data", str(data)]
    assert shlex.split(shown) == ["python", "-m", "raypaml.audit", str(run), *given]
    assert Audited(out, None).data == str(data)
    capsys.readouterr()
    assert main([str(run), "--apply", str(out / "answers.csv"), "--out", str(tmp_path / "b c")]) == 0
    (following,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("next: "))
    flags = ["--data", str(tmp_path / "b c"), "--config", str(run / "config.json")]
    assert shlex.split(following)[1:] == ["python", "-m", "raypaml.train", *flags]


def test_nothing_is_listed_where_every_label_is_observed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: Run, evaluated_digits: Path
) -> None:
    data = open_folder(evaluated_digits)
    index, ids = data.splits["train"], data.vocabulary.class_ids
    keys, open_cells = index.keys(rows := np.arange(len(index))), np.argwhere(index.labels(rows) == UNOBSERVED)
    lines = [(keys[row], ids[k], "no") for row, k in open_cells]
    full = tmp_path / "full"
    assert main([str(trained[0]), "--apply", str(answer(tmp_path / "a.csv", lines)), "--out", str(full)]) == 0
    assert main([str(trained[0]), "--data", str(full), "--out", str(tmp_path / "audit")]) == 0
    said = capsys.readouterr().err
    assert "every label of the training images is observed, so that none can be missing: the list is empty" in said
    assert "time left" not in said
    assert read_given(tmp_path / "audit" / "answers.csv") == {}


def test_answers_become_labels_of_a_new_version(
    trained: Run, audited: Path, evaluated_digits: Path, tmp_path: Path
) -> None:
    table = pq.read_table(audited / "candidates.parquet").to_pylist()
    said = ["yes", "no", "unsure", *["yes"] * 9]
    lines = [(row["key"], row["class_id"], text) for row, text in zip(table, said, strict=True)]
    out = tmp_path / "new"
    before = {path.name: path.read_bytes() for path in evaluated_digits.iterdir() if path.suffix != ".tar"}
    given = answer(tmp_path / "a`\n# b.csv", lines)
    assert main([str(trained[0]), "--apply", str(given), "--out", str(out)]) == 0
    assert {p.name: p.read_bytes() for p in evaluated_digits.iterdir() if p.suffix != ".tar"} == before
    old, new = open_folder(evaluated_digits), open_folder(out)
    rows = np.arange(len(old.splits["train"]))
    labels, changed = old.splits["train"].labels(rows), new.splits["train"].labels(rows)
    expected = labels.copy()
    for (key, name, text), _ in zip(lines, table, strict=True):
        row = old.splits["train"].rows_of(pa.chunked_array([[key]]))[0]
        if text != "unsure":
            expected[row, old.vocabulary.index_of[name]] = POSITIVE if text == "yes" else 0
    np.testing.assert_array_equal(changed, expected)
    assert (changed != labels).sum() == 11
    np.testing.assert_array_equal(new.splits["train"].truth(rows), old.splits["train"].truth(rows))
    assert new.vocabulary.train_positives.sum() == old.vocabulary.train_positives.sum() + 10
    assert new.vocabulary.digest == old.vocabulary.digest
    card = json.loads((out / "data_card.json").read_text())
    assert {name: card["answers"][0][name] for name in ("positive", "negative", "undecided")} == {
        "positive": 10,
        "negative": 1,
        "undecided": 1,
    }
    told = (out / "data_card.md").read_text()
    assert "From a\\` # b.csv: 10 entries of the training split became positive" in told
    assert train_here(0, 1, config(epochs=1), out, tmp_path / "run", None)
    with pytest.raises(ValueError, match="new: exists already"):
        main([str(trained[0]), "--apply", str(given), "--out", str(out)])


def test_of_two_that_write_one_folder_the_first_to_end_stays_whole(
    evaluated_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_folder(evaluated_digits)
    index, out, write_card = data.splits["train"], tmp_path / "new", answers._write_card
    row, column = np.argwhere(index.labels(np.arange(len(index))) == UNOBSERVED)[0]
    (key,), name = index.keys(np.array([row])), data.vocabulary.class_ids[column]
    given = {
        said: answers.read_answers(answer(tmp_path / f"{said}.csv", [(key, name, said)]), index, data.vocabulary)
        for said in ("yes", "no")
    }

    def begin_the_second(*written: Any) -> None:
        write_card(*written)
        monkeypatch.setattr(answers, "_write_card", write_card)
        answers.apply_answers(data, given["no"], out, tmp_path / "no.csv")

    monkeypatch.setattr(answers, "_write_card", begin_the_second)
    with pytest.raises(ValueError, match="new: exists already"):
        answers.apply_answers(data, given["yes"], out, tmp_path / "yes.csv")
    assert open_folder(out).splits["train"].labels(np.array([row]))[0, column] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "no.csv", "yes.csv"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([("nobody", "red_1", "yes")], r"samples that are not in the training split: .*such as \['nobody'\]"),
        ([("KEY", "purple_77", "yes")], r"a.csv:2: class 'purple_77' is not in the vocabulary"),
        ([("KEY", "CLASS", "maybe")], r"a.csv:2: answer 'maybe'; give yes, no, or nothing"),
        ([("KEY", "CLASS", "yes"), ("KEY", "CLASS", "no")], r"a.csv:3: .* was answered the other way"),
        ([("KEY", "CLASS", "\n"), ("KEY", "CLASS", "maybe")], r"a.csv:4: answer 'maybe'"),  # after a blank line
        ([("KEY", "OBSERVED", "no")], r"1 answers for entries that are observed already, such as of"),
    ],
)
def test_answers_that_cannot_be_are_refused(
    lines: list[tuple[str, str, str]], said: str, trained: Run, audited: Path, evaluated_digits: Path, tmp_path: Path
) -> None:
    row = pq.read_table(audited / "candidates.parquet").to_pylist()[0]
    data = open_folder(evaluated_digits)
    index = data.splits["train"]
    (number,) = index.rows_of(pa.chunked_array([[row["key"]]]))
    observed = data.vocabulary.class_ids[int(index.classes("positives", int(number))[0])]
    names = {"KEY": row["key"], "CLASS": row["class_id"], "OBSERVED": observed}
    given = answer(tmp_path / "a.csv", [tuple(names.get(text, text) for text in line) for line in lines])  # type: ignore
    with pytest.raises(ValueError, match=said):
        main([str(trained[0]), "--apply", str(given), "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_other_files_and_runs_are_refused(trained: Run, tiny_digits: Path, tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00junk")
    (tmp_path / "c.csv").write_text("image,label\n")
    (tmp_path / "d.csv").write_text("key,class,key,answer\na,b,c,yes\n")
    for name, said in (
        ("b.csv", "not a CSV file"),
        ("c.csv", "expected at least key, class, answer"),
        ("d.csv", "the column key is there twice; leave one of them out"),
        ("d", "no such"),
    ):
        with pytest.raises(ValueError, match=said):
            main([str(trained[0]), "--apply", str(tmp_path / name), "--out", str(tmp_path / "new")])
    with pytest.raises(ValueError, match="--apply needs --out DIR"):
        main([str(trained[0]), "--apply", str(tmp_path / "c.csv")])
    with pytest.raises(ValueError, match="top=0"):
        main([str(trained[0]), "--top", "0"])
    index = open_folder(tiny_digits).splits["train"]
    run = written(tmp_path / "other", index, {1: [3]})
    (path,) = list((run / "rejected").glob("*-2.parquet")) or list((run / "rejected").glob("*.parquet"))[:1]
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"samples": "7", "vocabulary": index.vocabulary_digest}), path)
    with pytest.raises(ValueError, match="rejections of another data set"):
        list(read_epochs(run, index))
