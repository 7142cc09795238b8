"""Loading images: ours beside bare decoding, webdataset, loose originals and Ray Data, in one run.

    python tools/bench_loader.py [--images DIR] [--rounds 7] [--only ours,bare,...] [--ray]

Images are photographs from DIR (any JPEGs), or else generated: smooth, some noise, of the sizes of photographs. Each is
kept as an original of 1024 px and, in shards, at 448 px. Contestants take turns, round after round, in one thread each;
their rates are per second of CPU time, so that other work on the machine moves them little, and ratios are the median
over rounds. Loader processes and the store are timed by the clock.
"""

from __future__ import annotations

import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
import webdataset
from PIL import Image
from simulated_store import Store
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from raypaml.data.batches import Reader, read
from raypaml.data.folder import DataFolder, open_folder
from raypaml.data.plan import Plan
from raypaml.data.shards import Sample, write_dataset
from raypaml.flags import Parser, run_command
from raypaml.reports.result import markdown

PROG = "python tools/bench_loader.py"
BATCH, CLASSES, PER_SHARD = 32, 5000, 500
NORMALIZE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LATENCY = 0.05


# --- The images -----------------------------------------------------------------------------------------------------


def generated(number: int) -> Image.Image:
    """Noise on many scales, mostly large ones, as in a photograph."""
    rng = np.random.default_rng(number)
    pixels = rng.normal(0, 1.5, (1024, 1024, 3))
    for cells, weight in ((4, 0.46), (16, 0.31), (64, 0.15), (256, 0.08)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        pixels += 1.6 * weight * np.asarray(noise.resize((1024, 1024), Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray((pixels - 80).clip(0, 255).astype(np.uint8))


def photographs(folder: Path | None, count: int) -> Iterator[Image.Image]:
    """So many square images of 1024 px."""
    if folder is None:
        yield from map(generated, range(count))
        return
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise ValueError(f"{folder}: no JPEGs")
    for path in islice(paths, count):
        with Image.open(path) as image:
            yield image.convert("RGB").resize((1024, 1024), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int) -> bytes:
    """Encoded, 4:2:0."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def prepare(work: Path, images: Path | None, count: int, samples: int) -> None:
    """Write originals and shards; samples beyond the images repeat them."""
    (work / "originals").mkdir()
    (work / "shards").mkdir()
    small: list[bytes] = []
    for number, image in enumerate(photographs(images, count)):
        (work / "originals" / f"{number:06d}.jpg").write_bytes(jpeg(image, 88))
        small.append(jpeg(image.resize((448, 448), Image.Resampling.LANCZOS), 90))
    rng = np.random.default_rng(0)
    ids = [f"/m/{k:05d}" for k in range(CLASSES)]

    def sample(split: str, number: int) -> Sample:
        positive, negative = np.split(rng.permutation(CLASSES)[:8], [3])
        return Sample(
            key=f"{split}-{number}",
            image=small[number % len(small)],
            positive=tuple(ids[k] for k in positive),
            negative=tuple(ids[k] for k in negative),
        )

    sizes = {"train": samples, "validation": 1, "test": 1}
    splits = {split: (sample(split, n) for n in range(size)) for split, size in sizes.items()}
    write_dataset(work / "shards", splits, ids, ids, PER_SHARD)


# --- The contestants: each gives batches ------------------------------------------------------------------------------


def reader(data: DataFolder) -> Reader:
    """Ours: an epoch in windows of two shards, four lanes."""
    index = data.splits["train"]
    plan = Plan(
        num_samples=len(index), global_batch_size=BATCH, lanes=4, window=2, shard_sizes=index.shard_sizes, seed=1
    )
    return Reader(data.shards, index, plan.epoch(0, 0, 1))


def ours(work: Path) -> Iterator[Any]:
    """uint8 images [B, 3, H, W] and labels [B, 5000]."""
    for batch in read(reader(open_folder(work / "shards"))):
        yield batch.images, batch.labels


def _contents(work: Path) -> list[bytes]:
    """The first 2,000 images as they are in the shards."""
    ours = reader(open_folder(work / "shards"))
    return [ours._read(row) for row in range(2000)]


def bare(work: Path) -> Iterator[Any]:
    """The same bytes, in memory, decoded by the decoder that ours uses, and nothing else."""
    contents = _contents(work)
    yield
    for start in range(0, len(contents), BATCH):
        for content in contents[start : start + BATCH]:
            simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False)
        yield


def bare_pil(work: Path) -> Iterator[Any]:
    """The same bytes, in memory, decoded by PIL."""
    contents = _contents(work)
    yield
    for start in range(0, len(contents), BATCH):
        for content in contents[start : start + BATCH]:
            Image.open(io.BytesIO(content)).convert("RGB").load()
        yield


def with_webdataset(work: Path) -> Iterator[Any]:
    """webdataset, PIL and torchvision's transforms, on the same shards."""
    transform = transforms.Compose([transforms.ToTensor(), NORMALIZE])
    shards = sorted(str(path) for path in (work / "shards").glob("train-*.tar"))
    pipeline = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg", "json")
    yield from DataLoader(pipeline.map_tuple(transform, str).batched(BATCH), batch_size=None)


class Originals(Dataset[Any]):
    """Loose files of 1024 px, as published: PIL, Resize, ToTensor, Normalize."""

    def __init__(self, folder: Path):
        self.paths = sorted(folder.iterdir())
        self.transform = transforms.Compose([transforms.Resize(448), transforms.ToTensor(), NORMALIZE])

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, number: int) -> Any:
        with Image.open(self.paths[number % len(self.paths)]) as image:
            return self.transform(image.convert("RGB"))


def published(work: Path) -> Iterator[Any]:
    """`Originals` in a DataLoader."""
    yield from DataLoader(Originals(work / "originals"), batch_size=BATCH)


CONTESTANTS: dict[str, tuple[Callable[[Path], Iterator[Any]], int]] = {
    "ours": (ours, 20),
    "bare": (bare, 20),
    "bare-pil": (bare_pil, 20),
    "webdataset": (with_webdataset, 8),
    "originals": (published, 3),
}
"""By name: batches, and how many of them a round times."""


# --- Timing ---------------------------------------------------------------------------------------------------------


def rate_per_core(batches: Iterator[Any], count: int) -> float:
    """Images per second of this process's CPU time, after the first batch."""
    next(batches)
    began = time.process_time()
    assert sum(1 for _ in islice(batches, count)) == count
    return count * BATCH / (time.process_time() - began)


def side_by_side(work: Path, names: Iterable[str], rounds: int) -> None:
    """Rates of all contestants, and how many times as fast as each ours is."""
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, found in rates.items():
            make, count = CONTESTANTS[name]
            found.append(rate_per_core(make(work), count))
    rows = []
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], found, strict=True))
        doc = (CONTESTANTS[name][0].__doc__ or "").split("\n")[0]
        rows.append([name, doc, f"{statistics.median(found):,.0f}", f"{ratio:.2f}"])
    print(markdown(["", "what", "images/s a core", "ours : it"], rows, left=2), "\n", flush=True)


