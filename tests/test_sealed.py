"""Sealed files: damage is told in one line before anything is decoded, whatever was damaged and wherever."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypaml import sealed
from raypaml.data.data_folder import open_folder
from raypaml.data.index import Index, open_index
from raypaml.evaluation.entries import spilled
from raypaml.evaluation.parts import open_set, read_vocabulary
from raypaml.sealed import SEAL, once_on_node
from raypaml.sealed_tables import map_arrow, write_arrow, write_parquet
from tests.fuzz.mutations import ANY
from tests.test_parts import rows, write_set

SAME = "same"


def _unsealed(path: Path) -> None:
    """Make an index one of an earlier version, without digest and without that of the whole vocabulary."""
    table = pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all()
    gone = (SEAL.encode(), b"vocabulary_content")
    table = table.replace_schema_metadata({k: v for k, v in table.schema.metadata.items() if k not in gone})
    path.unlink()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _of_folder(folder: Path) -> str:
    """A digest of everything that training and evaluation take from vocabulary and indexes."""
    data = open_folder(folder)
    known = [data.vocabulary.content_digest, data.vocabulary.class_group.tolist()]
    return _digest([*known, *(_of_index(index) for index in data.splits.values())])


def _of_index(index: Index) -> object:
    every = np.arange(len(index))
    numbers = (getattr(index, name) for name in ("shard", "offset", "size", "crc32"))
    labels = index.labels(every).tobytes().hex(), index.truth(every).tobytes().hex() if index.has_truth else ""
    boxes = [index.boxes(row) for row in range(len(index))]
    return [index.keys(every), *(each.tolist() for each in numbers), labels, boxes, index.shards, index.shard_sizes]


def _of_predictions(folder: Path) -> str:
    predictions = open_set(folder)
    known = read_vocabulary(folder, predictions)
    with spilled(predictions) as found:
        entries = [(e.class_index.tolist(), e.image.tolist(), e.P.tolist(), e.N.tolist()) for e in found.buckets()]
        about = [predictions.split, predictions.alpha, predictions.samples, predictions.skipped, found.keys.to_pylist()]
    return _digest([known.content_digest, about, entries])


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _damaged(content: bytes, seed: int, other: bytes) -> tuple[str, bytes]:
    """The kind of the damage that belongs to a seed, and the damaged content; `other` is another file of its kind."""
    kind = seed % (len(ANY) + 1)
    if kind == len(ANY):
        return "halves of two files", content[: len(content) // 2] + other[len(other) // 2 :]
    return ANY[kind].__name__, ANY[kind](content, Random(seed))


def _outcomes(path: Path, other: bytes, seeds: range, read: Callable[[], str], log: Path) -> list[dict[str, str]]:
    """What `read` makes of a file with the damage of each seed; a child process reads, which may die of it."""
    right, content = read(), path.read_bytes()
    child = os.fork()
    if not child:
        with log.open("w") as file:
            for seed in seeds:
                kind, bad = _damaged(content, seed, other)
                path.write_bytes(bad)
                print(
                    json.dumps({"seed": str(seed), "kind": kind, "outcome": _outcome(read, right)}),
                    file=file,
                    flush=True,
                )
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    path.write_bytes(content)
    found = [json.loads(line) for line in log.read_text().splitlines()]
    assert status == 0, f"died with {os.waitstatus_to_exitcode(status)} after {found[-1:]}"
    assert len(found) == len(seeds)
    return found


def _outcome(read: Callable[[], str], right: str) -> str:
    try:
        return SAME if read() == right else "another result"
    except ValueError as error:
        return "several lines" if "\n" in str(error) or type(error) is not ValueError else f"refused: {error}"
    except BaseException as error:
        return f"traceback: {type(error).__name__}: {error}"


def _check(found: list[dict[str, str]], *, changed: bool = False) -> None:
    fine = (SAME, "refused", *(["another result"] if changed else []))
    wrong = [line for line in found if not line["outcome"].startswith(fine)]
    assert not wrong, f"{len(wrong)} of {len(found)}: {wrong[:5]}"


@pytest.fixture
def folder(tiny_digits: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_digits, tmp_path / "data"))


@pytest.mark.parametrize("name", ["train.arrow", "vocabulary.csv"])
def test_a_damaged_data_folder_is_refused_or_means_the_same(folder: Path, tmp_path: Path, name: str) -> None:
    other = (folder / "test.arrow").read_bytes() if name == "train.arrow" else b"class_id,name\n"
    found = _outcomes(folder / name, other, range(70), lambda: _of_folder(folder), tmp_path / "log")
    _check(found)
    assert sum(line["outcome"] == SAME for line in found) < len(found) // 4
    assert _of_folder(folder)


def test_a_damaged_index_of_an_earlier_version_never_ends_the_process(folder: Path, tmp_path: Path) -> None:
    """Its values may be others, because it has no digest, but they are such that nothing breaks."""
    for split in ("train", "validation", "test"):
        _unsealed(folder / f"{split}.arrow")
    other = (folder / "test.arrow").read_bytes()
    found = _outcomes(folder / "train.arrow", other, range(100), lambda: _of_folder(folder), tmp_path / "log")
    _check(found, changed=True)


@pytest.mark.parametrize("name", ["part-00001-of-00003.parquet", "vocabulary.csv"])
def test_damaged_predictions_are_refused_or_mean_the_same(tmp_path: Path, name: str) -> None:
    written = write_set(tmp_path / "set", rows(), [0, 1, 2])
    other = (written / "part-00002-of-00003.parquet").read_bytes()
    found = _outcomes(written / name, other, range(70), lambda: _of_predictions(written), tmp_path / "log")
    _check(found)


def test_other_programs_read_sealed_files(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2]}, metadata={"mine": "kept"})
    write_arrow(tmp_path / "t.arrow", table)
    write_parquet(tmp_path / "t.parquet", table)
    for read in (pa.ipc.open_file(tmp_path / "t.arrow").read_all(), pq.read_table(tmp_path / "t.parquet")):
        assert read.equals(table)
        assert read.schema.metadata[b"mine"] == b"kept"
    assert map_arrow(tmp_path / "t.arrow", "").equals(table)


@pytest.mark.parametrize("write", [write_arrow, write_parquet])
def test_a_value_that_looks_like_a_digest_is_not_overwritten(tmp_path: Path, write: Callable[..., None]) -> None:
    key = "raypaml-sha256:" + "7" * 70
    with pytest.raises(ValueError, match="its values hold 'raypaml-sha256:', the mark of a digest"):
        write(tmp_path / "table", pa.table({"key": [key]}))
    assert not list(tmp_path.iterdir())


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_arrow(tmp_path / name, pa.table({"a": [1, 2]}))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("column", [1, 2, 3])
def test_other_names_or_counts_of_classes_are_refused(folder: Path, column: int) -> None:
    path = folder / "vocabulary.csv"
    lines = path.read_text().splitlines()
    cells = lines[3].split(",")
    cells[column] += "1"
    path.write_text("\n".join([*lines[:3], ",".join(cells), *lines[4:]]))
    with pytest.raises(ValueError, match=r"vocabulary\.csv: names of classes or counts .* with which train\.arrow was"):
        open_folder(folder)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a,b,-1,2", "counts -1 and 2 of training labels, expected 0"),
        ("a,b,99999999999999999999,2", "counts 99999999999999999999 and 2"),
        ("a,b,one,2", "invalid literal"),
        ("a", "expected class_id,name"),
    ],
)
def test_impossible_counts_are_refused_with_their_line(folder: Path, row: str, said: str) -> None:
    path = folder / "vocabulary.csv"
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(ValueError, match=rf"vocabulary\.csv:52: .*{said}"):
        open_folder(folder)


def test_a_vocabulary_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "vocabulary.csv").write_bytes(b"class_id,name,train_positives,train_negatives\n\xff,a,1,1\n")
    with pytest.raises(ValueError, match=r"vocabulary\.csv: not a CSV file"):
        open_folder(folder)


def test_an_index_of_an_earlier_version_opens_with_a_word(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _of_folder(folder)
    assert capsys.readouterr().err == ""
    for split in ("train", "validation", "test"):
        _unsealed(folder / f"{split}.arrow")
        os.utime(folder / f"{split}.arrow", (1, 1))
    time.sleep(sealed._SETTLED_SECONDS)
    assert _of_folder(folder) == before
    said = capsys.readouterr().err
    assert said.count("an index of an earlier version, without a digest") == 3
    assert _of_folder(folder) == before
    assert capsys.readouterr().err == ""  # once


@pytest.fixture
def settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is large enough for a mark, and counts as written long ago."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sealed, "_SETTLED_SECONDS", -1.0)
    monkeypatch.setattr(sealed, "_SMALL", 0)
    monkeypatch.setattr(sealed, "_checked", set())
    (tmp_path / "file").write_bytes(b"x" * 1000)
    return tmp_path / "file"


def _checks(path: Path, kind: str = "kind", fault: str = "") -> int:
    """How often a file is checked when it is opened, in a process that knows nothing of it."""
    calls = []

    def check() -> None:
        calls.append(1)
        if fault:
            raise ValueError(fault)

    with path.open("rb") as file:
        once_on_node(file.fileno(), kind, check)
    return len(calls)


def test_a_file_is_checked_once_on_a_node_until_it_changes(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [_checks(settled), _checks(settled)] == [1, 0]
    sealed._checked.clear()  # another process
    assert [_checks(settled), _checks(settled, "stricter")] == [0, 1]
    stat = settled.stat()
    settled.write_bytes(b"y" * 1000)
    os.utime(settled, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size and modification time are as before
    assert _checks(settled) == 1
    monkeypatch.setattr(sealed, "_boot", lambda: "another machine with the same cache")
    sealed._checked.clear()
    assert _checks(settled) == 1


def test_a_damaged_file_is_checked_again_each_time(settled: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            _checks(settled, fault="broken")
    assert _checks(settled) == 1


def test_a_file_that_has_just_changed_is_not_taken_for_checked(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "_SETTLED_SECONDS", 100.0)
    assert [_checks(settled), _checks(settled)] == [1, 1]


def test_without_a_cache_each_process_checks(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert [_checks(settled), _checks(settled)] == [1, 0]
    sealed._checked.clear()
    assert _checks(settled) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_mark_of_another_user_is_not_believed(settled: Path) -> None:
    assert _checks(settled) == 1
    for path in (settled.parent / "cache" / "raypaml" / "checked").iterdir():
        os.chown(path, 65534, 65534)
    sealed._checked.clear()
    assert _checks(settled) == 1


def test_processes_that_come_together_check_once(settled: Path) -> None:
    code = (
        "import os, sys, time; from raypaml import sealed; sealed._SETTLED_SECONDS = -1; sealed._SMALL = 0\n"
        "file = os.open(sys.argv[1], os.O_RDONLY)\n"
        "sealed.once_on_node(file, 'kind', lambda: (print('checked'), time.sleep(0.5)))"
    )
    run = [subprocess.Popen([sys.executable, "-c", code, settled], stdout=subprocess.PIPE) for _ in range(2)]
    assert sorted(process.communicate()[0] for process in run) == [b"", b"checked\n"]


def test_an_index_is_mapped_again_in_another_process_through_the_same_door(folder: Path) -> None:
    index = open_index(folder / "train.arrow")
    function, arguments = index.__reduce__()
    path = folder / "train.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged: its bytes"):
        function(*arguments)
