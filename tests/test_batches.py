"""Reading: the batches of the plan, every image checked against its CRC, every failure named."""

from __future__ import annotations

import io
import re
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raypaml.data import shard_files
from raypaml.data.batches import AHEAD, MAX_BUFFERS, Batch, Reader, read
from raypaml.data.data_folder import open_folder
from raypaml.data.images import decode
from raypaml.data.index import open_index
from raypaml.data.plan import Plan
from raypaml.data.shards import Sample, write_dataset
from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED


def _reader(
    folder: Path, split: str = "train", epoch: int = 0, rank: int = 0, world_size: int = 1, **options: Any
) -> Reader:
    index = open_index(folder / f"{split}.arrow")
    plan = Plan(num_samples=len(index), global_batch_size=28, lanes=14)
    return Reader(folder, index, plan.epoch(epoch, rank, world_size), **options)


def _jpeg(width: int = 8, height: int = 8, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), 200 if mode == "L" else (200, 10, 10)).save(buffer, "JPEG")
    return buffer.getvalue()


def _written(out: Path, *images: bytes, samples_per_shard: int = 1000) -> Path:
    samples = [Sample(key=f"s{n}", image=image, positive=("a",), negative=()) for n, image in enumerate(images)]
    write_dataset(out, {"train": samples}, ("a", "b"), ("a", "b"), samples_per_shard)
    return out


def _one_by_one(folder: Path) -> Reader:
    index = open_index(folder / "train.arrow")
    plan = Plan(num_samples=len(index), global_batch_size=1, lanes=1, shuffle=False)
    return Reader(folder, index, plan.epoch(0, 0, 1))