def rate_by_clock(data: DataFolder, loader_workers: int, skip: int = 20) -> tuple[float, float]:
    """Images per second from the start, and after the first `skip` batches."""
    began = time.perf_counter()
    times = [began, *(time.perf_counter() for _ in read(reader(data), loader_workers=loader_workers))]
    count = len(times) - 1
    return count * BATCH / (times[-1] - times[0]), (count - skip) * BATCH / (times[-1] - times[skip])


def loader_processes(work: Path, rounds: int) -> None:
    """One and two loader processes, by the clock."""
    data = open_folder(work / "shards")
    found = [[rate_by_clock(data, workers)[1] for workers in (1, 2)] for _ in range(rounds)]
    one, two = (statistics.median(column) for column in zip(*found, strict=True))
    ratio = statistics.median(b / a for a, b in found)
    print(f"loader processes, by the clock: 1: {one:,.0f} images/s, 2: {two:,.0f}, {ratio:.2f} times\n", flush=True)


def through_store(work: Path, rounds: int) -> None:
    """The same epoch from the folder and from a store of 50 ms latency, by the clock."""
    local = open_folder(work / "shards")
    shard = max(local.splits["train"].shard_bytes)
    rows = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=work) as cache, store_process(work / "shards") as address:
            data = open_folder(address, cache=cache, cache_gb=11 * shard / 1e9)
            rows.append([*rate_by_clock(local, 0), *rate_by_clock(data, 0)])
    ratios = [statistics.median(row[2 + n] / row[n] for row in rows) for n in (0, 1)]
    rates = [statistics.median(column) for column in zip(*rows, strict=True)]
    print(
        f"store, {LATENCY * 1000:.0f} ms a request, cache of 11 of {len(local.splits['train'].shards)} shards: "
        f"{rates[2]:,.0f} images/s from an empty cache on, {ratios[0]:.2f} of local; "
        f"{rates[3]:,.0f} after 20 batches, {ratios[1]:.2f} of local\n",
        flush=True,
    )


