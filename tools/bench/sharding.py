"""Compares steps of sharding with their bounds: pandas' join, Pillow's resizing, tar's copying and a store's bandwidth.

    python tools/bench/sharding.py                            # all parts at Open Images V3's size; 4 GB in --dir
    python tools/bench/sharding.py --only join --scale 0.1

The two sides of a comparison run in turns, because on a busy machine only their ratio is meaningful.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from raypaml.cli import Parser, run_command
from raypaml.cluster.tasks import mapper
from raypaml.data.storage import Location
from raypaml.mapper import Mapper
from raypaml.preparation.image_form import QUALITY, SIZE, ImageForm
from raypaml.preparation.image_store import Store
from raypaml.preparation.openimages.image_ids import hex_keys
from raypaml.preparation.openimages.release_labels import read_classes, read_split
from raypaml.preparation.requests import as_requests
from raypaml.preparation.shard_tasks import ShardJob, read_receipt, write_store_shard
from raypaml.reports.tables import markdown

PROG = "python tools/bench/sharding.py"
IMAGES, LABELS, LABELLED = 9_011_219, 20_868_755, 3_657_355
"""Open Images V3, training split: images listed, human-verified labels, and images that have such labels."""
CLASSES, TRAINABLE = 19_995, 5_000
URLS = "OriginalURL,OriginalLandingURL,License,AuthorProfileURL"
COLUMNS = f"ImageID,Subset,{URLS},Author,Title,OriginalSize,OriginalMD5,Thumbnail300KURL"
BLOCK = 200_000
ROUNDS = 3
CAP = 25e6  # bytes per second of the simulated store
Run = Callable[[], float]


# --- Joining labels ---------------------------------------------------------------------------------------------------


def write_release(folder: Path, scale: float) -> None:
    """Writes a synthetic training split in the format of V3; image rows of about 300 bytes, labels grouped by image."""
    rng = np.random.default_rng(0)
    split = folder / "2017_11" / "train"
    split.mkdir(parents=True)
    mids = [f"/m/0{k:05x}" for k in range(CLASSES)]
    (folder / "2017_11" / "class-descriptions.csv").write_text("".join(f'{m},"Class, {m}"\n' for m in mids))
    (folder / "2017_11" / "classes-trainable.txt").write_text("\n".join(mids[:TRAINABLE]) + "\n")
    ids = np.unique(rng.integers(0, 2**64, round(IMAGES * scale), np.uint64))
    with (split / "images.csv").open("w") as file:
        file.write(COLUMNS + "\n")
        for start in range(0, len(ids), BLOCK):
            file.writelines(_image_row(key) for key in hex_keys(ids[start : start + BLOCK]).to_pylist())
    labelled = np.sort(rng.choice(len(ids), round(LABELLED * scale), replace=False))
    image = np.sort(np.r_[labelled, rng.choice(labelled, round(LABELS * scale) - len(labelled))])
    share = rng.lognormal(0, 1.5, CLASSES) / np.arange(1, CLASSES + 1) ** 0.8
    labels = rng.choice(CLASSES, len(image), p=share / share.sum())
    with (split / "annotations-human.csv").open("w") as file:
        file.write("ImageID,Source,LabelName,Confidence\n")
        for start in range(0, len(image), BLOCK):
            rows = slice(start, start + BLOCK)
            file.writelines(map(_label_row, hex_keys(ids[image[rows]]).to_pylist(), labels[rows].tolist()))


def _label_row(key: str, label: int) -> str:
    source = "crowdsource-verification" if label % 7 == 0 else "verification"
    return f"{key},{source},/m/0{label:05x},{int(key[-1], 16) + label & 1}\n"


def _image_row(key: str) -> str:
    return (
        f"{key},train,https://c1.staticflickr.com/4/{key[:4]}/{key}_{key[6:]}_o.jpg,https://www.flickr.com/photos/"
        f'{key[:9]}/{key},https://creativecommons.org/licenses/by/2.0/,"https://www.flickr.com/people/{key[:9]}/",'
        f'"Author, {key[:5]}","A photograph, number {key[9:]}",1345678,{key}==,\n'
    )


def ours(metadata: Path) -> int:
    """Joins the labels as `raypaml shard openimages` does."""
    return len(read_split(metadata, "train", read_classes(metadata)).table)


def pandas(metadata: Path) -> int:
    """Joins the labels with pandas (read_csv, isin, groupby), without the checks of raypaml."""
    import pandas as pd

    split = metadata / "2017_11" / "train"
    classes = (metadata / "2017_11" / "classes-trainable.txt").read_text().split()
    images = pd.read_csv(split / "images.csv", usecols=["ImageID"])
    labels = pd.read_csv(split / "annotations-human.csv", usecols=["ImageID", "LabelName", "Confidence"])
    labels = labels[labels["LabelName"].isin(classes) & labels["ImageID"].isin(images["ImageID"])]
    labels = labels.drop_duplicates(["ImageID", "LabelName"])
    labels["class"] = labels["LabelName"].map({c: k for k, c in enumerate(classes)})
    lists = {value: labels[labels["Confidence"] == value].groupby("ImageID")["class"].agg(list) for value in (1, 0)}
    return len(pd.DataFrame({"positives": lists[1], "negatives": lists[0]}))


def bench_join(folder: Path, scale: float) -> Iterator[list[str]]:
    """Measures time and peak memory of each join in a process of its own; yields a row of the table for each."""
    write_release(folder, scale)
    results = {name: _alone(name, folder) for name in ("ours", "pandas")}
    for name, result in results.items():
        ratio = results["pandas"]["seconds"] / result["seconds"]
        what = f"join {IMAGES * scale / 1e6:.2g} M images, {LABELS * scale / 1e6:.3g} M labels: {name}"
        images = f"{result['images']:,} images with labels, {result['peak']:,.0f} MB peak"
        yield [what, f"{result['seconds']:.1f} s", images, f"{ratio:.2f} times as fast as pandas"]


def _alone(name: str, folder: Path) -> Any:
    command = [sys.executable, __file__, "--one", name, "--dir", str(folder)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def run_one(name: str, folder: Path) -> None:
    """Times one way of joining in this process and prints its figures as JSON."""
    began = time.perf_counter()
    images = {"ours": ours, "pandas": pandas}[name](folder)
    seconds = time.perf_counter() - began
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    print(json.dumps({"seconds": seconds, "peak": peak, "images": images}))


# --- Writing shards ---------------------------------------------------------------------------------------------------


def write_images(folder: Path, count: int) -> list[str]:
    """Writes JPEGs of 1024 x 768 px and about 290 kB, like the originals of Open Images; returns their keys."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    keys = [f"{k:016x}" for k in range(count)]
    for key in keys:
        coarse = Image.fromarray(rng.integers(0, 256, (96, 128, 3), np.uint8)).resize((1024, 768), 3)
        noise = rng.integers(0, 24, (768, 1024, 1), np.uint8)
        picture = Image.fromarray((np.asarray(coarse) // 2 + noise + 40).astype(np.uint8))
        picture.save(folder / f"{key}.jpg", quality=88)
    return keys


def sharding(work: Path, keys: list[str], store: Store, form: ImageForm, run: Mapper, shards: int) -> float:
    """Returns the seconds for writing all shards, after checking that they hold every image."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    job = ShardJob(work, ("/m/0",), form, seed=0, shard_samples=-(-len(keys) // shards))
    labels = pa.array([[0]] * len(keys), pa.list_(pa.int32()))
    nothing = pa.array([[]] * len(keys), pa.list_(pa.int32()))
    requests = as_requests(pa.table({"key": keys, "positives": labels, "negatives": nothing}))
    calls = [
        (job, f"{number:06d}", requests.slice(start, job.shard_samples).combine_chunks(), store)
        for number, start in enumerate(range(0, len(keys), job.shard_samples))
    ]
    began = time.perf_counter()
    for _ in run(write_store_shard, calls):
        pass
    seconds = time.perf_counter() - began
    fates = [fate for path in work.glob("*.arrow") for fate in read_receipt(path)[0]["fate"].to_pylist()]
    assert fates == ["written"] * len(keys), "an image is missing"
    return seconds


def bare(folder: Path, keys: list[str], processes: int) -> float:
    """Returns the seconds for decoding, resizing and encoding the images with Pillow alone."""
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        pool.map(len, [[]] * processes)
        began = time.perf_counter()
        pool.map(_resize, [[folder / f"{key}.jpg" for key in keys[part::processes]] for part in range(processes)], 1)
        return time.perf_counter() - began


def _resize(paths: list[Path]) -> None:
    for path in paths:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            small.save(io.BytesIO(), "JPEG", quality=QUALITY, subsampling="4:2:0")


def tar(work: Path, folder: Path) -> float:
    """Returns the seconds of `tar cf` on the same files."""
    began = time.perf_counter()
    subprocess.run(["tar", "cf", str(work.with_suffix(".tar")), "-C", str(folder), "."], check=True)
    return time.perf_counter() - began


def alternately(name: str, unit: str, amount: float, ours: Run, bound: Run, called: str) -> list[str]:
    """Times raypaml and its bound, which has the name `called`, in turns; returns a row of the table."""
    ours(), bound()  # the warm-up fills the page cache and imports modules
    pairs = [(ours(), bound()) for _ in range(ROUNDS)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(theirs / own for own, theirs in pairs)
    spread = f"{100 * ratios[0]:.0f} to {100 * ratios[-1]:.0f}"
    share = f"{100 * theirs / mine:.0f} % of {called} ({spread})"
    return [name, f"{mine:.2f} s", f"{amount / mine:,.0f} {unit}; {called} {amount / theirs:,.0f}", share]


@contextmanager
def cores(count: int) -> Iterator[None]:
    """Restricts this process, its threads and its children to the first `count` cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def bench_resize(folder: Path, keys: list[str], workers: int) -> list[str]:
    """Compares resizing with Pillow alone; several workers run on Ray, whose start is not counted."""
    store, work = Store(Location(str(folder))), folder.with_name("work")
    name = f"{len(keys)} images resized to {SIZE} px, {workers} worker{'s'[: workers - 1]}"
    with cores(workers), mapper(workers) as run:
        ours: Run = lambda: sharding(work, keys, store, ImageForm(), run, 2 * workers)  # noqa: E731
        return alternately(name, "images/s", len(keys), ours, lambda: bare(folder, keys, workers), "Pillow alone")


def bench_copy(folder: Path, keys: list[str]) -> list[str]:
    """Compares copying unchanged files from the page cache with tar; one worker, without Ray."""
    store, work = Store(Location(str(folder))), folder.with_name("work")
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    name = f"{len(keys)} images of {1e3 * size / len(keys):.0f} kB copied as they are"
    with mapper(1) as run:
        ours: Run = lambda: sharding(work, keys, store, ImageForm("none"), run, 2)  # noqa: E731
        return alternately(name, "MB/s", size, ours, lambda: tar(work, folder), "tar")


# --- A store far away -------------------------------------------------------------------------------------------------


def bench_store(folder: Path, keys: list[str], concurrency: int) -> list[str]:
    """Copies images unchanged from a simulated store, so that only its bandwidth limits the rate."""
    import webdataset  # noqa: F401  # imported here, so that its import of torch is not timed

    command = [sys.executable, str(Path(__file__).with_name("far_store.py")), str(folder), "--rate", f"{CAP / 1e6:g}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        options = f"endpoint_override=127.0.0.1:{next(server.stdout or iter(())).strip()}&scheme=http&region=us-east-1"
        store = Store(Location(f"s3://anonymous@far/train?{options}"), concurrency)
        with mapper(1) as run:
            seconds = sharding(folder.with_name("work"), keys, store, ImageForm("none"), run, 1)
        server.kill()
    receipts = [read_receipt(path)[1] for path in folder.with_name("work").glob("*.arrow")]
    rate = sum(receipt["bytes_read"] for receipt in receipts) / seconds / 1e6
    share = f"{1e8 * rate / CAP:.0f} % of the bandwidth"
    name = f"{len(keys)} images from a store, {concurrency} at once"
    return [name, f"{seconds:.2f} s", f"{rate:.1f} MB/s; bandwidth {CAP / 1e6:g}", share]


def rows(parts: list[str], folder: Path, scale: float, images: int) -> Iterator[list[str]]:
    if "join" in parts:
        yield from bench_join(folder / "release", scale)
        shutil.rmtree(folder / "release")
    if set(parts) == {"join"}:
        return
    keys = write_images(folder / "images", images)
    for workers in (1, 2):
        if "resize" in parts:
            yield bench_resize(folder / "images", keys, workers)
    if "copy" in parts:
        yield bench_copy(folder / "images", keys)
    many = [f"{k:016x}" for k in range(3 * images)]
    for concurrency in (32, 128):
        if "store" in parts:
            yield bench_store(folder / "images", many, concurrency)


def main() -> None:
    flags = Parser(prog=PROG, description=__doc__.split("\n")[0])
    flags.add_argument("--only", default="join,resize,copy,store", help="parts to measure [join,resize,copy,store]")
    flags.add_argument("--scale", type=float, default=1.0, help="size of the release, as a multiple of V3's [1]")
    flags.add_argument("--images", type=int, default=600, metavar="N", help="images to prepare as shards [600]")
    flags.add_argument("--dir", type=Path, help="folder for generated files, removed at the end [the temporary one]")
    flags.add_argument("--one", help="time this way of joining in --dir; used by the benchmark itself")
    asked = flags.parse()
    if asked.one:
        return run_one(asked.one, asked.dir)
    with tempfile.TemporaryDirectory(prefix="raypaml-bench-", dir=asked.dir) as folder:
        lines = []
        for row in rows(asked.only.split(","), Path(folder), asked.scale, asked.images):
            print(row, file=sys.stderr, flush=True)
            lines.append(row)
    print(markdown(["what", "time", "rate", "compared"], lines, left=1))
    return None


if __name__ == "__main__":
    run_command(main, PROG)
