"""Simulates who reads which sample at full size, without reading images: balance, mixing, traffic, caches, start-up.

    python tools/bench/simulate_loader.py [--samples 3660000] [--shards 2000] [--ranks 64] [--loader-workers 8]

The sizes of shards differ from their mean by up to a half. The first table has, for every shuffle window, the share of
pairs of a batch that come from the same shard, the numbers of samples of ranks and loader threads, the bytes that a
node reads, relative to its share of the data, and the cache that it needs. The second has time and memory of a new
process that opens an index of this size and plans its first step, at the start and at 90 % of an epoch; a large index
is checked once on a node, here by the process of the first row. The third has the memory per process when all processes
of a node do so and read every page of the index.
"""

from __future__ import annotations

import heapq
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypaml.cli import Parser, run_command
from raypaml.data.index import Index, open_index, write_index
from raypaml.data.index_table import SCHEMA
from raypaml.data.mixing import cache_bytes, mixing
from raypaml.data.plan import Epoch, Plan, pieces
from raypaml.labels import Vocabulary
from raypaml.reports.tables import markdown

PROG = "python tools/bench/simulate_loader.py"
IMAGE_BYTES, HEADERS, CLASSES, LABELS = 50_000, 1536, 5000, 8
Ints = NDArray[np.int64]


def shard_sizes(samples: int, shards: int) -> Ints:
    """Draws the number of samples of each shard, between half and one and a half times the mean."""
    weights = np.random.default_rng(0).uniform(0.5, 1.5, shards)
    ends = np.round(np.cumsum(weights) / weights.sum() * samples).astype(np.int64)
    sizes: Ints = np.diff(ends, prepend=0)
    return sizes


def dealt(sizes: Ints, loader_workers: int) -> list[int]:
    """Returns the numbers of samples of a rank's loader threads, sorted.

    All threads are taken to be equally fast; whichever is free takes the next piece.
    """
    threads = [0] * loader_workers
    for rows in sizes.tolist():
        for piece in pieces(rows, loader_workers):
            heapq.heapreplace(threads, threads[0] + len(piece))
    return sorted(threads)


def simulate(plan: Plan, ranks: int, ranks_per_node: int, loader_workers: int) -> list[str]:
    """Simulates one epoch; returns a row of the table."""
    sizes = np.array([[len(part.rows) for part in plan.epoch(0, rank, ranks)] for rank in range(ranks)])
    by_rank = sizes.sum(1)
    by_loader = np.array([dealt(rows, loader_workers) for rows in sizes])
    shard_bytes = [size * (IMAGE_BYTES + HEADERS) for size in plan.shard_sizes]
    read, cache = [], []
    for first in range(0, ranks, ranks_per_node):
        lanes = plan.bounds(first, ranks)[0], plan.bounds(min(first + ranks_per_node, ranks) - 1, ranks)[1]
        spans = Epoch(plan, 0, *lanes).spans()
        read.append(sum(shard_bytes[span.shard] for span in spans))
        cache.append(cache_bytes(spans, shard_bytes))
    mixed = mixing(plan)
    least = sum(shard_bytes) / len(read)
    return [
        str(plan.window or "permutation"),
        f"{mixed.share:.3%}",
        f"{mixed.excess:.3%}",
        f"{by_rank.min():,} to {by_rank.max():,}",
        f"{by_loader.min():,} to {by_loader.max():,}",
        f"{max(read) / 1e9:.1f} GB, {max(read) / least:.3f}",
        f"{max(cache) / 1e9:.1f} GB",
    ]


