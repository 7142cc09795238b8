"""Compares the rate of `raypaml predict` on image files with evaluation on shards; measures its peak memory.

    python tools/bench/predict.py RUN

RUN is a finished run on digits, such as `make demo` leaves. Both read the same test images, with one thread.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from raypaml.cli import run_command
from raypaml.config import TrainConfig
from raypaml.data.batches import Reader
from raypaml.data.data_folder import DataFolder
from raypaml.evaluation.predicting import predict_steps
from raypaml.evaluation.prediction_plan import evaluation_plan
from raypaml.inference.choice import Choice
from raypaml.inference.classifier import load
from raypaml.inference.classifying import answers
from raypaml.inference.pictures import find_pictures
from raypaml.runs.models import checkpoint_model, find_checkpoint
from raypaml.runs.run_folder import stored_config
from raypaml.settings import OptimConfig
from raypaml.training.job import prepare_job

TOP = 5


def write_pictures(data: DataFolder, folder: Path) -> int:
    """Writes the test split as image files; returns their number."""
    reader = Reader(data.shards, data.splits["test"], ())
    count = len(data.splits["test"])
    for row in range(count):
        (folder / f"{row:05d}.jpg").write_bytes(reader._checked(row))
    return count


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def rates(run: Path, config: TrainConfig, pictures: Path, count: int, data: DataFolder, rounds: int) -> None:
    """Measures evaluation and prediction in turns on the same images, and prints their rates."""
    torch.set_num_threads(1)
    model = checkpoint_model(find_checkpoint(run)[1], config.model, len(data.vocabulary))
    ready = load(run)
    choice = Choice(np.full(len(data.vocabulary), -np.inf), TOP)
    steps = evaluation_plan(config, count).epoch(0, 0, 1)
    cpu = torch.device("cpu")
    by_round = [
        (
            seconds(lambda: predict_steps(model, data, "test", steps, cpu, optim=OptimConfig(), loader_workers=0)),
            seconds(lambda: list(answers(ready, find_pictures([str(pictures)]), choice, ""))),
        )
        for _ in range(rounds)
    ]
    one, two = (count / statistics.median(column) for column in zip(*by_round, strict=True))
    ratio = statistics.median(a / b for a, b in by_round)
    print(
        f"evaluate {one:,.0f} images/s, predict {two:,.0f} images/s; predict is {ratio:.3f} times as fast ({rounds} "
        "rounds in turns)"
    )


def peak(run: Path, pictures: Path, times: int) -> int:
    """Returns the peak memory in MB of `raypaml predict` on a folder that is named `times` times.

    It is the maximum over this call and earlier ones, because the system keeps one maximum for all child processes.
    """
    given = [sys.executable, "-m", "raypaml.predict", str(run), *[str(pictures)] * times, "--top", str(TOP)]
    subprocess.run(given, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished run on digits")
    parser.add_argument("--rounds", type=int, default=8, help="measurements, of which the median counts [8]")
    asked = parser.parse_args()
    config = stored_config(asked.run)
    if config is None:
        raise ValueError(f"{asked.run}: is not the folder of a run")
    data = prepare_job(config, lambda _: None).data
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder)
        count = write_pictures(data, pictures)
        shown = ", ".join(f"{peak(asked.run, pictures, times)} MB for {times * count:,} images" for times in (1, 4))
        print(f"peak memory: {shown}")
        rates(asked.run, config, pictures, count, data, asked.rounds)


if __name__ == "__main__":
    run_command(main, "python tools/bench/predict.py")
