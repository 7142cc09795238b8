"""Compares loading images: raypaml, decoding alone, webdataset, loose image files and Ray Data.

    python tools/bench/loader.py [--images DIR] [--rounds 7] [--only ours,bare,...] [--ray]

Images are JPEGs from DIR, or else generated ones whose files are as large as those of photographs. Each is stored as an
original of 1024 px and, in shards, at 448 px. The loaders run in turns, with one thread each. Rates are images per
second of CPU time, which other work on the machine disturbs little, and a ratio is the median over the rounds. Loader
threads and Ray Data are also timed by the wall clock, the object store by the wall clock alone.
"""

from __future__ import annotations

import io
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from raypaml.cli import Parser, run_command
from raypaml.data.batches import Reader, read
from raypaml.data.data_folder import DataFolder, open_folder
from raypaml.data.plan import Plan
from raypaml.reports.tables import markdown
from tools.bench import simulated_store
from tools.bench.images import prepare

PROG = "python tools/bench/loader.py"
BATCH = 32
WARM_UP = 3
"""Batches read before the clock starts."""
NORMALIZE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LATENCY = 0.05  # seconds before every answer of the simulated object store


# --- The loaders: each yields batches ---------------------------------------------------------------------------------


def reader(data: DataFolder) -> Reader:
    """Returns raypaml's reader of one epoch, with a shuffle window of two shards and four lanes."""
    index = data.splits["train"]
    plan = Plan(
        num_samples=len(index), global_batch_size=BATCH, lanes=4, window=2, shard_sizes=index.shard_sizes, seed=1
    )
    return Reader(data.shards, index, plan.epoch(0, 0, 1))


def ours(work: Path) -> Iterator[Any]:
    """raypaml: shards of 448 px, read, checked and decoded to uint8 images [B, 3, H, W] with labels [B, 5000]."""
    for batch in read(reader(open_folder(work / "shards"))):
        yield batch.images, batch.labels


def _contents(work: Path) -> list[bytes]:
    """Returns the bytes of the first 2,000 images of the shards."""
    ours = reader(open_folder(work / "shards"))
    return [ours._read(row) for row in range(2000)]


def bare(work: Path) -> Iterator[Any]:
    """Decoding alone: the same JPEGs, in memory, by simplejpeg, which raypaml uses."""
    contents = _contents(work)
    yield
    for start in range(0, len(contents), BATCH):
        for content in contents[start : start + BATCH]:
            simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False)
        yield


def bare_pil(work: Path) -> Iterator[Any]:
    """Decoding alone: the same JPEGs, in memory, by PIL."""
    contents = _contents(work)
    yield
    for start in range(0, len(contents), BATCH):
        for content in contents[start : start + BATCH]:
            Image.open(io.BytesIO(content)).convert("RGB").load()
        yield


def with_webdataset(work: Path) -> Iterator[Any]:
    """The package webdataset, with PIL and torchvision's transforms, on the same shards."""
    transform = transforms.Compose([transforms.ToTensor(), NORMALIZE])
    shards = sorted(str(path) for path in (work / "shards").glob("train-*.tar"))
    pipeline = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg", "json")
    yield from DataLoader(pipeline.map_tuple(transform, str).batched(BATCH), batch_size=None)


class Originals(Dataset[Any]):
    """Reads loose image files; after the last it starts again with the first."""

    def __init__(self, folder: Path):
        self.paths = sorted(folder.iterdir())
        self.transform = transforms.Compose([transforms.Resize(448), transforms.ToTensor(), NORMALIZE])

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, number: int) -> Any:
        with Image.open(self.paths[number % len(self.paths)]) as image:
            return self.transform(image.convert("RGB"))


def published(work: Path) -> Iterator[Any]:
    """As the papers' code: PIL on loose originals of 1024 px, then Resize, ToTensor and Normalize."""
    yield from DataLoader(Originals(work / "originals"), batch_size=BATCH)


