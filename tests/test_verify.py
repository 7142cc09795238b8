"""Verification names every fault by shard, key and byte; nothing that is wrong passes in silence."""

from __future__ import annotations

import json
import pickle
import random
import re
import shutil
import zlib
from pathlib import Path

import pytest

from raypaml.data.batches import Batch, Reader
from raypaml.data.index import Index, open_index
from raypaml.data.label_forms import BOX_LISTS
from raypaml.data.plan import Plan
from raypaml.data.verify_shard import verify_shard
from tests.conftest import verify_split

SHARD = "train-000000.tar"


@pytest.fixture
def folder(tiny_digits: Path, tmp_path: Path) -> Path:
    """A good data folder to damage."""
    return Path(shutil.copytree(tiny_digits, tmp_path / "data"))


@pytest.fixture
def index(folder: Path) -> Index:
    return open_index(folder / "train.arrow")


def replace(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def json_at(path: Path, key: str) -> tuple[int, bytes]:
    """Where a sample's JSON lies, found without our reader."""
    content = path.read_bytes()
    start = content.index(f"{key}.json".encode()) + 512
    return start, content[start : content.index(b"}\0", start) + 1]


def test_whole_shards_have_no_faults(tiny_digits: Path) -> None:
    for split in ("train", "validation", "test"):
        assert verify_split(tiny_digits, open_index(tiny_digits / f"{split}.arrow")) == []


def test_its_arguments_travel_to_other_processes(tiny_digits: Path) -> None:
    call = pickle.loads(pickle.dumps((verify_shard, tiny_digits, open_index(tiny_digits / "train.arrow"), 0)))
    assert call[0](*call[1:]) == []


def test_a_missing_shard(folder: Path, index: Index) -> None:
    (folder / SHARD).unlink()
    assert verify_shard(folder, index, 0) == [
        f"{folder / SHARD}: missing, the index says {index.shard_bytes[0]:,} bytes"
    ]


def test_a_shard_cut_short_names_what_it_lost(folder: Path, index: Index) -> None:
    with (folder / SHARD).open("r+b") as file:
        file.truncate(int(index.offset[94]) + 7)
    faults = "\n".join(verify_shard(folder, index, 0))
    assert re.search(rf"{SHARD}: [\d,]+ bytes, the index says [\d,]+ bytes", faults)
    assert (
        f"image 'train-000094' at byte {index.offset[94]}: cut short, 7 of {index.size[94]:,} bytes are there" in faults
    )
    assert f"image 'train-000095' at byte {index.offset[95]}: cut short, 0 of" in faults
    assert f"damaged or truncated at byte {index.offset[94]}" in faults


def test_a_changed_image(folder: Path, index: Index) -> None:
    replace(folder / SHARD, int(index.offset[5]) + 100, b"\x01\x02\x03")
    assert verify_shard(folder, index, 0) == [
        f"{folder / SHARD}: image 'train-000005' at byte {index.offset[5]}: does not match its CRC-32"
    ]


def test_swapped_shards(folder: Path) -> None:
    first, second = folder / "validation-000000.tar", folder / "test-000000.tar"
    first.rename(folder / "x")
    second.rename(first)
    faults = "\n".join(verify_split(folder, open_index(folder / "validation.arrow")))
    assert "image 'validation-000000' at byte" in faults
    assert "the index has no such key in this shard" in faults


def test_changed_labels(folder: Path, index: Index) -> None:
    start, content = json_at(folder / SHARD, "train-000007")
    renamed = content.replace(b'"positive"', b'"positivE"')
    replace(folder / SHARD, start, renamed)
    (fault,) = verify_shard(folder, index, 0)
    assert f"train-000007.json at byte {start}: expected an object with the lists" in fault


def test_a_class_that_the_index_does_not_have(folder: Path, index: Index) -> None:
    start, content = json_at(folder / SHARD, "train-000007")
    labels = json.loads(content)
    emptied = json.dumps(labels | {"positive": []}).encode().ljust(len(content))
    replace(folder / SHARD, start, emptied)
    (fault,) = verify_shard(folder, index, 0)
    assert f"at byte {start}: positives differ from the index in 1 classes, such as {labels['positive']}" in fault
    unboxed = labels | {name: [] for name in BOX_LISTS}
    replace(folder / SHARD, start, json.dumps(unboxed).encode().ljust(len(content)))
    (fault,) = verify_shard(folder, index, 0)
    assert f"train-000007.json at byte {start}: boxes differ from the index: 0 and" in fault


def test_an_image_that_cannot_be_decoded_though_its_checksum_is_right(folder: Path, index: Index) -> None:
    index.crc32 = index.crc32.copy()
    content = b"x" * int(index.size[3])
    replace(folder / SHARD, int(index.offset[3]), content)
    index.crc32[3] = zlib.crc32(content)
    (fault,) = verify_shard(folder, index, 0)
    assert f"image 'train-000003' at byte {index.offset[3]}: cannot be decoded: " in fault
    assert verify_shard(folder, index, 0, decode=False) == []


def read_all(folder: Path, index: Index) -> list[bytes] | str:
    """Every image as training reads it, or what training says."""
    plan = Plan(num_samples=len(index), global_batch_size=1, lanes=1, shuffle=False)
    try:
        reader = Reader(folder, index, plan.epoch(0, 0, 1))
        return [reader[step].images.numpy().tobytes() for step in range(len(reader))]
    except ValueError as error:
        return str(error)


def read_sound(folder: Path, index: Index) -> Batch | None:
    """What training reads within a budget; None where nothing can be read, which is an error."""
    parts = Plan(num_samples=len(index), global_batch_size=len(index), lanes=1, shuffle=False).epoch(0, 0, 1)
    try:
        return Reader(folder, index, parts, skip_broken=True)[0]
    except ValueError:
        return None


def test_two_hundred_flips_and_cuts_end_identical_or_named(folder: Path, index: Index) -> None:
    """Of one shard: training reads the same images or names the place; verification names whatever changed."""
    path, rng = folder / SHARD, random.Random(4)
    good, expected = path.read_bytes(), read_all(folder, index)
    named = 0
    for _ in range(200):
        place = rng.randrange(len(good))
        cut = rng.random() < 0.25
        flipped = bytes([good[place] ^ (1 << rng.randrange(8))])
        path.write_bytes(good[:place] if cut else good[:place] + flipped + good[place + 1 :])
        faults = verify_shard(folder, index, 0)
        assert all(fault.startswith(f"{path}: ") for fault in faults)
        assert faults or not cut
        named += bool(faults)
        sound = read_sound(folder, index)
        if sound is None:
            assert cut
        else:
            skipped = [row for row, _ in sound.skipped]
            assert sorted([*sound.rows.tolist(), *skipped]) == list(range(len(index)))
            assert [image.numpy().tobytes() for image in sound.images] == [expected[row] for row in sound.rows]
        found = read_all(folder, index)
        if isinstance(found, str):
            assert re.search(rf"{SHARD}: image 'train-\d+' at byte \d+ ", found)
            assert faults
        else:
            assert found == expected
    assert named > 100
