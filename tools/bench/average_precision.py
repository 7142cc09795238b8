"""Compares ways to compute AP at the size of the OpenImages V3 test split: raypaml, scikit-learn and torchmetrics.

    python tools/bench/average_precision.py         # needs 12 GiB for the dense matrices of `published`
    python tools/bench/average_precision.py --only ours,rows --size 10

Every implementation runs in a process of its own on the same synthetic predictions. `published` is the method of the
papers' code: scikit-learn, class by class, on dense matrices. torchmetrics is measured where it is installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypaml.cli import Parser, run_command
from raypaml.evaluation.measures import EvaluationOptions, evaluate_set
from raypaml.evaluation.parts import PredictionPart, open_set, read_vocabulary, write_part
from raypaml.labels import UNOBSERVED, VOCABULARY, Vocabulary
from raypaml.metrics.average_precision import average_precision, mean_ap
from raypaml.reports.tables import markdown

PROG = "python tools/bench/average_precision.py"
IMAGES, CLASSES, ENTRIES, SHARE_POSITIVE = 125_436, 5_000, 1_667_399, 0.663
"""OpenImages V3 test: images, trainable classes, human-verified labels, and how many of these are positive."""
PARTS = 31
Rows = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


# --- The predictions ------------------------------------------------------------------------------------------------


def write_predictions(folder: Path, size: int) -> None:
    """Writes a synthetic, long-tailed prediction set of `size` test splits; class 0 has no observed entry."""
    rng = np.random.default_rng(0)
    share = rng.lognormal(0, 1.2, CLASSES)
    share[0] = 0
    images = IMAGES * size
    cuts = np.arange(PARTS * size + 1) * images // (PARTS * size)
    vocabulary = _vocabulary(share)
    vocabulary.write(folder / VOCABULARY)
    left = np.diff(np.arange(PARTS * size + 1) * ENTRIES * size // (PARTS * size))
    for number, (low, high, entries) in enumerate(zip(cuts, cuts[1:], left, strict=False)):
        part = PredictionPart(
            split="test",
            vocabulary=vocabulary.digest,
            num_classes=CLASSES,
            alpha=5.0,
            model="synthetic",
            data="synthetic",
            unobserved=False,
            samples=images,
            parts=PARTS * size,
            part=number,
            part_samples=int(high - low),
        )
        write_part(folder, part, _entries(rng, share / share.sum(), int(low), int(high), int(entries)))


def _vocabulary(share: NDArray[np.float64]) -> Vocabulary:
    ids = tuple(f"/m/{k:05d}" for k in range(CLASSES))
    counts = (share * 1000).astype(np.int64)
    return Vocabulary(class_ids=ids, names=ids, train_positives=counts, train_negatives=counts)


def _entries(rng: np.random.Generator, share: NDArray[np.float64], low: int, high: int, count: int) -> pa.Table:
    drawn = np.zeros(0, np.int64)
    while len(drawn) < count:
        more = rng.integers(low, high, count) * CLASSES + rng.choice(CLASSES, count, p=share)
        drawn = np.unique(np.concatenate([drawn, more]))
    image, classes = np.divmod(np.sort(rng.permutation(drawn)[:count]), CLASSES)
    positive = rng.random(count) < SHARE_POSITIVE
    scores = (rng.normal(size=count) + positive).astype(np.float32)
    keys = pa.array([f"{number:016x}" for number in image])
    p, n = np.maximum(scores, 0) / 5, np.minimum(scores, 0)
    return pa.table({"key": keys, "class": classes, "positive": positive, "P": p, "N": n})


def read_rows(folder: Path) -> Rows:
    """Reads the image number, the class, whether it is positive and the logit of every entry: four arrays [entries]."""
    table = pa.concat_tables(rows for _, rows in open_set(folder).batches())
    image = np.array([int(key, 16) for key in table["key"].to_pylist()])
    logits = np.float32(5) * table["P"].to_numpy() + table["N"].to_numpy()
    return image, table["class"].to_numpy().astype(np.int64), table["positive"].to_numpy(), logits


# --- The implementations: each prepares its input and returns the function that is timed -----------------------------


def ours(folder: Path) -> Callable[[], float]:
    """Evaluates the Parquet parts: reads, checks, spills to disk, and computes AP, calibration and thresholds."""
    predictions = open_set(folder)
    vocabulary = read_vocabulary(folder, predictions)
    return lambda: mean_ap(evaluate_set(predictions, vocabulary).ap)


def ours_rows(folder: Path) -> Callable[[], float]:
    """Computes AP from rows in memory, all classes at once."""
    _, classes, positive, logits = read_rows(folder)
    return lambda: mean_ap(average_precision(classes, logits, positive, CLASSES))


def bootstrap(folder: Path) -> Callable[[], float]:
    """Does what `ours` does, with 1,000 bootstrap replicates of every class and group, on all CPU cores."""
    predictions = open_set(folder)
    vocabulary = read_vocabulary(folder, predictions)
    asked = EvaluationOptions(replicates=1000, threads=os.cpu_count() or 1)

    def run() -> float:
        evaluation = evaluate_set(predictions, vocabulary, asked)
        assert len(evaluation.replicate_means("paper")["All"]) == 1000
        return mean_ap(evaluation.ap)

    return run


def sklearn_rows(folder: Path) -> Callable[[], float]:
    """Calls scikit-learn for each class on rows in memory, which are sorted by class once."""
    from sklearn.metrics import average_precision_score

    _, classes, positive, logits = read_rows(folder)

    def run() -> float:
        order = np.argsort(classes, kind="stable")
        cuts = np.searchsorted(classes[order], np.arange(CLASSES + 1))
        own = (order[low:high] for low, high in pairwise(cuts) if high > low)
        return float(np.mean([average_precision_score(positive[rows], logits[rows]) for rows in own]))

    return run


def _dense(folder: Path, score_kind: type, label_kind: type) -> tuple[NDArray[Any], NDArray[Any]]:
    image, classes, positive, logits = read_rows(folder)
    shape = (int(image.max()) + 1, CLASSES)
    scores: NDArray[Any] = np.zeros(shape, score_kind)
    labels: NDArray[Any] = np.full(shape, UNOBSERVED, label_kind)
    scores[image, classes], labels[image, classes] = logits, positive
    return scores, labels


def published(folder: Path) -> Callable[[], float]:
    """Calls scikit-learn for each class on the masked columns of dense float64 matrices, in one process."""
    from sklearn.metrics import average_precision_score

    scores, labels = _dense(folder, np.float64, np.float64)

    def run() -> float:
        ap = []
        for k in range(CLASSES):
            observed = labels[:, k] != UNOBSERVED
            if observed.any():
                ap.append(average_precision_score(labels[observed, k], scores[observed, k]))
        return float(np.mean(ap))

    return run


def torchmetrics(folder: Path) -> Callable[[], float]:
    """Calls torchmetrics without binning; classes without observed labels are left out, as it crashes on them."""
    import torch
    from torchmetrics.functional.classification import multilabel_average_precision

    scores, labels = _dense(folder, np.float32, np.int16)
    kept = np.flatnonzero((labels != UNOBSERVED).any(0))
    values, targets = torch.from_numpy(scores[:, kept]), torch.from_numpy(labels[:, kept])
    del scores, labels

    def run() -> float:
        ap = multilabel_average_precision(values, targets, len(kept), average=None, ignore_index=UNOBSERVED)
        return float(ap.nan_to_num().mean())

    return run


IMPLEMENTATIONS: dict[str, Callable[[Path], Callable[[], float]]] = {
    "ours": ours,
    "ours-rows": ours_rows,
    "bootstrap": bootstrap,
    "sklearn-rows": sklearn_rows,
    "published": published,
    "torchmetrics": torchmetrics,
}


# --- Running them ---------------------------------------------------------------------------------------------------


def run_one(name: str, folder: Path) -> None:
    """Times one implementation in this process and prints its figures as JSON."""
    warnings.filterwarnings("ignore", "No positive", UserWarning)
    run = IMPLEMENTATIONS[name](folder)
    began = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak": peak, "mean_ap": result}))


def main() -> None:
    """Writes the predictions, runs the implementations one after another, and prints a table."""
    flags = Parser(prog=PROG, description=__doc__.split("\n")[0])
    names = ",".join(IMPLEMENTATIONS)
    flags.add_argument("--only", default=names, help=f"implementations to measure [{names}]")
    flags.add_argument("--size", type=int, default=1, help="images, as a multiple of the OpenImages V3 test split [1]")
    flags.add_argument("--one", help="run this implementation in this process; used by the benchmark itself")
    flags.add_argument("--folder", help="folder of the predictions for --one; used by the benchmark itself")
    asked = flags.parse()
    if asked.one:
        return run_one(asked.one, Path(asked.folder))
    if unknown := [name for name in asked.only.split(",") if name not in IMPLEMENTATIONS]:
        raise ValueError(f"only={asked.only}: {unknown[0]!r} is not known; choose from {names}")
    if asked.size < 1:
        raise ValueError(f"size={asked.size}: must be at least 1")
    rows = []
    with tempfile.TemporaryDirectory(prefix="raypaml-bench-") as folder:
        write_predictions(Path(folder), asked.size)
        for name in asked.only.split(","):
            rows.append([name, *_measured(name, folder)])
            print(f"{name}: {rows[-1][1:]}", file=sys.stderr, flush=True)
    print(f"{IMAGES * asked.size:,} images, {CLASSES:,} classes, {ENTRIES * asked.size:,} observed entries\n")
    print(markdown(["", "seconds", "peak MB", "mAP"], rows, left=1))
    return None


def _measured(name: str, folder: str) -> list[str]:
    if name == "torchmetrics" and importlib.util.find_spec("torchmetrics") is None:
        return ["not installed", "", ""]
    command = [sys.executable, __file__, "--one", name, "--folder", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return [f"failed: {(done.stderr.strip().splitlines() or [f'exit {done.returncode}'])[-1][:80]}", "", ""]
    figures = json.loads(done.stdout)
    return [f"{figures['seconds']:.2f}", f"{figures['peak']:,.0f}", f"{100 * figures['mean_ap']:.6f}"]


if __name__ == "__main__":
    run_command(main, PROG)