LOADERS: dict[str, tuple[Callable[[Path], Iterator[Any]], int]] = {
    "ours": (ours, 40),
    "bare": (bare, 40),
    "bare-pil": (bare_pil, 30),
    "webdataset": (with_webdataset, 8),
    "originals": (published, 3),
}
"""For each name, a function that yields batches, and the number of batches that a round times."""


# --- Timing ---------------------------------------------------------------------------------------------------------


def rate_per_core(batches: Iterator[Any], count: int) -> float:
    """Measures images per second of this process's CPU time, after the WARM_UP batches."""
    for _ in range(WARM_UP):
        next(batches)
    began = time.process_time()
    assert sum(1 for _ in islice(batches, count)) == count
    return count * BATCH / (time.process_time() - began)


def side_by_side(work: Path, names: Iterable[str], rounds: int) -> None:
    """Prints the rates of the loaders, and how many times as fast as each of them raypaml is."""
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, measured in rates.items():
            make, count = LOADERS[name]
            measured.append(rate_per_core(make(work), count))
    rows = []
    for name, measured in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], measured, strict=True))
        doc = (LOADERS[name][0].__doc__ or "").split("\n")[0]
        rows.append([name, doc, f"{statistics.median(measured):,.0f}", f"{ratio:.2f}"])
    print(markdown(["", "loader", "images/s per core", "raypaml : loader"], rows, left=2), "\n", flush=True)


def rate_by_clock(data: DataFolder, skip: int = 20) -> tuple[float, float]:
    """Measures images per second by the wall clock, of the whole epoch and after its first `skip` batches."""
    began = time.perf_counter()
    times = [began, *(time.perf_counter() for _ in read(reader(data)))]
    count = len(times) - 1
    return count * BATCH / (times[-1] - times[0]), (count - skip) * BATCH / (times[-1] - times[skip])


def read_by(threads: int, data: DataFolder) -> int:
    """Reads an epoch with this number of loader threads; returns its number of images."""
    return sum(len(batch.rows) for batch in read(reader(data), loader_workers=threads))


def decode_by(threads: int, contents: list[bytes]) -> int:
    """Only decodes, with this number of threads: the upper bound on this machine. Returns the number of images."""

    def decode(number: int) -> None:
        for content in contents[number::threads]:
            simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, range(threads)))
    return len(contents)


def timed(run: Callable[[], int]) -> tuple[float, float]:
    """Measures images per second by the wall clock, and microseconds of this process's CPU time per image."""
    clock, cpu = time.perf_counter(), time.process_time()
    count = run()
    return count / (time.perf_counter() - clock), (time.process_time() - cpu) / count * 1e6


def loader_threads(work: Path, rounds: int) -> None:
    """Compares one and two loader threads with one and two threads that only decode, in turns."""
    data, contents = open_folder(work / "shards"), _contents(work)
    runs: list[tuple[str, int, Callable[[], int]]] = []
    for threads in (1, 2):
        runs.append(("raypaml", threads, partial(read_by, threads, data)))
        runs.append(("decoding alone", threads, partial(decode_by, threads, contents)))
    timings = np.array([[timed(run) for _, _, run in runs] for _ in range(rounds)])  # [rounds, runs, (rate, CPU time)]
    rates, spent = np.median(timings, 0).T
    ratios = np.median(timings[:, :, 0] / np.tile(timings[:, :2, 0], 2), 0)  # to one thread of the same round
    rows = [
        [name, str(threads), f"{rate:,.0f}", f"{ratio:.2f}", f"{cpu:.0f}"]
        for (name, threads, _), rate, ratio, cpu in zip(runs, rates, ratios, spent, strict=True)
    ]
    heads = ["", "threads", "images/s (wall clock)", "relative to one thread", "CPU time per image, us"]
    print(markdown(heads, rows, left=1), "\n", flush=True)


