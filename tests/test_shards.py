"""Shards are plain WebDataset tars, the index points exactly into them, and damaged tars are refused by name."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from raypaml.data.batches import Reader
from raypaml.data.index import Index, open_index
from raypaml.data.plan import Plan
from raypaml.data.shards import Sample, index_split, scan, write_dataset, write_split
from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED, Vocabulary

CLASSES = ("/m/cat", "/m/dog", "/m/eel")
COUNTS = {"train": 17, "validation": 7, "test": 0}


def _jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 255 - shade, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def _sample(split: str, number: int) -> Sample:
    positive, negative = CLASSES[number % 3], CLASSES[(number + 1) % 3]
    truth = (positive, CLASSES[(number + 2) % 3])
    box = (positive, 1.0, 2.0, 3.5, 8.0)
    return Sample(
        key=f"{split}_{number}-a",
        image=_jpeg(number * 9),
        positive=(positive,),
        negative=(negative,) if number % 2 else (),
        truth=truth,
        boxes=(box,) if number % 4 == 0 else (),
    )


def _samples() -> dict[str, list[Sample]]:
    return {split: [_sample(split, number) for number in range(count)] for split, count in COUNTS.items()}


def _vocabulary() -> Vocabulary:
    zeros = np.zeros(len(CLASSES), np.int64)
    return Vocabulary(class_ids=CLASSES, names=CLASSES, train_positives=zeros, train_negatives=zeros)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written")
    write_dataset(out, _samples(), CLASSES, ("cat", "dog", "eel"), samples_per_shard=10)
    return out


# --- What is written is read back, by others too ------------------------------------------------------------------


def _with_webdataset_alone(folder: Path, split: str) -> list[dict[str, Any]]:
    shards = sorted(str(path) for path in folder.glob(f"{split}-*.tar"))
    return list(webdataset.WebDataset(shards, shardshuffle=False))


def test_shards_are_cut_after_so_many_samples(written: Path) -> None:
    shards = {path.name: len(list(scan(path))) for path in written.glob("*.tar")}
    assert shards == {"train-000000.tar": 10, "train-000001.tar": 7, "validation-000000.tar": 7}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
@pytest.mark.parametrize("split", ["train", "validation"])
def test_webdataset_alone_reads_what_index_and_reader_read(written: Path, split: str) -> None:
    index = open_index(written / f"{split}.arrow")
    rows = np.arange(len(index))
    reader = Reader(written, index, Plan(num_samples=len(index), global_batch_size=4, lanes=1).epoch(0, 0, 1))
    theirs = _with_webdataset_alone(written, split)
    assert index.keys(rows) == [sample["__key__"] for sample in theirs] == [s.key for s in _samples()[split]]
    for row, sample, labels in zip(rows, theirs, index.labels(rows), strict=True):
        assert reader._read(int(row)) == sample["jpg"] == _samples()[split][row].image
        said = json.loads(sample["json"])
        assert [CLASSES[k] for k in np.flatnonzero(labels == POSITIVE)] == said["positive"]
        assert [CLASSES[k] for k in np.flatnonzero(labels == NEGATIVE)] == said["negative"]
        assert (labels == UNOBSERVED).sum() == 3 - len(said["positive"]) - len(said["negative"])


def test_index_columns_point_at_exactly_the_image_bytes(written: Path) -> None:
    index = open_index(written / "train.arrow")
    assert index.shard.tolist() == [0] * 10 + [1] * 7
    assert index.shard_bytes == [(written / shard).stat().st_size for shard in index.shards]
    for row, sample in enumerate(_samples()["train"]):
        content = (written / index.shards[index.shard[row]]).read_bytes()
        image = content[index.offset[row] : index.offset[row] + index.size[row]]
        assert image == sample.image
        assert index.crc32[row] == zlib.crc32(sample.image)


def test_truth_and_boxes_are_kept_beside_the_labels(written: Path) -> None:
    index = open_index(written / "train.arrow")
    for row, sample in enumerate(_samples()["train"]):
        assert {CLASSES[k] for k in np.flatnonzero(index.truth(np.array([row]))[0])} == set(sample.truth or ())
        boxes = [(CLASSES[int(b["class"])], b["x0"], b["y0"], b["x1"], b["y1"]) for b in index.boxes(row)]
        assert boxes == list(sample.boxes)


def test_writing_again_gives_the_same_bytes(written: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, _samples(), CLASSES, ("cat", "dog", "eel"), samples_per_shard=10)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {p.name: p.read_bytes() for p in written.iterdir()}


def test_an_empty_split_has_an_empty_index_and_no_shard(written: Path) -> None:
    index = open_index(written / "test.arrow")
    assert (len(index), index.shards, index.has_truth) == (0, [], False)
    assert index.labels(np.arange(0)).shape == (0, 3)


def test_the_vocabulary_counts_the_training_labels_only(written: Path) -> None:
    vocabulary = Vocabulary.read(written / "vocabulary.csv")
    assert vocabulary.train_positives.tolist() == [6, 6, 5]
    assert vocabulary.train_negatives.tolist() == [2, 3, 3]  # odd samples 1, 3, ... 15 deny class (number + 1) % 3
    assert vocabulary.names == ("cat", "dog", "eel")


def test_an_output_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"not empty; write a data set into a new folder"):
        write_dataset(tmp_path, _samples(), CLASSES, CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# --- What scan refuses --------------------------------------------------------------------------------------------

GOOD = json.dumps({"positive": ["/m/cat"], "negative": []}).encode()


def _tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _pair(key: str, labels: bytes = GOOD) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", _jpeg(1)), (f"{key}.json", labels)]


def _three(tmp_path: Path) -> tuple[Path, bytes, list[tarfile.TarInfo]]:
    path = _tar(tmp_path / "three.tar", [*_pair("a"), *_pair("b"), *_pair("c")])
    with tarfile.open(path) as tar:
        return path, path.read_bytes(), tar.getmembers()


CUTS = {  # member, bytes into it; its header takes 512
    "in the first header": (0, 100),
    "in an image": (2, 522),
    "in a header": (3, 100),
    "between jpg and json": (3, 0),
    "between two samples": (4, 0),
    "before the end marker": (5, 1024),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_truncated_tar_is_refused(tmp_path: Path, cut: str) -> None:
    path, content, members = _three(tmp_path)
    member, inside = CUTS[cut]
    path.write_bytes(content[: members[member].offset + inside])
    with pytest.raises(ValueError, match=r"three\.tar: .*write the shard again"):
        list(scan(path))


@pytest.mark.parametrize("number", range(6))
def test_a_flipped_bit_in_any_member_header_is_refused(tmp_path: Path, number: int) -> None:
    path, content, members = _three(tmp_path)
    damaged = bytearray(content)
    damaged[members[number].offset + 130] ^= 1  # in the size or the date: only the header's checksum tells
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"three\.tar: .*write the shard again"):
        list(scan(path))


def test_python_itself_passes_over_a_damaged_header_in_silence(tmp_path: Path) -> None:
    path, content, members = _three(tmp_path)
    damaged = bytearray(content)
    damaged[members[2].offset + 130] ^= 1
    path.write_bytes(damaged)
    with tarfile.open(path) as tar:  # cpython #120740: the reason for scan's own look at the end
        assert tar.getnames() == ["a.jpg", "a.json"]


UNPAIRED = {
    "jpg without json at the end": ([*_pair("a"), ("b.jpg", b"x")], r"t\.tar: b\.jpg has no b\.json"),
    "jpg without json in between": ([("a.jpg", b"x"), *_pair("b")], r"t\.tar: .*\ba\.jpg"),
    "json without jpg": ([*_pair("a"), ("b.json", GOOD)], r"t\.tar: found b\.json; expected pairs KEY\.jpg, KEY\.json"),
    "json of another key": ([("a.jpg", b"x"), ("b.json", GOOD)], r"t\.tar: found b\.json after a\.jpg"),
    "json before its jpg": (_pair("a")[::-1], r"t\.tar: found a\.json; expected"),
    "another kind of file": ([("a.png", b"x"), ("a.json", GOOD)], r"t\.tar: found a\.png; expected"),
}


@pytest.mark.parametrize("case", UNPAIRED)
def test_members_that_do_not_pair_are_refused(tmp_path: Path, case: str) -> None:
    members, message = UNPAIRED[case]
    with pytest.raises(ValueError, match=message):
        list(scan(_tar(tmp_path / "t.tar", members)))


@pytest.mark.parametrize("key", ["../a", "/abs/a", "two words", "a/b", "", "\u00fc", "a\n"])
def test_keys_outside_the_alphabet_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=r"t\.tar: member .*\.jpg' is not a file named by a key \[0-9A-Za-z_-\]\+"):
        list(scan(_tar(tmp_path / "t.tar", _pair(key))))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE]
)
def test_members_that_are_not_files_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(ValueError, match=r"t\.tar: member 'a\.jpg' is not a file"):
        list(scan(path))


# --- What the index refuses ---------------------------------------------------------------------------------------

BAD_LABELS = {
    b"{": r"not JSON",
    b"\xff": r"not JSON",
    b"[]": r"expected an object with the lists 'positive' and 'negative'",
    b'{"positive": []}': r"expected an object with the lists 'positive' and 'negative'",
    b'{"positive": 3, "negative": []}': r"expected an object with the lists 'positive' and 'negative'",
    b'{"positive": null, "negative": []}': r"expected an object with the lists 'positive' and 'negative'",
    b'{"positive": ["/m/fox"], "negative": []}': r"class '/m/fox' is not among the 3 of the vocabulary",
    b'{"positive": ["/m/cat"], "negative": ["/m/cat"]}': r"classes \['/m/cat'\] labelled both positive and negative",
    b'{"positive": [], "negative": [], "truth": ["/m/fox"]}': r"class '/m/fox' is not among",
}


@pytest.mark.parametrize("labels", BAD_LABELS)
def test_bad_labels_are_refused_with_file_and_key(tmp_path: Path, labels: bytes) -> None:
    shard = _tar(tmp_path / "t.tar", [*_pair("good"), *_pair("bad", labels)])
    with pytest.raises(ValueError, match=rf"t\.tar: (sample )?bad\b.*{BAD_LABELS[labels]}"):
        index_split(tmp_path, "train", [shard], [scan(shard)], _vocabulary())
    assert not (tmp_path / "train.arrow").exists()


def test_a_key_in_two_shards_is_refused(tmp_path: Path) -> None:
    shards = [_tar(tmp_path / name, _pair("same")) for name in ("t0.tar", "t1.tar")]
    with pytest.raises(ValueError, match=r"1 keys occur twice in split train, such as \['same'\]"):
        index_split(tmp_path, "train", shards, [scan(shard) for shard in shards], _vocabulary())


def test_foreign_tars_without_truth_have_an_index_without_truth(tmp_path: Path) -> None:
    shard = _tar(tmp_path / "t.tar", _pair("a"))
    index_split(tmp_path, "train", [shard], [scan(shard)], _vocabulary())
    index = open_index(tmp_path / "train.arrow")
    assert isinstance(index, Index)
    assert (index.has_truth, index.labels(np.array([0])).tolist()) == (False, [[POSITIVE, UNOBSERVED, UNOBSERVED]])


def test_write_split_names_its_shards_in_order(tmp_path: Path) -> None:
    shards = write_split(tmp_path, "validation", _samples()["train"][:5], samples_per_shard=2)
    assert [path.name for path in shards] == [f"validation-{number:06d}.tar" for number in range(3)]
    assert [row["key"] for path in shards for row, _ in scan(path)] == [s.key for s in _samples()["train"][:5]]