def _same(a: Batch, b: Batch) -> bool:
    tensors = all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("images", "labels", "flip"))
    return tensors and a.keys == b.keys and a.rows.tolist() == b.rows.tolist() and a.first_row == b.first_row


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows read from disk from now on."""
    rows: list[int] = []
    original = Reader._read

    def spy(self: Reader, row: int) -> bytes:
        rows.append(row)
        return original(self, row)

    monkeypatch.setattr(Reader, "_read", spy)
    return rows


# --- What a batch holds -------------------------------------------------------------------------------------------


def test_shapes_types_and_places_of_an_epochs_batches(tiny_digits: Path) -> None:
    reader = _reader(tiny_digits, world_size=3, rank=1)
    assert len(reader) == 4
    sizes = []
    for batch, part in zip(read(reader), reader.parts, strict=True):
        rows = len(part.rows)
        sizes.append(rows)
        assert (batch.images.dtype, batch.images.shape) == (torch.uint8, (rows, 3, 64, 64))
        assert (batch.labels.dtype, batch.labels.shape) == (torch.int8, (rows, 50))
        assert (batch.flip.dtype, batch.flip.tolist()) == (torch.bool, part.flip.tolist())
        assert (batch.first_row, batch.global_rows) == (part.first_row, part.global_rows)
        assert batch.lane_sizes == part.lane_sizes
        assert batch.keys == [f"train-{row:06d}" for row in batch.rows]
        assert batch.truth is None
        assert set(batch.labels.unique().tolist()) <= {POSITIVE, NEGATIVE, UNOBSERVED}
    assert sizes == [10, 10, 10, 4]  # lanes 4..8 of 14, two samples each; then 4 of the last 12 samples


def test_images_and_labels_belong_to_their_keys(tiny_digits: Path) -> None:
    data = open_folder(tiny_digits)
    index = data.splits["train"]
    reader = _reader(tiny_digits)
    batch = reader[2]
    for position, row in enumerate(batch.rows):
        shard = (tiny_digits / index.shards[index.shard[row]]).read_bytes()
        image = Image.open(io.BytesIO(shard[index.offset[row] :][: index.size[row]]))
        assert (batch.images[position].permute(1, 2, 0).numpy() == np.asarray(image)).all()
    assert (batch.labels.numpy() == index.labels(batch.rows)).all()


def test_truth_comes_beside_the_labels_where_asked_for(tiny_digits: Path) -> None:
    batch = _reader(tiny_digits, with_truth=True)[0]
    assert batch.truth is not None
    assert batch.truth.dtype == torch.int8
    assert set(batch.truth.unique().tolist()) == {POSITIVE, NEGATIVE}
    assert (batch.labels == UNOBSERVED).sum() == 28 * 49
    assert (batch.truth[batch.labels == POSITIVE] == POSITIVE).all()


def test_truth_is_none_where_it_is_unknown(tmp_path: Path) -> None:
    reader = _reader(_written(tmp_path, _jpeg()), with_truth=True)
    assert reader[0].truth is None


def test_full_labels_replace_the_observed_ones(tiny_digits: Path) -> None:
    full = _reader(tiny_digits, full_labels=True, with_truth=True)[0]
    assert full.truth is not None
    assert torch.equal(full.labels, full.truth)
    assert not (full.labels == UNOBSERVED).any()


def test_full_labels_are_refused_where_they_are_unknown(tmp_path: Path) -> None:
    reader = _reader(_written(tmp_path, _jpeg()), full_labels=True)
    with pytest.raises(ValueError, match=r"the full labels of this data set are not known"):
        reader[0]


def test_an_empty_part_is_a_batch_of_no_rows(tiny_digits: Path) -> None:
    index = open_index(tiny_digits / "train.arrow")
    parts = Plan(num_samples=33, global_batch_size=32, lanes=32).epoch(0, 0, 32)
    batch = Reader(tiny_digits, index, parts)[1]
    assert (tuple(batch.images.shape), tuple(batch.labels.shape)) == ((0, 3, 64, 64), (0, 50))
    assert (batch.keys, batch.global_rows) == ([], 1)


def test_grey_images_become_rgb(tmp_path: Path) -> None:
    assert _reader(_written(tmp_path, _jpeg(mode="L")))[0].images.shape == (1, 3, 8, 8)


# --- Order and resuming -------------------------------------------------------------------------------------------


def test_start_step_resumes_without_reading_what_was_consumed(tiny_digits: Path, reads: list[int]) -> None:
    reader = _reader(tiny_digits, epoch=1)
    whole = list(read(reader))
    reads.clear()
    resumed = list(read(reader, start_step=2))
    assert len(resumed) == 2
    assert all(_same(a, b) for a, b in zip(whole[2:], resumed, strict=True))
    assert reads == [row for part in reader.parts[2:] for row in part.rows]


def test_start_step_at_the_end_reads_nothing(tiny_digits: Path, reads: list[int]) -> None:
    reader = _reader(tiny_digits)
    reads.clear()
    assert list(read(reader, start_step=4)) == []
    assert reads == []


@pytest.mark.parametrize("loader_workers", [1, 2, 5])
def test_loader_workers_change_nothing(loader_workers: int, tiny_digits: Path) -> None:
    alone = list(read(_reader(tiny_digits), start_step=1))
    helped = list(read(_reader(tiny_digits), start_step=1, loader_workers=loader_workers))
    assert len(alone) == len(helped) == 3
    assert all(_same(a, b) for a, b in zip(alone, helped, strict=True))


def _loaders() -> int:
    return sum(thread.name.startswith("loader") for thread in threading.enumerate())


def test_loader_threads_end_with_the_epoch_and_where_it_is_left(tiny_digits: Path) -> None:
    assert len(list(read(_reader(tiny_digits), loader_workers=3))) == 4
    assert _loaders() == 0
    left = read(_reader(tiny_digits), loader_workers=3)
    next(left)
    assert 1 <= _loaders() <= 3
    left.close()
    assert _loaders() == 0


def test_loader_threads_read_ahead_and_no_further(tiny_digits: Path, reads: list[int]) -> None:
    reader = _one_by_one(tiny_digits)
    reads.clear()
    batches = read(reader, loader_workers=2)
    for step in range(10):
        next(batches)
        assert step + 1 <= len(reads) <= step + 1 + AHEAD
    batches.close()
    assert len(reads) <= 10 + AHEAD


# --- Descriptors --------------------------------------------------------------------------------------------------


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """Let this process have only so many files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 96
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_readers_that_are_done_leave_no_file_open(tiny_digits: Path) -> None:
    before = _open_files()
    for epoch in range(5):  # a training run makes a reader every epoch
        _reader(tiny_digits, epoch=epoch)[0]
    assert _open_files() == before


def test_more_shards_than_a_process_may_open_are_read(tmp_path: Path, few_descriptors: int) -> None:
    folder = _written(tmp_path, *[_jpeg()] * few_descriptors, samples_per_shard=1)
    assert sum(len(batch.rows) for batch in read(_one_by_one(folder))) == few_descriptors