def through_store(work: Path, rounds: int) -> None:
    """Compares reading an epoch from a local folder and from an object store with LATENCY, by the wall clock."""
    local = open_folder(work / "shards")
    shard = max(local.splits["train"].shard_bytes)
    rows = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=work) as cache, store_process(work / "shards") as address:
            data = open_folder(address, cache=cache, cache_gb=11 * shard / 1e9)
            rows.append([*rate_by_clock(local), *rate_by_clock(data)])
    ratios = [statistics.median(row[2 + n] / row[n] for row in rows) for n in (0, 1)]
    rates = [statistics.median(column) for column in zip(*rows, strict=True)]
    cold, warm = (f"{rate:,.0f} images/s, {ratio:.2f} of local" for rate, ratio in zip(rates[2:], ratios, strict=True))
    store = f"object store, {LATENCY * 1000:.0f} ms per request, cache of 11 shards"
    print(f"{store}: starting with an empty cache {cold}; after 20 batches {warm}\n", flush=True)


@contextmanager
def store_process(folder: Path) -> Iterator[str]:
    """Runs a simulated store in a process of its own; yields its address."""
    command = [sys.executable, simulated_store.__file__, str(folder), "--latency", str(LATENCY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def cpu_seconds() -> float:
    """Returns the CPU time of this process and of its living descendants, in seconds."""
    parents, spent = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended meanwhile
            fields = path.read_text().rpartition(")")[2].split()  # the fields from the third on, see proc(5)
            parents[path.parent.name], spent[path.parent.name] = fields[1], int(fields[11]) + int(fields[12])

    def is_ours(process: str) -> bool:
        return process == str(os.getpid()) or (process in parents and is_ours(parents[process]))

    return sum(ticks for process, ticks in spent.items() if is_ours(process)) / os.sysconf("SC_CLK_TCK")


def with_ray(work: Path) -> None:
    """Measures Ray Data's read_webdataset, which decodes with PIL to uint8; there are no transforms."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    shards = sorted(str(path) for path in (work / "shards").glob("train-*.tar"))
    with ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR):
        batches = iter(ray.data.read_webdataset(shards).iter_batches(batch_size=BATCH, batch_format="numpy"))
        for _ in range(20):
            next(batches)
        clock, cpu = time.perf_counter(), cpu_seconds()
        count = sum(len(batch["jpg"]) for batch in batches)
        clock, cpu = time.perf_counter() - clock, cpu_seconds() - cpu
    rates = f"{count / clock:,.0f} images/s by the wall clock, {count / cpu:,.0f} per second of all processes' CPU time"
    print(f"Ray Data, {os.cpu_count()} CPUs, after 20 batches: {rates}\n", flush=True)


def main() -> None:
    parser = Parser(prog=PROG, description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of photographs [generated images]")
    parser.add_argument("--count", type=int, default=300, help="number of different images [300]")
    parser.add_argument("--samples", type=int, default=6000, help="samples of an epoch [6000]")
    parser.add_argument("--rounds", type=int, default=7, help="epochs of each loader, of which the median counts [7]")
    usual = ",".join([*LOADERS, "threads", "store"])
    parser.add_argument("--only", default=usual, metavar="NAMES", help=f"parts to measure [{usual}]")
    parser.add_argument("--ray", action="store_true", help="measure Ray Data as well")
    asked = parser.parse()
    torch.set_num_threads(1)
    names = asked.only.split(",")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare(work, asked.images, asked.count, asked.samples)
        for kind, pattern in (("originals", "originals/*.jpg"), ("shards", "shards/train-*.tar")):
            sizes = [path.stat().st_size for path in work.glob(pattern)]
            print(f"{kind}: {len(sizes)} files, {statistics.mean(sizes) / 1000:,.0f} kB each", file=sys.stderr)
        loaders = [name for name in LOADERS if name in names or name == "ours"]
        if len(loaders) > 1:
            side_by_side(work, loaders, asked.rounds)
        if "threads" in names:
            loader_threads(work, asked.rounds)
        if "store" in names:
            through_store(work, min(asked.rounds, 3))
        if asked.ray:
            with_ray(work)


if __name__ == "__main__":
    run_command(main, PROG)
