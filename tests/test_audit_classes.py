"""`raypaml audit --classes`: the list of some classes is that of all classes without the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raypaml.api.audited import Audited
from raypaml.audit import main
from raypaml.auditing import entry_scores
from raypaml.auditing.audit_folder import read_audit_record
from raypaml.auditing.audit_run import AuditRequest
from raypaml.auditing.candidates import Likeliest, find_likeliest
from raypaml.data.data_folder import open_folder
from raypaml.explain import main as explain
from raypaml.labels import UNOBSERVED, Vocabulary, class_words
from raypaml.mapper import Processes, in_this_process
from tests.test_audit_ranking import audited_model, listed

Run = tuple[Path, str]
EVERYTHING = 96 * 50
GROUP_OF = (1, 1, 2, 2, 3, 3, 4, 4, 5, 5)


def vocabulary(**names: str) -> Vocabulary:
    """Ten classes c0 to c9, two of each group, the rarest first; `names` gives some of them other names."""
    ids = tuple(f"c{k}" for k in range(10))
    return Vocabulary(
        class_ids=ids,
        names=tuple(names.get(one, f"class {one}") for one in ids),
        train_positives=np.arange(10),
        train_negatives=np.zeros(10, np.int64),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("red 1", ["red 1"]),
        ("red 1,G2", ["red 1", "G2"]),
        ("red 1, G2", ["red 1", "G2"]),
        ('"Cat, domestic",dog', ["Cat, domestic", "dog"]),
        ('a, "b, c"', ["a", "b, c"]),
        ('6" pipe', ['6" pipe']),
    ],
)
def test_words_stand_between_commas(text: str, words: list[str]) -> None:
    assert class_words(text) == words


@pytest.mark.parametrize("text", ['"cat', '"cat"s,dog', "a\nb"])
def test_words_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"classes=.*: the list cannot be read: .*; give a name that holds a comma as"):
        class_words(text)


def test_a_word_is_an_id_a_name_or_a_group() -> None:
    plain = vocabulary(c3="cat", c8="cat", c5="c0")
    assert plain.class_group.tolist() == list(GROUP_OF)
    for words, columns in (
        ([], []),
        (["c7"], [7]),
        (["class c1"], [1]),
        (["cat"], [3, 8]),  # of every class with the name
        (["c0"], [0]),  # an id goes before a name
        (["G1"], [0, 1]),
        (["G5", "c9", "c2", "G1"], [0, 1, 2, 8, 9]),
    ):
        assert plain.columns_of(words).tolist() == columns
    assert vocabulary(c6="G1").columns_of(["G1", "G2"]).tolist() == [2, 3, 6]  # a name goes before a group
    for word, said in (
        ("class c11", r"classes='class c11': no such class; did you mean 'class c1'\?"),
        ("G6", r"classes='G6': no such class; give names or ids of vocabulary.csv, or G1 to G5"),
        ("", "classes='': no such class; give names"),
    ):
        with pytest.raises(ValueError, match=said):
            plain.columns_of(["c1", word])
    few = Vocabulary(class_ids=("a",), names=("a",), train_positives=np.ones(1), train_negatives=np.ones(1))
    assert [few.class_group.tolist(), few.columns_of(["G1"]).tolist()] == [[1], [0]]
    with pytest.raises(ValueError, match="classes='G2': no such class"):  # of which nothing could be listed
        few.columns_of(["G2"])


# --- On digits -------------------------------------------------------------------------------------------------------


def ranked(run: Path, data: Path, top: int, share: float, *words: str) -> Likeliest:
    folder = open_folder(data)
    only = folder.vocabulary.columns_of(words) if words else None
    model = audited_model(run, data)
    return find_likeliest(model, folder, 5.0, top, share, only, in_this_process, lambda _: None)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_list_of_some_classes_is_that_of_all_without_the_others(
    parts: int, trained: Run, evaluated_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry_scores, "PART_IMAGES", 96 // parts)
    vocabulary = open_folder(evaluated_digits).vocabulary
    every = ranked(trained[0], evaluated_digits, EVERYTHING, 1.0)
    rare = ["G1", vocabulary.names[3], vocabulary.class_ids[41]]
    for words in (rare, [vocabulary.class_ids[7]]):
        some = ranked(trained[0], evaluated_digits, EVERYTHING, 1.0, *words)
        mine = np.isin(every.entries % 50, columns := vocabulary.columns_of(words))
        assert some.columns.tolist() == columns.tolist()
        assert some.chances is not None
        assert every.chances is not None
        assert some.entries.tolist() == every.entries[mine].tolist()
        np.testing.assert_array_equal(some.scores, every.scores[mine])
        np.testing.assert_array_equal(some.chances, every.chances[mine])
        assert some.by_score.tolist() == every.by_score[np.isin(every.by_score % 50, columns)].tolist()
    first = ranked(trained[0], evaluated_digits, 30, 1.0, *rare)
    wanted = np.isin(every.entries % 50, vocabulary.columns_of(rare))
    assert first.entries.tolist() == every.entries[wanted][:30].tolist()
    quota = ranked(trained[0], evaluated_digits, 30, 0.1, *rare)  # of 12 classes at most 3 entries each
    assert np.bincount(quota.entries % 50).max() == 3
    assert len(ranked(trained[0], evaluated_digits, 30, 0.1, rare[-1]).entries) == 30  # where others have no entries


def test_figures_are_those_of_the_classes(trained: Run, evaluated_digits: Path, tmp_path: Path) -> None:
    data, out = open_folder(evaluated_digits), tmp_path / "audit"
    name = data.vocabulary.names[int(np.argmax(data.vocabulary.class_group == 5))]
    assert main([str(trained[0]), "--classes", f"G2, {name}", "--top", "100", "--out", str(out)]) == 0
    index, columns = data.splits["train"], data.vocabulary.columns_of(["G2", name])
    assert len(columns) == 11
    rows = np.arange(len(index))
    free = index.labels(rows)[:, columns] == UNOBSERVED
    truth = index.truth(rows)
    figures: Any = json.loads((out / "audit.json").read_text())["figures"]
    assert figures["chance"] == pytest.approx((truth[:, columns][free] == 1).mean())
    entries = listed(out, data)
    assert set(np.array(entries) % 50) <= set(columns.tolist())
    assert len(entries) == 100
    hits = [truth[entry // 50, entry % 50] == 1 for entry in entries]
    assert figures["precision"] == {"100": pytest.approx(np.mean(hits))}
    alone = ranked(trained[0], evaluated_digits, 100, 1.0, "G2", name).by_score
    scored = [truth[entry // 50, entry % 50] == 1 for entry in alone]
    assert figures["score_alone"] == {"100": pytest.approx(np.mean(scored))}
    page = (out / "index.html").read_text()
    assert f"Unobserved training labels (only <bdi>11 of 50 classes: G2, {name}</bdi>) that are likely missing" in page


def test_a_list_of_other_classes_is_another_request(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(**asked: Any) -> tuple[Audited, bool]:
        request = AuditRequest(top=5, out=tmp_path / "audit", **asked)
        found = Audited.made(trained[0], request, Processes(1), lines.append)
        return found, lines[-1].endswith("holds this list already; it is not made again")

    lines = list[str]()
    assert not made()[1]
    assert made()[1]
    path = tmp_path / "audit" / "audit.json"
    old = json.loads(path.read_text())
    del old["asked"]["classes"]  # as an earlier version wrote it
    path.write_text(json.dumps(old))
    assert made()[1]
    one, there = made(classes="red 1")
    assert not there
    assert "listing only 1 of 50 classes: red 1" in lines
    assert set(one.candidates["name"].to_pylist()) == {"red 1"}
    assert made(classes=["red 1"])[1]
    assert not made(classes=["red 1", "G3"])[1]
    assert made(classes=["G3", "red 1"])[1]  # in another order
    record = read_audit_record(tmp_path / "audit")
    assert record is not None
    assert record.asked["classes"] == ["G3", "red 1"]


def test_unknown_classes_are_refused_before_the_work(trained: Run, tmp_path: Path) -> None:
    for command in (main, explain):
        for words, said in (
            ("red 11", "classes='red 11': no such class; did you mean 'red 1'"),
            ("G1,G9", "classes='G9': no such class; give names or ids of vocabulary.csv, or G1 to G5"),
            ('"red 1', "classes='\"red 1': the list cannot be read"),
        ):
            with pytest.raises(ValueError, match=said):
                command([str(trained[0]), "--classes", words, "--out", str(tmp_path / "out")])
            assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="leave --classes out"):
        main([str(trained[0]), "--apply", "a.csv", "--out", "new", "--classes", "G1"])


def test_explain_shows_the_classes_of_a_group(trained: Run, tmp_path: Path) -> None:
    def page(*flags: str) -> str:
        out = tmp_path / "-".join(flags)
        assert explain([str(trained[0]), "--limit", "20", "--rows", "3", "--out", str(out), *flags]) == 0
        return (out / "explanations.html").read_text()

    assert page("--classes", "G5") == page("--group", "G5") != page("--classes", "G4") == page("--group", "G4")
