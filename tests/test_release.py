"""Reading an Open Images release: every planted oddity counted exactly, in every form in which the files are found."""

from __future__ import annotations

import csv
import shutil
import tarfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from raypaml.preparation.label_join import ConflictRule
from raypaml.preparation.openimages import release as release_module
from raypaml.preparation.openimages.release_labels import read_classes, read_split
from raypaml.preparation.requests import SplitLabels
from tests.openimages_release import ODD, THRESHOLD, TRAINABLE, Planted, Release

SPLITS = ("train", "validation", "test")
ARCHIVES = {
    "images_2017_11.tar.gz": ("images.csv",),
    "annotations_human_2017_11.tar.gz": ("annotations-human.csv",),
    "annotations_machine_2017_11.tar.gz": ("annotations-machine.csv",),
    "annotations_human_bbox_2017_11.tar.gz": (),
    "classes_2017_11.tar.gz": ("classes-trainable.txt", "class-descriptions.csv"),
}


def read(metadata: Path, split: str, **options: object) -> SplitLabels:
    return read_split(metadata, split, read_classes(metadata), **options)  # type: ignore[arg-type]


def as_labels(found: SplitLabels) -> dict[str, dict[str, bool]]:
    """Image -> class -> positive."""
    return {
        row["key"]: {TRAINABLE[k]: name == "positives" for name in ("positives", "negatives") for k in row[name]}
        for row in found.table.to_pylist()
    }


def check(found: SplitLabels, planted: Planted) -> None:
    """Labels, fates and counts are those that were planted, all of them and no other."""
    assert as_labels(found) == planted.labels
    assert set(found.others["no_label_in_vocabulary"].to_pylist()) == planted.outside
    assert set(found.others["no_label"].to_pylist()) == planted.unlabelled
    expected = {name: count for name, count in planted.doctor.items() if not name.startswith("machine")}
    assert {name: count for name, count in found.findings.counts.items() if count} == expected


@pytest.fixture
def metadata(release: Release, tmp_path: Path) -> Path:
    """A copy to damage: the folder 2017_11."""
    return Path(shutil.copytree(release.metadata / "2017_11", tmp_path / "2017_11"))


# --- The same counts from every form of the files ---------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_found_is_what_was_planted(split: str, release: Release) -> None:
    found = read(release.metadata, split)
    check(found, release.splits[split])
    assert found.table["key"].to_pylist() == sorted(release.splits[split].labels)


def test_verified_counts_are_per_class(release: Release) -> None:
    found, expected = read(release.metadata, "train").verified, release.splits["train"].labels.values()
    for column, label in enumerate(TRAINABLE):
        assert found["positives"][column] == sum(labels.get(label) is True for labels in expected)
        assert found["negatives"][column] == sum(labels.get(label) is False for labels in expected)


def test_examples_are_named(release: Release) -> None:
    findings = read(release.metadata, "train").findings.to_dict()
    assert set(findings["confidences other than 0 or 1"]["examples"]) < {"0.7", "", "x", "nan", "2", "-1"}
    assert "ffffffffffffffff" in findings["labels of images not listed"]["examples"]
    assert all(example.split()[1] == ODD for example in findings["conflicting labels"]["examples"])
    assert len(findings["label rows with an id of another shape"]["examples"]) == 5


def test_the_folder_itself_or_the_one_above(release: Release) -> None:
    check(read(release.metadata / "2017_11", "test"), release.splits["test"])


def test_archives_as_downloaded(release: Release, tmp_path: Path) -> None:
    for archive, names in ARCHIVES.items():
        with tarfile.open(tmp_path / archive, "w:gz") as tar:
            for name in names:
                for path in sorted(release.metadata.rglob(name), reverse=True):
                    tar.add(path, path.relative_to(release.metadata))
    check(read(tmp_path, "train"), release.splits["train"])
    check(read(tmp_path, "test"), release.splits["test"])
    assert "machine labels added" in read(tmp_path, "train", machine_threshold=0.5).findings.counts