def test_threads_share_few_descriptors_and_none_is_closed_under_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files, "MAX_OPEN", 2)
    noise = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    contents = []
    for pixels in noise:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        contents.append(buffer.getvalue())
    folder = _written(tmp_path, *contents, samples_per_shard=2)
    before = _open_files()
    reader = _one_by_one(folder)
    wrong: list[int] = []

    def check() -> None:
        for row in np.random.default_rng().integers(0, len(contents), 2000).tolist():
            wrong.extend([row] * (reader._read(row) != contents[row]))

    threads = [threading.Thread(target=check) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert _open_files() <= before + 2


# --- Damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [0, 200, -1])
def test_a_flipped_bit_in_an_image_is_named_by_shard_key_and_offset(tmp_path: Path, inside: int) -> None:
    folder = _written(tmp_path, *[_jpeg()] * 3)
    index, shard = open_index(folder / "train.arrow"), folder / "train-000000.tar"
    reader = _one_by_one(folder)
    content = bytearray(shard.read_bytes())
    content[index.offset[1] + inside % index.size[1]] ^= 4
    shard.write_bytes(content)
    assert [reader[step].keys for step in (0, 2)] == [["s0"], ["s2"]]
    said = re.escape(
        f"{shard}: image 's1' at byte {index.offset[1]} does not match its CRC-32; copy or write the shard"
    )
    with pytest.raises(ValueError, match=said):
        reader[1]


def test_a_shard_cut_short_after_opening_is_noticed(tmp_path: Path) -> None:
    folder = _written(tmp_path, *[_jpeg()] * 3)
    reader = _one_by_one(folder)
    with (folder / "train-000000.tar").open("r+b") as file:
        file.truncate(int(reader.index.offset[2]) + 5)
    with pytest.raises(
        ValueError, match=r"image 's2' at byte \d+ is cut short, 5 of \d+ bytes; copy or write the shard again"
    ):
        reader[2]


@pytest.mark.parametrize("image", [b"not an image", b"", _jpeg(64, 64)[:-300]], ids=["text", "empty", "cut"])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, image: bytes) -> None:
    reader = _one_by_one(_written(tmp_path, _jpeg(64, 64), image))
    with pytest.raises(ValueError, match=r"train-000000\.tar: image 's1' at byte \d+ cannot be decoded: "):
        reader[1]


def test_an_image_of_another_size_is_named_with_both_sizes(tmp_path: Path) -> None:
    reader = _one_by_one(_written(tmp_path, _jpeg(8, 8), _jpeg(9, 7)))
    with pytest.raises(ValueError, match=r"image 's1' at byte \d+ is \(7, 9\), others \(8, 8\); shard with --resize"):
        reader[1]


@pytest.mark.parametrize("loader_workers", [1, 3])
def test_damage_is_named_through_loader_workers_too(loader_workers: int, tmp_path: Path) -> None:
    """The first of the plan, after all batches before it, whichever thread is first."""
    reader = _one_by_one(_written(tmp_path, _jpeg(), b"damaged", _jpeg(), b"damaged too"))
    batches = read(reader, loader_workers=loader_workers)
    assert next(batches).keys == ["s0"]
    with pytest.raises(ValueError, match=r"^\S+train-000000\.tar: image 's1' at byte \d+ cannot be decoded: [^\n]*$"):
        next(batches)
    assert _loaders() == 0


# --- Decoding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 30}], ids=str)
def test_pixels_are_those_of_pil_to_the_bit(mode: str, options: dict[str, Any]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, len(mode)), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise.squeeze(), mode=mode).save(buffer, "JPEG", **options)
    expected = np.asarray(Image.open(buffer).convert("RGB"))
    place = np.zeros_like(expected)
    assert (decode(buffer.getvalue()) == expected).all()
    assert (decode(buffer.getvalue(), place) == expected).all()
    assert mode == "CMYK" or (place == expected).all()  # no copy in between
    assert decode(buffer.getvalue(), place[:5]).shape == expected.shape


