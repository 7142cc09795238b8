"""Prediction sets on disk: what comes out does not depend on the parts; what does not hold together is refused."""

from __future__ import annotations

import dataclasses
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raypaml.evaluation import entries as entries_module
from raypaml.evaluation.entries import Entries, spilled
from raypaml.evaluation.measures import evaluate_set
from raypaml.evaluation.parts import PredictionPart, is_of_set, is_predicted, open_set, read_vocabulary, write_part
from raypaml.labels import Vocabulary

CLASSES, IMAGES = 12, 30


def vocabulary(classes: int = CLASSES) -> Vocabulary:
    counts = np.arange(classes) + 1
    ids = tuple(f"/m/{k:02d}" for k in range(classes))
    return Vocabulary(class_ids=ids, names=ids, train_positives=counts, train_negatives=counts)


def rows(seed: int = 0, share: float = 0.4) -> pa.Table:
    """Some entries of IMAGES images."""
    rng = np.random.default_rng(seed)
    image, classes = np.nonzero(rng.random((IMAGES, CLASSES)) < share)
    positive = rng.random(len(image)) < 0.5
    scores = np.random.default_rng(99 + seed).normal(size=len(image)).round(1).astype(np.float32)
    keys = [f"image-{number:03d}" for number in image]
    p, n = np.maximum(scores, 0) / 5, np.minimum(scores, 0)
    return pa.table({"key": keys, "class": classes, "positive": positive, "P": p, "N": n})


def part(number: int, count: int, samples: int) -> PredictionPart:
    return PredictionPart(
        split="test",
        vocabulary=vocabulary().digest,
        num_classes=CLASSES,
        alpha=5.0,
        model="m",
        data="d",
        unobserved=False,
        samples=IMAGES,
        parts=count,
        part=number,
        part_samples=samples,
    )


def write_set(folder: Path, table: pa.Table, order: list[int]) -> Path:
    """Write the rows as parts of equal numbers of images; part `n` holds the images of slot `order[n]`."""
    count = len(order)
    image = np.array([int(key[-3:]) for key in table["key"].to_pylist()])
    for number, slot in enumerate(order):
        low, high = slot * IMAGES // count, (slot + 1) * IMAGES // count
        mine, about = table.filter((image >= low) & (image < high)), part(number, count, high - low)
        write_part(folder, about, mine, vocabulary_content=vocabulary().content_digest)
    vocabulary().write(folder / "vocabulary.csv")
    return folder


def all_entries(folder: Path) -> Iterator[Entries]:
    with spilled(open_set(folder)) as found:
        yield from found.buckets()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set", rows(), [0, 1, 2])