def later(metadata: Path, to: Path) -> None:
    """The files as V4 to V7 name them, with a header over the descriptions."""
    to.mkdir()
    for split in SPLITS:
        shutil.copy(metadata / split / "annotations-human.csv", to / f"oidv6-{split}-annotations-human-imagelabels.csv")
        shutil.copy(metadata / split / "images.csv", to / f"{split}-images-boxable.csv")
    shutil.copy(metadata / "classes-trainable.txt", to / "oidv6-classes-trainable.txt")
    text = (metadata / "class-descriptions.csv").read_bytes()
    (to / "oidv6-class-descriptions.csv").write_bytes(b"LabelName,DisplayName\r\n" + text)


def test_names_and_header_rows_of_later_versions(metadata: Path, release: Release, tmp_path: Path) -> None:
    later(metadata, tmp_path / "v6")
    check(read(tmp_path / "v6", "validation"), release.splits["validation"])
    assert "LabelName" not in read_classes(tmp_path / "v6").known


def test_crlf_and_byte_order_marks(metadata: Path, release: Release) -> None:
    for path in metadata.rglob("*.*"):
        content = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + content)
    check(read(metadata, "validation"), release.splits["validation"])


@pytest.mark.parametrize("block", [1500, 20_000])
def test_counts_do_not_depend_on_the_blocks(block: int, release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_module, "BLOCK_BYTES", block)
    check(read(release.metadata, "validation"), release.splits["validation"])


# --- Classes, conflicts, machine labels -------------------------------------------------------------------------------


def test_classes_keep_their_order_and_names(release: Release, tmp_path: Path) -> None:
    classes = read_classes(release.metadata)
    assert classes.class_ids == TRAINABLE
    names = dict(zip(classes.class_ids, classes.names, strict=True))
    assert names["/m/02wvth"] == 'Fiat 500 "topolino"'
    assert names["/m/01c_0l"] == "Ducks, geese and swans"
    assert names["/m/0132x9"] == "Kakigōri"
    chosen = tmp_path / "mine.txt"
    chosen.write_text("/m/0bt9lr\r\n/g/1103q,Other\n\n/m/01g317\n")
    assert read_classes(release.metadata, chosen).class_ids == ("/m/0bt9lr", "/g/1103q", "/m/01g317")


def test_an_unknown_class_is_answered_with_the_nearest(release: Release, tmp_path: Path) -> None:
    chosen = tmp_path / "mine.txt"
    chosen.write_text("/m/0bt9lr\n/m/01g318\n")
    with pytest.raises(ValueError, match=r"mine\.txt: 1 classes .*'/m/01g318'.*did you mean '/m/01g317'\?"):
        read_classes(release.metadata, chosen)


def divided(release: Release, split: str) -> set[tuple[str, str]]:
    """(image, class) verified both ways."""
    values = defaultdict(set)
    for key, _, label, confidence in release.splits[split].rows:
        if confidence in ("0", "1", "0.0", "1.0"):
            values[key, label].add(float(confidence))
    return {cell for cell, found in values.items() if len(found) > 1}


@pytest.mark.parametrize(("rule", "value"), [("positive", True), ("negative", False), ("drop", None)])
def test_other_rules_for_conflicts(rule: ConflictRule, value: bool | None, release: Release) -> None:
    found = as_labels(read(release.metadata, "test", conflicts=rule))
    both = divided(release, "test")
    assert len(both) == release.splits["test"].doctor["conflicting labels"] == 12
    assert {found[key].get(label) for key, label in both} == {value}


def test_machine_labels_only_add(release: Release) -> None:
    planted = release.splits["train"]
    found = read(release.metadata, "train", machine_threshold=THRESHOLD)
    expected = {key: dict(labels) for key, labels in planted.labels.items()}
    for key, classes in planted.machine.items():
        expected.setdefault(key, {}).update(dict.fromkeys(classes, True))
    assert as_labels(found) == expected
    assert {name: count for name, count in found.findings.counts.items() if count} == planted.doctor
    assert set(found.others["no_label_in_vocabulary"].to_pylist()) == planted.outside - planted.machine.keys()
    assert set(found.others["no_label"].to_pylist()) == planted.unlabelled - planted.machine.keys()
    verified = read(release.metadata, "train").verified
    assert all((found.verified[name] == verified[name]).all() for name in verified)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_machine_labels_never_enter_evaluation(split: str, release: Release) -> None:
    with pytest.raises(ValueError, match="they are for train only, because evaluation uses verified labels"):
        read(release.metadata, split, machine_threshold=THRESHOLD)