def write_big_index(path: Path, sizes: Ints) -> None:
    """Writes an index of a training split in which each sample has three positive and five negative labels."""
    rng, total = np.random.default_rng(0), int(sizes.sum())
    ids = tuple(f"/m/{k:05d}" for k in range(CLASSES))
    counts = np.zeros(CLASSES, np.int64)
    places = np.concatenate([np.arange(size) * (IMAGE_BYTES + HEADERS) + 512 for size in sizes])

    def labels(each: int, first: int) -> pa.Array:
        values = first + rng.integers(0, CLASSES // 2, total * each, np.int32)
        return pa.ListArray.from_arrays(pa.array(np.arange(total + 1, dtype=np.int32) * each), pa.array(values))

    table = pa.table(
        {
            "key": pa.array([f"{number:016x}" for number in range(total)]),
            "shard": np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
            "offset": places,
            "size": np.full(total, IMAGE_BYTES, np.int32),
            "crc32": rng.integers(0, 2**32, total, np.uint32),
            "positives": labels(3, 0),
            "negatives": labels(LABELS - 3, CLASSES // 2),
            "truth": pa.nulls(total, SCHEMA.field("truth").type),
            "boxes": pa.nulls(total, SCHEMA.field("boxes").type),
        },
        schema=SCHEMA,
    )
    write_index(
        path,
        table,
        shards=[f"train-{number:06d}.tar" for number in range(len(sizes))],
        shard_bytes=[int(size) * (IMAGE_BYTES + HEADERS) + 10240 for size in sizes],
        vocabulary=Vocabulary(class_ids=ids, names=ids, train_positives=counts, train_negatives=counts),
        has_truth=False,
    )


def memory_mb(kind: str) -> float:
    """Returns the memory of this process in MB: `Anonymous` is its own; `Pss` adds its share of shared pages."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) * 1024 / 1e6


def first_part(index: Index, window: int, at: float) -> None:
    """Reads the labels of one rank for the step at the fraction `at` of an epoch."""
    plan = Plan(
        num_samples=len(index), global_batch_size=2048, lanes=64, window=window, shard_sizes=index.shard_sizes, seed=1
    )
    index.labels(plan.epoch(5, 3, 64)[int(at * plan.steps)].rows)


def start(path: Path, window: int, at: float, results: Any) -> None:
    """Measures, in a new process, time and memory until it has the labels of its first step."""
    before, began, cpu = memory_mb("Anonymous"), time.perf_counter(), time.process_time()
    index = open_index(path)
    opened = time.perf_counter()
    first_part(index, window, at)
    done = time.perf_counter()
    spent, memory = time.process_time() - cpu, memory_mb("Anonymous")
    results.put((opened - began, done - opened, spent, memory - before, memory))


def share(path: Path, window: int, turn: Any, results: Any) -> None:
    """Measures the memory that an index takes in one of several processes that have all read every page of it."""
    turn.wait()
    before = [memory_mb(kind) for kind in ("Pss", "Anonymous")]
    turn.wait()
    index = open_index(path)
    first_part(index, window, 0.5)
    for buffer in (*index.key_column.chunk(0).buffers()[1:], index.crc32):
        np.frombuffer(buffer, np.uint8).max()
    turn.wait()
    results.put([memory_mb(kind) - value for kind, value in zip(("Pss", "Anonymous"), before, strict=True)])
    turn.wait()


def shares(path: Path, window: int, processes: int) -> Any:
    """Measures the MB that an index adds to each process of a node: [processes, 2], as PSS and as anonymous memory."""
    context = multiprocessing.get_context("spawn")
    turn, results = context.Barrier(processes), context.SimpleQueue()
    started = [context.Process(target=share, args=(path, window, turn, results)) for _ in range(processes)]
    for process in started:
        process.start()
    added = np.array([results.get() for _ in started])
    for process in started:
        process.join()
    return added


def starts(path: Path, window: int) -> list[list[str]]:
    """Measures new processes that begin at the start and at 90 % of an epoch; returns rows of the table."""
    context = multiprocessing.get_context("spawn")
    results, rows = context.SimpleQueue(), []
    for at in (0.0, 0.9):
        process = context.Process(target=start, args=(path, window, at, results))
        process.start()
        *seconds, added, total = results.get()
        process.join()
        cells = [*(f"{value:.2f}" for value in seconds), f"{added:.0f}", f"{total:.0f}"]
        rows.append([str(window or "permutation"), f"{at:.0%}", *cells])
    return rows


def new_processes(sizes: Ints, windows: list[int], ranks_per_node: int) -> None:
    """Prints time and memory of new processes that open an index of this size."""
    head = ["window", "epoch at", "open, s", "plan and first step, s", "CPU, s", "MB added", "MB in all"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.arrow"
        write_big_index(path, sizes)
        print(markdown(head, [row for window in windows for row in starts(path, window)], left=1), "\n", flush=True)
        rows = []
        for processes in (1, ranks_per_node):
            for window in windows:
                pss, own = shares(path, window, processes).max(0)
                rows.append([str(window or "permutation"), str(processes), f"{pss:.0f}", f"{own:.0f}"])
        print(
            f"Memory that an index of {path.stat().st_size / 1e6:.0f} MB takes at most in each process that has read "
            "every page of it:\n"
        )
    print(markdown(["window", "processes", "MB (PSS)", "of these not shared"], rows, left=1))


def main() -> None:
    parser = Parser(prog=PROG, description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=3_660_000, help="samples of the training split [3660000]")
    parser.add_argument("--shards", type=int, default=2000, help="shards of the training split [2000]")
    parser.add_argument("--ranks", type=int, default=64, help="training processes [64]")
    parser.add_argument("--ranks-per-node", type=int, default=8, help="training processes on each node [8]")
    parser.add_argument("--loader-workers", type=int, default=8, help="threads that read ahead, of each process [8]")
    parser.add_argument("--batch", type=int, default=2048, help="global batch size [2048]")
    parser.add_argument("--lanes", type=int, default=64, help="lanes of a global batch [64]")
    parser.add_argument(
        "--windows",
        default="1,2,4,8,0",
        help="sizes of the shuffle window in shards, with commas between; 0: a permutation of all samples [1,2,4,8,0]",
    )
    asked = parser.parse()
    sizes = shard_sizes(asked.samples, asked.shards)
    windows = [int(window) for window in asked.windows.split(",")]
    rows = [
        simulate(
            Plan(
                num_samples=asked.samples,
                global_batch_size=asked.batch,
                lanes=asked.lanes,
                window=window,
                shard_sizes=tuple(sizes.tolist()),
            ),
            asked.ranks,
            asked.ranks_per_node,
            asked.loader_workers,
        )
        for window in windows
    ]
    head = ["window, shards", "pairs from one shard", "excess", "samples per rank", "samples per loader thread"]
    print(markdown([*head, "read per node, relative to least", "cache per node"], rows, left=1), "\n", flush=True)
    new_processes(sizes, [window for window in windows if window in (0, 4)], asked.ranks_per_node)


if __name__ == "__main__":
    run_command(main, PROG)