def test_what_is_spilled_is_not_held_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet, which keeps the metadata of every piece until the end, held 165 MB here."""
    classes, batches, held = 200, 200, list[int]()

    def some_of_all_classes() -> Iterator[tuple[int, pa.Table]]:
        for number in range(batches):
            held.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
            columns = {"key": [f"{number:03d}"] * classes, "class": np.arange(classes), "positive": [True] * classes}
            yield 0, pa.table(columns | dict.fromkeys("PN", np.ones(classes, np.float32)))

    monkeypatch.setattr(entries_module, "ROWS_AT_ONCE", batches)
    monkeypatch.setattr(entries_module, "FLUSH_ROWS", 1)
    about = {"num_classes": classes, "rows": classes * batches, "batches": some_of_all_classes}
    with spilled(dataclasses.replace(open_set(folder), **about)) as found:
        assert (len(found.files), len(found.keys), found.tally[:, 0].tolist()) == (
            classes,
            batches,
            [batches] * classes,
        )
    assert held[-1] - held[10] < 20e6


def test_a_part_of_other_names_of_classes_is_of_another_set(folder: Path) -> None:
    """Else the evaluation would keep it, with a vocabulary that is refused by whoever reads the set."""
    path, first = folder / part(1, 3, 0).name, part(0, 3, IMAGES // 3)
    assert is_of_set(path, first, vocabulary().content_digest)
    assert not is_of_set(path, first, dataclasses.replace(vocabulary(), names=("else",) * CLASSES).content_digest)
    path.write_bytes(b"damaged")
    assert is_of_set(path, first, "")  # it is written again


@pytest.mark.parametrize(
    ("field", "value"), [("alpha", 0.5), ("alpha", None), ("samples", "30"), ("num_classes", "12"), ("model", [1])]
)
def test_what_a_part_says_of_itself_has_its_types(folder: Path, field: str, value: object) -> None:
    first = part(0, 3, 10)
    object.__setattr__(first, field, value)
    write_part(folder, first, rows().slice(0, 0))
    with pytest.raises(ValueError, match=rf"part-00000-of-00003\.parquet: .* \({field}=.*: must be "):
        open_set(folder)


def test_a_set_of_another_number_of_classes_is_refused(folder: Path) -> None:
    predictions = dataclasses.replace(open_set(folder), num_classes=CLASSES + 1)
    with pytest.raises(ValueError, match=r"predicted with another vocabulary \(13 classes"):
        read_vocabulary(folder, predictions)


def test_every_entry_comes_back_once_in_one_order_from_any_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries_module, "ROWS_AT_ONCE", 40)
    table = rows()
    wanted = list(all_entries(write_set(tmp_path / "one", table, [0])))
    assert len(wanted) == -(-len(table) // 40)
    assert sum(len(bucket.image) for bucket in wanted) == len(table)
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    for name, content, order in (("four", table, [2, 0, 3, 1]), ("shuffled", shuffled, [1, 0])):
        found = list(all_entries(write_set(tmp_path / name, content, order)))
        for one, other in zip(wanted, found, strict=True):
            for field in dataclasses.fields(Entries):
                np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_a_class_is_never_split(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries_module, "ROWS_AT_ONCE", 40)
    seen = [set(bucket.class_index.tolist()) for bucket in all_entries(folder)]
    assert sum(map(len, seen)) == len(set.union(*seen)) == CLASSES


def test_fewer_files_are_open_than_the_process_may_have(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries_module, "ROWS_AT_ONCE", 1)
    assert len(list(all_entries(folder))) == CLASSES
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8, 8))
    few = list(all_entries(folder))
    assert len(few) == 4
    assert sum(len(bucket.image) for bucket in few) == len(rows())


def test_scores_are_alpha_p_plus_n(folder: Path) -> None:
    bucket = next(all_entries(folder))
    np.testing.assert_array_equal(bucket.scores(3.0), np.float32(3) * bucket.P + bucket.N)
    assert bucket.scores(3.0).dtype == np.float32


def test_a_part_without_rows_is_a_part(tmp_path: Path) -> None:
    table = rows().filter(np.array([key >= "image-015" for key in rows()["key"].to_pylist()]))
    assert sum(len(bucket.image) for bucket in all_entries(write_set(tmp_path, table, [0, 1]))) == len(table)


def test_a_finished_part_is_whole_and_of_this_very_evaluation(folder: Path) -> None:
    mine = part(0, 3, 10)
    assert is_predicted(folder, mine)
    assert not is_predicted(folder, dataclasses.replace(mine, model="other"))
    assert not is_predicted(folder.parent, mine)
    path = folder / mine.name
    content = bytearray(path.read_bytes())
    content[60] ^= 1  # inside a page: only its checksum tells
    path.write_bytes(content)
    assert not is_predicted(folder, mine)


# --- What is refused --------------------------------------------------------------------------------------------------


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        list(all_entries(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lost", [0, 2])
def test_a_missing_part(folder: Path, lost: int) -> None:
    (folder / part(lost, 3, 10).name).unlink()
    refused(folder, rf"2 files are not the 3 parts of one set, part {lost} is missing; run the evaluation again")


def test_a_part_cut_short(folder: Path) -> None:
    path = folder / part(1, 3, 10).name
    path.write_bytes(path.read_bytes()[:-20])
    refused(folder, r"part-00001-of-00003.parquet: damaged: its bytes do not have the SHA-256")


def test_a_part_with_a_flipped_bit(folder: Path) -> None:
    path = folder / part(1, 3, 10).name
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    refused(folder, r"part-00001-of-00003.parquet: damaged")


@pytest.mark.parametrize("content", [b"", b"PAR1"])
def test_an_empty_file(folder: Path, content: bytes) -> None:
    (folder / part(1, 3, 10).name).write_bytes(content)
    refused(folder, r"part-00001-of-00003.parquet: cannot be read \(Parquet file size is")


def test_a_parquet_file_that_is_no_part(folder: Path) -> None:
    pa.parquet.write_table(rows(), folder / part(1, 3, 10).name)
    refused(folder, "not a part of a prediction set of this version")


def test_one_part_twice_in_place_of_another(folder: Path) -> None:
    shutil.copy(folder / part(0, 3, 10).name, folder / part(1, 3, 10).name)
    refused(folder, "part 1 is missing")


@pytest.mark.parametrize("change", [{"model": "x"}, {"split": "validation"}, {"parts": 4}, {"alpha": 1.0}])
def test_parts_of_two_sets(folder: Path, change: dict[str, object]) -> None:
    other = dataclasses.replace(part(2, 3, 10), **change)
    (folder / part(2, 3, 10).name).unlink()
    write_part(folder, other, rows().slice(0, 3))
    refused(folder, rf"are of two sets \({next(iter(change))} ")


def test_fewer_samples_than_the_split_has(folder: Path) -> None:
    write_part(folder, part(2, 3, 9), rows().slice(0, 0))
    refused(folder, "29 samples in the parts, the split has 30")


def test_an_image_in_two_parts(folder: Path) -> None:
    table = rows()
    write_part(folder, part(2, 3, 10), pa.concat_tables([table.slice(0, 1), table.slice(len(table) - 5)]))
    refused(folder, "image 'image-000' is in two parts")


def test_an_entry_twice(tmp_path: Path) -> None:
    table = rows()
    refused(
        write_set(tmp_path, pa.concat_tables([table, table.slice(3, 1)]), [0]),
        r"image 'image-0\d\d' has class \d+ twice",
    )


def test_a_score_that_is_not_a_number_is_named_by_image_and_class(tmp_path: Path) -> None:
    table = rows()
    scores = table["P"].to_numpy().copy()
    scores[7] = np.nan
    key, classes = table["key"][7].as_py(), table["class"][7].as_py()
    table = table.set_column(3, "P", pa.array(scores))
    refused(write_set(tmp_path, table, [0, 1]), rf"1 scores are not a number, first of image '{key}', class {classes};")


def test_a_class_outside_the_vocabulary(tmp_path: Path) -> None:
    table = rows().set_column(1, "class", pa.array(np.full(len(rows()), CLASSES)))
    refused(write_set(tmp_path, table, [0]), r"class columns from 12 to 12, expected 0..11")


def test_images_without_an_observed_label_have_no_rows_and_no_figures(tmp_path: Path) -> None:
    evaluation = evaluate_set(open_set(write_set(tmp_path, rows().slice(0, 0), [0])), vocabulary())
    assert len(evaluation.keys) == 0
    assert np.isnan(evaluation.ap).all()
    nothing = dataclasses.replace(open_set(tmp_path), samples=0)
    with pytest.raises(ValueError, match="no rows; nothing was predicted"):
        evaluate_set(nothing, vocabulary())


def test_a_folder_without_parts(tmp_path: Path) -> None:
    refused(tmp_path, "no predictions; raypaml evaluate writes them")


def test_another_vocabulary(folder: Path, tmp_path: Path) -> None:
    vocabulary(11).write(tmp_path / "other.csv")
    with pytest.raises(ValueError, match=r"another vocabulary \(12 classes, .*than .*other.csv \(11 classes"):
        read_vocabulary(folder, open_set(folder), tmp_path / "other.csv")
