"""Shards of a store: the same batches as from a disk, every byte fetched once a node, within the bound of the cache."""

from __future__ import annotations

import io
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raypaml.data.batches import BrokenSampleError, Reader, read
from raypaml.data.cache import STALE_SECONDS, CachedShards, FetchAhead
from raypaml.data.data_folder import DataFolder, open_folder
from raypaml.data.plan import Plan, Span
from raypaml.data.shards import Sample, write_dataset
from raypaml.data.storage import Location
from tests.conftest import run_distributed
from tests.test_loop import config, train_here, weights
from tools.bench.simulated_store import Store

SHARDS, PER_SHARD = 12, 6


def _jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("folder")

    def samples(split: str, count: int) -> list[Sample]:
        return [Sample(key=f"{split}-{n}", image=_jpeg(n), positive=("a",), negative=()) for n in range(count)]

    splits = {"train": samples("train", SHARDS * PER_SHARD), "validation": samples("v", 2), "test": samples("t", 2)}
    write_dataset(out, splits, ("a", "b"), ("a", "b"), PER_SHARD)
    return out


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    server = Store(folder).start()
    yield server
    server.shutdown()
    server.server_close()


def opened(store: Store, cache: Path, shards: float = 100.0, **options: Any) -> DataFolder:
    """The folder behind the store, with a cache for so many shards."""
    largest = max(path.stat().st_size for path in store.folder.glob("*.tar"))
    return open_folder(store.address, cache=str(cache), cache_gb=shards * largest / 1e9, **options)


def reader(data: DataFolder, window: int = 1, rank: int = 0, world_size: int = 1, **options: Any) -> Reader:
    index = data.splits["train"]
    plan = Plan(
        num_samples=len(index), global_batch_size=8, lanes=4, window=window, shard_sizes=index.shard_sizes, seed=3
    )
    return Reader(data.shards, index, plan.epoch(0, rank, world_size), **options)


def images(reader: Reader, **options: Any) -> list[Any]:
    return [(batch.keys, batch.images.tolist()) for batch in read(reader, **options)]


def cached_tars(cache: Path) -> dict[str, int]:
    sizes = {}
    for path in cache.iterdir():
        with suppress(FileNotFoundError):  # given up meanwhile
            if path.is_file():
                sizes[path.name.partition("-")[2]] = path.stat().st_size
    return sizes


def train_shards(store: Store) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in store.folder.glob("train-*.tar")}


# --- The same as from a disk --------------------------------------------------------------------------------------


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_batches_are_those_of_the_local_folder(loader_workers: int, store: Store, folder: Path, tmp_path: Path) -> None:
    expected = images(reader(open_folder(folder)))
    assert images(reader(opened(store, tmp_path)), loader_workers=loader_workers) == expected
    assert {name: store.sent[name] for name in train_shards(store)} == train_shards(store)


def test_training_from_a_store_gives_the_weights_of_the_local_folder(tiny_digits: Path, tmp_path: Path) -> None:
    store = Store(tiny_digits).start()
    settings = config(cache=str(tmp_path / "cache"))
    assert train_here(0, 1, config(), tiny_digits, tmp_path / "local", None)
    run_distributed(train_here, 2, settings, store.address, tmp_path / "remote", None)
    assert weights(tmp_path / "local") == weights(tmp_path / "remote")
    assert store.sent["train-000000.tar"] == (tiny_digits / "train-000000.tar").stat().st_size
    store.shutdown()
    store.server_close()


def test_a_store_that_fails_now_and_then_changes_nothing(store: Store, folder: Path, tmp_path: Path) -> None:
    counted = iter(range(10**6))
    store.disturb = lambda *_: 503 if next(counted) % 4 == 1 else 0
    assert images(reader(opened(store, tmp_path))) == images(reader(open_folder(folder)))


# --- Once a node --------------------------------------------------------------------------------------------------


def _read_in_process(address: str, cache: Path, rank: int, results: Any) -> None:
    data = open_folder(address, cache=str(cache))
    results.put(sum(len(keys) for keys, _ in images(reader(data, rank=rank % 2, world_size=2))))