# --- Bad input --------------------------------------------------------------------------------------------------------


def with_line(number: int, line: bytes) -> Callable[[bytes], bytes]:
    def insert(content: bytes) -> bytes:
        lines = content.split(b"\n")
        return b"\n".join([*lines[: number - 1], line, *lines[number - 1 :]])

    return insert


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("annotations-human.csv", with_line(7, b"0123,x"), r"annotations-human\.csv: line 7: 2 columns instead of 4"),
        ("annotations-human.csv", with_line(300, b"a,b,c,1,9"), r"line 300: 5 columns instead of 4: 'a,b,c,1,9'"),
        ("annotations-human.csv", with_line(9, b"a,\xff,c,1"), r"annotations-human\.csv: line 9: not UTF-8"),
        ("annotations-human.csv", with_line(1, b"Image,Label"), r"human\.csv:1: no column ImageID, LabelName, Confid"),
        ("annotations-human.csv", lambda _: b"", r"annotations-human\.csv:1: empty; download it again"),
        ("images.csv", with_line(30, b"0123456789abcdef,test"), r"images\.csv: row 29: 2 columns instead of 11"),
        ("images.csv", lambda _: b"<html>404</html>", r"images\.csv:1: no column ImageID; the header is '<html>404"),
        (
            "../classes-trainable.txt",
            lambda _: b"\n",
            r"trainable\.txt: no class ids in it; list one a line, such as /m/01g3",
        ),
        ("../classes-trainable.txt", lambda _: b"/m/1\n/m/1\n", r"trainable\.txt: class ids given twice: \['/m/1'\]"),
        ("../class-descriptions.csv", with_line(5, b"/m/1,\xe9"), r"descriptions\.csv: line 5: not UTF-8"),
    ],
)
def test_damaged_text_is_named_by_file_and_line(
    name: str, damage: Callable[[bytes], bytes], message: str, metadata: Path
) -> None:
    path = metadata / "test" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        read(metadata, "test")


@pytest.mark.parametrize("name", ["images.csv", "annotations-human.csv", "../class-descriptions.csv"])
def test_a_missing_file_is_named_in_all_its_forms(name: str, metadata: Path) -> None:
    (metadata / "train" / name).unlink()
    with pytest.raises(ValueError, match=rf"2017_11: no .*{Path(name).name}, nor \*.*csv, nor an archive .*tar\.gz"):
        read(metadata, "train")


def test_two_candidates_are_not_chosen_from(metadata: Path, tmp_path: Path) -> None:
    later(metadata, tmp_path / "v6")
    boxable = tmp_path / "v6" / "oidv6-train-annotations-human-imagelabels-boxable.csv"
    shutil.copy(metadata / "train" / "annotations-human.csv", boxable)
    with pytest.raises(ValueError, match=r"imagelabels-boxable\.csv and .*imagelabels\.csv could each be the human"):
        read(tmp_path / "v6", "train")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_truncated_archive_is_named(share: float, release: Release, metadata: Path) -> None:
    archive = metadata / "annotations_human_2017_11.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for split in SPLITS:
            tar.add(metadata / split / "annotations-human.csv", f"2017_11/{split}/annotations-human.csv")
            (metadata / split / "annotations-human.csv").unlink()
    check(read(metadata, "train"), release.splits["train"])
    archive.write_bytes(archive.read_bytes()[: int(share * archive.stat().st_size)])
    with pytest.raises(ValueError, match=r"annotations_human_2017_11\.tar\.gz\S*: damaged or truncated archive"):
        read(metadata, "train")


def test_csv_can_be_read_by_others(release: Release) -> None:
    """The generator writes what the standard library reads, so the form under test is CSV's own."""
    with (release.metadata / "2017_11" / "train" / "images.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert {len(row) for row in rows} == {11}
    assert any("\n" in row[7] and '"' in row[7] for row in rows)
