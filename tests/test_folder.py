"""A data folder is refused before anything starts if its parts do not belong together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raypaml.data.data_folder import open_folder, resolve_data
from raypaml.data.index import Index, open_index, write_index
from raypaml.data.index_table import SCHEMA
from raypaml.data.shards import SPLITS
from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED, Vocabulary


@pytest.fixture
def folder(tiny_digits: Path, tmp_path: Path) -> Path:
    """A good data folder to damage."""
    return Path(shutil.copytree(tiny_digits, tmp_path / "data"))


def _vocabulary(*class_ids: str) -> Vocabulary:
    zeros = np.zeros(len(class_ids), np.int64)
    return Vocabulary(class_ids=class_ids, names=class_ids, train_positives=zeros, train_negatives=zeros)


ABC = _vocabulary("a", "b", "c")


def _row(key: str, positives: Any = (), negatives: Any = (), truth: Any = None, boxes: Any = ()) -> dict[str, Any]:
    place = {"key": key, "shard": 0, "offset": 512, "size": 1, "crc32": 0}
    return place | {"positives": positives, "negatives": negatives, "truth": truth, "boxes": boxes}


def _write(path: Path, *rows: dict[str, Any], has_truth: bool = False) -> None:
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    write_index(path, table, shards=["t.tar"], shard_bytes=[1024], vocabulary=ABC, has_truth=has_truth)


def _index(path: Path, *rows: dict[str, Any], has_truth: bool = False) -> Index:
    _write(path, *rows, has_truth=has_truth)
    return open_index(path)


def _folder_of(path: Path, *rows: dict[str, Any], has_truth: bool = False) -> Path:
    """A folder of one shard of zeros, whose index holds these rows for every split."""
    ABC.write(path / "vocabulary.csv")
    (path / "t.tar").write_bytes(bytes(1024))
    for split in SPLITS:
        _write(path / f"{split}.arrow", *rows, has_truth=has_truth)
    return path


# --- The good case ------------------------------------------------------------------------------------------------


def test_a_good_folder_opens(tiny_digits: Path) -> None:
    data = open_folder(tiny_digits)
    assert {split: len(index) for split, index in data.splits.items()} == {"train": 96, "validation": 40, "test": 40}
    assert {index.vocabulary_digest for index in data.splits.values()} == {data.vocabulary.digest}
    assert all(index.num_classes == len(data.vocabulary) == 50 for index in data.splits.values())
    assert data.path == tiny_digits


def test_data_names_a_path_or_the_embedded_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(
        "raypaml.data.data_folder.digits_folder", lambda *key, **_: asked.append(key) or Path("/cached")
    )
    assert resolve_data("some/where") == Path("some/where")
    for data in ("digits", "digits:verified", "digits:verified:7"):
        assert resolve_data(data) == Path("/cached")
    assert asked == [("single_positive", 0), ("verified", 0), ("verified", 7)]


@pytest.mark.parametrize("data", ["digits:bad", "digits:", "digits:verified:x", "digits:verified:-1", "digits:a:1:2"])
def test_bad_digits_are_refused(data: str) -> None:
    expected = rf"data='{data}': expected digits\[:HIDING\[:SEED\]\] with HIDING one of single_positive, verified"
    with pytest.raises(ValueError, match=expected):
        resolve_data(data)


# --- What is refused ----------------------------------------------------------------------------------------------


def test_an_empty_text_is_not_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=r"data='': must not be empty; give a folder, such as data=\."):
        resolve_data("")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data=.*/nowhere: no such folder; shard a data set into it"):
        open_folder(tmp_path / "nowhere")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"data={tmp_path}: empty folder; shard a data set into it"):
        open_folder(tmp_path)


def test_shards_without_an_index_are_refused(folder: Path) -> None:
    for path in folder.glob("*.arrow"):
        path.unlink()
    with pytest.raises(ValueError, match=r"shards without an index; write it with python -m raypaml\.shard index DIR"):
        open_folder(folder)


def test_a_missing_split_is_refused(folder: Path) -> None:
    (folder / "validation.arrow").unlink()
    with pytest.raises(ValueError, match=r"validation\.arrow: no index of split 'validation'; training needs train"):
        open_folder(folder)


def test_a_missing_vocabulary_is_refused(folder: Path) -> None:
    (folder / "vocabulary.csv").unlink()
    with pytest.raises(ValueError, match=r"vocabulary\.csv: no such vocabulary"):
        open_folder(folder)


def test_a_vocabulary_in_another_order_is_refused_with_both_digests(folder: Path) -> None:
    right = Vocabulary.read(folder / "vocabulary.csv")
    wrong = _vocabulary(*reversed(right.class_ids))
    wrong.write(folder / "vocabulary.csv")
    said = rf"50 classes, digest {right.digest[:12]}\) than .*vocabulary\.csv \(50 classes, digest {wrong.digest[:12]}"
    with pytest.raises(ValueError, match=said):
        open_folder(folder)


def test_a_missing_shard_is_refused(folder: Path) -> None:
    (folder / "test-000000.tar").unlink()
    with pytest.raises(ValueError, match=r"test-000000\.tar: missing, the index says [\d,]+ bytes"):
        open_folder(folder)


def test_a_shard_of_another_size_is_refused_with_both_sizes(folder: Path) -> None:
    shard = folder / "train-000000.tar"
    size = shard.stat().st_size
    with shard.open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(ValueError, match=rf"train-000000\.tar: {size + 512:,} bytes, the index says {size:,} bytes"):
        open_folder(folder)


def test_an_index_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.arrow: no samples in split 'train'"):
        open_folder(_folder_of(tmp_path))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"positives": [3]}, "positives, row 1: 3"),
        ({"negatives": [-1]}, "negatives, row 1: -1"),
        ({"truth": [9]}, "truth, row 1: 9"),
        ({"positives": [0, 1, 2, 3], "truth": [0]}, "positives, row 1: 3"),
    ],
)
def test_classes_outside_the_vocabulary_are_refused(tmp_path: Path, labels: dict[str, list[int]], said: str) -> None:
    path = _folder_of(tmp_path, _row("fine", [0]), _row("bad", **labels))
    with pytest.raises(ValueError, match=rf"train\.arrow: column {said}, expected a class in 0\.\.2; copy it again"):
        open_folder(path)


def test_contradictory_labels_are_refused_with_their_keys(tmp_path: Path) -> None:
    path = _folder_of(tmp_path, _row("fine", [0], [1]), _row("torn", [0, 2], [1, 2]), _row("also-torn", [1], [1]))
    with pytest.raises(ValueError, match=r"2 entries both positive and negative, such as in \['torn', 'also-torn'\]"):
        open_folder(path)


@pytest.mark.parametrize(
    ("keep", "said"), [(0, r"cannot be read \("), (7, "cannot be read"), (-100, "damaged: its bytes")]
)
def test_a_corrupt_index_is_refused(folder: Path, keep: int, said: str) -> None:
    path = folder / "train.arrow"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"train\.arrow: {said}.*write it again"):
        open_folder(folder)


def test_an_arrow_file_that_is_no_index_is_refused(folder: Path) -> None:
    table = pa.table({"key": ["a"]})
    with pa.OSFile(str(folder / "train.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match=r"train\.arrow: not an index of format 1; write it again"):
        open_folder(folder)


def test_an_index_of_another_format_is_refused(folder: Path) -> None:
    table = pa.table([[]] * len(SCHEMA), schema=SCHEMA.with_metadata({"format": "2"}))
    with pa.OSFile(str(folder / "train.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match=r"train\.arrow: not an index of format 1"):
        open_folder(folder)


# --- The index ----------------------------------------------------------------------------------------------------

BOX = {"class": 1, "x0": 0.5, "y0": 1.0, "x1": 3.0, "y1": 4.0}


@pytest.fixture
def index(tmp_path: Path) -> Index:
    rows = (_row("x", [0], [1, 2], [0]), _row("y", [], [], []), _row("z", [1, 2], [], [1, 2], [BOX]))
    return _index(tmp_path / "i.arrow", *rows, has_truth=True)


def test_labels_come_in_the_order_of_the_rows_asked_for(index: Index) -> None:
    labels = index.labels(np.array([2, 0, 1, 2]))
    z = [UNOBSERVED, POSITIVE, POSITIVE]
    assert labels.tolist() == [z, [POSITIVE, NEGATIVE, NEGATIVE], [UNOBSERVED] * 3, z]
    assert labels.dtype == np.int8
    assert index.labels(np.empty(0, np.int64)).shape == (0, 3)


def test_truth_is_full(index: Index) -> None:
    truth = index.truth(np.array([2, 1]))
    assert truth.tolist() == [[NEGATIVE, POSITIVE, POSITIVE], [NEGATIVE] * 3]
    assert truth.dtype == np.int8


def test_truth_is_refused_where_it_is_unknown(tmp_path: Path) -> None:
    index = _index(tmp_path / "i.arrow", _row("x", [0]))
    with pytest.raises(ValueError, match=r"i\.arrow: the full labels of this data set are not known; choose another"):
        index.truth(np.array([0]))


def test_cells_name_position_and_class_of_every_entry(index: Index) -> None:
    position, classes = index.positives.cells(np.array([2, 1, 0]))
    assert list(zip(position.tolist(), classes.tolist(), strict=True)) == [(0, 1), (0, 2), (2, 0)]


def test_keys_and_rows_of_are_each_others_inverse(index: Index) -> None:
    rows = np.array([2, 0, 2])
    assert index.keys(rows) == ["z", "x", "z"]
    assert index.rows_of(pa.chunked_array([index.keys(rows)])).tolist() == rows.tolist()


def test_rows_of_refuses_keys_that_the_index_lacks(index: Index) -> None:
    with pytest.raises(ValueError, match=r"i\.arrow: 1 of 2 keys are not in this index, such as \['q'\]"):
        index.rows_of(pa.chunked_array([["x", "q"]]))


def test_boxes_of_a_sample(index: Index) -> None:
    assert index.boxes(2) == [BOX]
    assert index.boxes(0) == []


def test_digits_know_their_boxes_and_truth(tiny_digits: Path) -> None:
    index = open_folder(tiny_digits).splits["train"]
    for row in range(5):
        truth = np.flatnonzero(index.truth(np.array([row]))[0] == POSITIVE)
        assert sorted(box["class"] for box in index.boxes(row)) == truth.tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"offset": 1024}, r"offset, row 1: 1024, expected 0\.\.1023 for 1 bytes within t\.tar"),
        ({"offset": -1}, r"offset, row 1: -1, expected 0\.\."),
        ({"offset": 2**63 - 1}, r"offset, row 1: 9223372036854775807, expected 0\.\."),
        ({"size": 513}, r"offset, row 1: 512, expected 0\.\.511 for 513 bytes"),
        ({"size": -1}, r"size, row 1: -1, expected at least 0 bytes"),
        ({"shard": 1}, r"shard, row 1: 1, expected one of 0\.\.0"),
        ({"shard": -1}, r"shard, row 1: -1, expected one of 0\.\.0"),
        ({"key": "../x"}, r"key, row 1: '\.\./x', expected a key \[0-9A-Za-z_-\]\+"),
        ({"key": ""}, "key, row 1: '', expected a key"),
        ({"key": None}, "key, row 1: None, expected a value in every row"),
        ({"crc32": None}, "crc32, row 1: None, expected a value in every row"),
        ({"positives": [None]}, "positives, row 1: None, expected no null within a list"),
        ({"boxes": [{"class": 3, "x0": 0, "y0": 0, "x1": 1, "y1": 1}]}, r"boxes, row 1: 3, expected a class in 0\.\.2"),
        (
            {"boxes": [{"class": 0, "x0": 0, "y0": 0, "x1": float("nan"), "y1": 1}]},
            "boxes, row 1: nan, expected corners",
        ),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"train\.arrow: column {said}"):
        open_folder(_folder_of(tmp_path, _row("fine"), _row("bad") | change))


def test_shards_outside_the_folder_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([_row("x")], schema=SCHEMA)
    write_index(tmp_path / "i.arrow", table, shards=["../t.tar"], shard_bytes=[1024], vocabulary=ABC, has_truth=False)
    with pytest.raises(ValueError, match=r"i\.arrow: names shards outside its folder, such as '\.\./t\.tar'"):
        open_index(tmp_path / "i.arrow")


def test_an_index_of_several_record_batches_is_refused(folder: Path) -> None:
    """Its columns would have to be copied into every process."""
    table = pa.ipc.open_file(str(folder / "train.arrow")).read_all()
    table = table.replace_schema_metadata({k: v for k, v in table.schema.metadata.items() if k != b"sha256"})
    with pa.OSFile(str(folder / "train.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    with pytest.raises(ValueError, match=r"train\.arrow: an index of 2 record batches, not one; copy it again"):
        open_index(folder / "train.arrow")