def test_the_processes_of_a_node_fetch_every_shard_once(store: Store, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    calls = [(store.address, tmp_path, rank, results) for rank in range(4)]
    started = [context.Process(target=_read_in_process, args=call) for call in calls]
    for process in started:
        process.start()
    assert sum(results.get() for _ in started) == 2 * SHARDS * PER_SHARD
    for process in started:
        process.join()
    assert {name: store.sent[name] for name in train_shards(store)} == train_shards(store)


# --- Bounded ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2])
def test_the_cache_never_holds_more_than_its_bound(window: int, store: Store, folder: Path, tmp_path: Path) -> None:
    data = opened(store, tmp_path, 10)
    most, done = [0], threading.Event()
    thread = threading.Thread(target=_watch, args=(data.shards, most, done))
    thread.start()
    assert images(reader(data, window)) == images(reader(open_folder(folder), window))
    done.set()
    thread.join()
    assert isinstance(data.shards, CachedShards)
    assert 0 < most[0] <= data.shards.capacity


def _watch(shards: CachedShards, most: list[int], done: threading.Event) -> None:
    is_over = False
    while not is_over:
        is_over = done.is_set()  # asked before, so that it looks once more when all is read
        with shards._lock("cache"):  # nobody makes room meanwhile
            most[0] = max(most[0], sum(entry.stat().st_size for entry in shards._entries()))


def test_a_cache_smaller_than_the_plan_needs_is_refused_with_the_remedy(store: Store, tmp_path: Path) -> None:
    data = opened(store, tmp_path, 3)
    said = r"cache_gb=\S+: this node's workers \(1\) read \S+ GB of shards at a time; raise --cache-gb, lower --shuffle"
    with pytest.raises(ValueError, match=said):
        images(reader(data, window=0))


def test_a_shard_larger_than_the_cache_is_refused(store: Store, tmp_path: Path) -> None:
    data = opened(store, tmp_path, 0.5)
    with pytest.raises(
        ValueError, match=r"train-000000\.tar\S*: [\d,]+ bytes, the cache holds [\d,]+; raise --cache-gb"
    ):
        reader(data)


def test_used_up_shards_go_first_then_those_read_longest_ago(store: Store, tmp_path: Path) -> None:
    shards = opened(store, tmp_path, 4).shards
    assert isinstance(shards, CachedShards)
    sizes = train_shards(store)
    names = sorted(sizes)
    for age, name in enumerate(names[:4]):
        shards.fetch(name, sizes[name])
        os.utime(next(tmp_path.glob(f"*-{name}")), (0, time.time() - 100 + age))
    shards.used_up(names[2])
    assert shards.fetch(names[4], sizes[names[4]], ahead=True)
    assert sorted(cached_tars(tmp_path)) == [names[0], names[1], names[3], names[4]]
    assert not shards.fetch(names[5], sizes[names[5]], ahead=True)  # the rest may still be needed
    assert shards.fetch(names[5], sizes[names[5]])
    assert sorted(cached_tars(tmp_path)) == [names[1], names[3], names[4], names[5]]
    os.utime(next(tmp_path.glob(f"*-{names[3]}")), (0, time.time() - 2 * STALE_SECONDS))
    assert shards.fetch(names[6], sizes[names[6]], ahead=True)
    assert names[3] not in cached_tars(tmp_path)


def test_a_shard_that_is_read_is_not_the_oldest(store: Store, tmp_path: Path) -> None:
    shards = opened(store, tmp_path, 2).shards
    assert isinstance(shards, CachedShards)
    sizes = train_shards(store)
    names = sorted(sizes)
    for age, name in enumerate(names[:2]):
        shards.fetch(name, sizes[name])
        os.utime(next(tmp_path.glob(f"*-{name}")), (0, time.time() - 100 + age))
    shards.read(names[0], sizes[names[0]], 0, 10)
    shards.fetch(names[2], sizes[names[2]])
    assert sorted(cached_tars(tmp_path)) == [names[0], names[2]]


def test_what_a_killed_process_left_is_cleared(store: Store, tmp_path: Path) -> None:
    shards = opened(store, tmp_path, 2).shards
    assert isinstance(shards, CachedShards)
    sizes = train_shards(store)
    names = sorted(sizes)
    left = tmp_path / f"{shards.prefix}-{names[5]}.unfinished"
    left.write_bytes(bytes(2 * sizes[names[5]]))
    assert shards.fetch(names[0], sizes[names[0]])
    assert not left.exists()


# --- Ahead --------------------------------------------------------------------------------------------------------


def test_shards_are_fetched_ahead_in_the_order_of_need_and_given_up_after(store: Store, tmp_path: Path) -> None:
    data = opened(store, tmp_path, 4)
    index, shards = data.splits["train"], data.shards
    assert isinstance(shards, CachedShards)
    spans = [Span(shard=11 - n, first_step=n, last_step=n) for n in range(SHARDS)]
    ahead = FetchAhead(shards, index.shards, index.shard_bytes, spans)
    for step in range(SHARDS):
        wanted = {index.shards[11 - n] for n in range(step, min(step + 4, SHARDS))}
        deadline = time.monotonic() + 20
        while not wanted <= set(cached_tars(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert wanted <= set(cached_tars(tmp_path))
        ahead.at(step + 1)
    ahead.close()
    assert {name: store.sent[name] for name in train_shards(store)} == train_shards(store)


def test_resuming_fetches_only_what_is_left(store: Store, tmp_path: Path) -> None:
    data = opened(store, tmp_path)
    parts = reader(data).parts
    needed = {data.splits["train"].shards[s] for part in parts[7:] for s in data.splits["train"].shard[part.rows]}
    first = data.splits["train"].shards[0]  # its first image tells the size of all
    images(reader(data), start_step=7)
    fetched = {name for name in train_shards(store) if store.sent[name]}
    assert needed <= fetched
    spans = {data.splits["train"].shards[span.shard] for span in parts.spans() if span.last_step >= 7}  # type: ignore[attr-defined]
    assert fetched <= spans | {first}
    assert len(fetched) < SHARDS


# --- Damage -------------------------------------------------------------------------------------------------------


def test_a_damaged_copy_is_fetched_again(store: Store, folder: Path, tmp_path: Path) -> None:
    data = opened(store, tmp_path)
    images(reader(data))
    for path in tmp_path.glob("*.tar"):
        content = bytearray(path.read_bytes())
        content[600:700] = bytes(100)
        path.write_bytes(content)
    assert images(reader(data)) == images(reader(open_folder(folder)))


@pytest.mark.parametrize("name", ["train.arrow", "vocabulary.csv"])
def test_a_damaged_copy_of_index_or_vocabulary_is_fetched_again(store: Store, tmp_path: Path, name: str) -> None:
    right = opened(store, tmp_path).vocabulary.content_digest
    (copied,) = tmp_path.glob(f"*-index/{name}")
    content = copied.read_bytes()
    copied.write_bytes(content[: len(content) // 2] + b"7" + content[len(content) // 2 + 1 :])
    assert opened(store, tmp_path).vocabulary.content_digest == right
    assert copied.read_bytes() == content


def test_a_store_that_stays_silent_is_named_with_the_shard(store: Store, tmp_path: Path) -> None:
    data = opened(store, tmp_path)
    assert isinstance(data.shards, CachedShards)
    patient = reader(data)
    data.shards.patience = 0.1
    store.disturb = lambda _, name: 503 if name == "train-000004.tar" else 0
    said = (
        r"train-000004\.tar\S*: image 'train-\d+' at byte \d+ cannot be read: \S+train-000004\.tar\S*: given up after"
    )
    with pytest.raises(ValueError, match=said) as caught:
        images(patient)
    assert not isinstance(caught.value, BrokenSampleError)  # what the network does is no property of a sample


def test_a_shard_missing_in_the_store(store: Store, folder: Path, tmp_path: Path) -> None:
    lost = folder / "train-000002.tar"
    content = lost.read_bytes()
    lost.unlink()
    try:
        with pytest.raises(ValueError, match=r"train-000002\.tar\S*: missing, the index says [\d,]+ bytes"):
            opened(store, tmp_path)
        data = opened(store, tmp_path, lenient=True)
        with pytest.raises(
            BrokenSampleError, match=r"train-000002\.tar\S*: image 'train-\d+' at byte \d+ is not there"
        ):
            images(reader(data))
        skipped = [skip for batch in read(reader(data, skip_broken=True)) for skip in batch.skipped]
        assert sorted(skipped) == [(row, "is not there") for row in range(2 * PER_SHARD, 3 * PER_SHARD)]
    finally:
        lost.write_bytes(content)


# --- Opening ------------------------------------------------------------------------------------------------------


def test_index_and_vocabulary_are_fetched_once_and_again_when_they_change(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    opened(store, tmp_path)
    before = Counter(store.sent)
    opened(store, tmp_path)
    assert store.sent == before
    (folder / "note.txt").write_text("changed")
    try:
        opened(store, tmp_path)
    finally:
        (folder / "note.txt").unlink()
    assert store.sent["train.arrow"] == 2 * before["train.arrow"]


def test_addresses_that_lead_nowhere(store: Store, tmp_path: Path) -> None:
    nowhere = str(Location(store.address) / "nowhere")
    with pytest.raises(ValueError, match=r"nowhere\S*: no such folder; shard a data set into it"):
        open_folder(nowhere, cache=str(tmp_path))
    with pytest.raises(ValueError, match=r"pipe:cat x: cannot read pipe: addresses"):
        open_folder("pipe:cat x")


def test_a_file_address_is_read_in_place(folder: Path) -> None:
    data = open_folder(f"file://{folder}")
    assert data.path == folder
    assert images(reader(data)) == images(reader(open_folder(folder)))