class store_process:  # noqa: N801
    """A store in a process of its own; gives its address."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> str:
        reading, writing = os.pipe()
        self.process = os.fork()
        if not self.process:
            store = Store(self.folder, LATENCY)
            os.write(writing, store.address.encode())
            store.serve_forever()
        return os.read(reading, 1000).decode()

    def __exit__(self, *_: object) -> None:
        os.kill(self.process, 9)
        os.waitpid(self.process, 0)


def with_ray(work: Path) -> None:
    """Ray Data's read_webdataset on one CPU, decoded by its default, by the clock."""
    from raypaml import cluster

    with cluster.join("local", 1):
        import ray

        shards = sorted(str(path) for path in (work / "shards").glob("train-*.tar"))
        batches = iter(ray.data.read_webdataset(shards).iter_batches(batch_size=BATCH, batch_format="numpy"))
        next(batches)
        began, count = time.perf_counter(), sum(1 for _ in batches)
    print(
        f"Ray Data, {os.cpu_count()} CPUs, by the clock: {count * BATCH / (time.perf_counter() - began):,.0f} images/s"
    )


def main() -> None:
    parser = Parser(prog=PROG, description="Loading images: ours beside others.")
    parser.add_argument("--images", type=Path, metavar="DIR", help="photographs [generated]")
    parser.add_argument("--count", type=int, default=300, help="different images [300]")
    parser.add_argument("--samples", type=int, default=6000, help="of the epoch [6000]")
    parser.add_argument("--rounds", type=int, default=7, help="[7]")
    parser.add_argument("--only", default=",".join([*CONTESTANTS, "processes", "store"]), metavar="NAMES")
    parser.add_argument("--ray", action="store_true", help="also Ray Data")
    asked = parser.parse()
    torch.set_num_threads(1)
    names = asked.only.split(",")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare(work, asked.images, asked.count, asked.samples)
        for kind, pattern in (("originals", "originals/*.jpg"), ("shards", "shards/train-*.tar")):
            sizes = [path.stat().st_size for path in work.glob(pattern)]
            print(f"{kind}: {len(sizes)} files, {statistics.mean(sizes) / 1000:,.0f} kB each", file=sys.stderr)
        contestants = [name for name in CONTESTANTS if name in names or name == "ours"]
        if len(contestants) > 1:
            side_by_side(work, contestants, asked.rounds)
        if "processes" in names:
            loader_processes(work, asked.rounds)
        if "store" in names:
            through_store(work, min(asked.rounds, 3))
        if asked.ray:
            with_ray(work)


if __name__ == "__main__":
    run_command(main, PROG)