# --- Skipping -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loader_workers", [0, 3])
def test_broken_samples_are_left_out_and_named(loader_workers: int, tmp_path: Path) -> None:
    sound = _jpeg()
    folder = _written(tmp_path, b"no image", sound, sound, _jpeg(9, 9), sound[:-5], sound, sound, samples_per_shard=6)
    index = open_index(folder / "train.arrow")
    shard = bytearray((folder / "train-000000.tar").read_bytes())
    shard[index.offset[2] + 60] ^= 1
    (folder / "train-000000.tar").write_bytes(shard)
    (folder / "train-000001.tar").unlink()
    parts = Plan(num_samples=7, global_batch_size=7, lanes=7, shuffle=False).epoch(0, 0, 1)
    (batch,) = read(Reader(folder, index, parts, skip_broken=True), loader_workers=loader_workers)
    assert batch.skipped == (
        (0, "cannot be decoded"),
        (2, "does not match its CRC-32"),
        (3, "is of another size"),
        (4, "cannot be decoded"),
        (6, "is not there"),
    )
    assert (batch.rows.tolist(), batch.keys) == ([1, 5], ["s1", "s5"])
    assert batch.lane_sizes == (0, 1, 0, 0, 0, 1, 0)
    assert (batch.images.shape, batch.labels.shape, batch.flip.shape) == ((2, 3, 8, 8), (2, 2), (2,))
    assert (batch.first_row, batch.global_rows) == (0, 7)


def test_a_split_without_one_sound_image_is_an_error(tmp_path: Path) -> None:
    folder = _written(tmp_path, b"a", b"b")
    with pytest.raises(ValueError, match=r"train\.arrow: none of the 2 images can be read"):
        Reader(folder, open_index(folder / "train.arrow"), [], skip_broken=True)


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_pinned_batches_are_read_into_pinned_memory(
    loader_workers: int, tiny_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that torch gives out: torch knows when copies to a device are done, a buffer of ours would not."""
    given: list[int] = []
    empty = torch.empty

    def pinning(*size: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        memory = empty(*size, **options)
        given.extend([memory.data_ptr()] * pin_memory)
        return memory

    expected = [batch.images for batch in read(_reader(tiny_digits))]
    beside: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: (beside.append(tensor), tensor)[1])
    monkeypatch.setattr(torch, "empty", pinning)
    pinned = list(read(_reader(tiny_digits), loader_workers=loader_workers, pin_memory=True))
    assert [batch.images.data_ptr() for batch in pinned] == given
    assert all(torch.equal(a, b.images) for a, b in zip(expected, pinned, strict=True))
    small = [tensor for batch in pinned for tensor in (batch.labels, batch.flip)]
    assert all(any(tensor is one for one in beside) for tensor in small)


# --- Memory -------------------------------------------------------------------------------------------------------


def test_batches_that_are_held_are_never_overwritten(tiny_digits: Path) -> None:
    reader = _reader(tiny_digits)
    fresh = [_reader(tiny_digits)[step].images for step in range(4)]
    held = [reader[step].images for step in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(held, fresh, strict=True))
    view = reader[0].images[5:6]
    for step in (1, 2, 3, 1, 2, 3):
        reader[step]
    assert torch.equal(view, fresh[0][5:6])


def test_batches_of_loader_threads_that_are_held_are_never_overwritten(tiny_digits: Path) -> None:
    reader = _one_by_one(tiny_digits)
    expected = [torch.from_numpy(reader.image(row)) for row in range(96)]
    held = list(read(reader, loader_workers=3))
    assert all(torch.equal(a.images[0].permute(1, 2, 0), b) for a, b in zip(held, expected, strict=True))
    views = [batch.images[0, :, 3:9].permute(1, 2, 0) for batch in read(reader, loader_workers=3)]
    assert all(torch.equal(view, b[3:9]) for view, b in zip(views, expected, strict=True))


def test_loader_threads_need_the_memory_of_four_batches(tiny_digits: Path) -> None:
    places = set()
    for batch in read(_one_by_one(tiny_digits), loader_workers=5):
        places.add(batch.images.data_ptr())
    assert len(places) <= MAX_BUFFERS == 4


def test_memory_of_batches_that_are_gone_is_used_again(tiny_digits: Path) -> None:
    reader = _reader(tiny_digits)
    places = {reader[step].images.data_ptr() for step in (0, 1, 2, 3, 0, 1)}
    assert len(places) == 1
    held = [reader[step] for step in (0, 1, 2, 3)]
    assert len({batch.images.data_ptr() for batch in held}) == 4
