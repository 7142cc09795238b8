"""Measures the overhead of Ray: training steps per second in plain gloo processes and under `raypaml train`.

    python tools/bench/ray_overhead.py --workers 1 2 --rounds 3

Ray is started with `--address local`, so that one worker runs on it too; all workers have the niceness of the command.
Rates are training steps per second of training time from the second epoch on, without validation and checkpoints. Plain
processes and Ray take turns at being first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from raypaml.cli import run_command
from raypaml.config import TrainConfig
from raypaml.files import write_whole
from raypaml.recipes import recipe
from raypaml.runs.history import read_history
from raypaml.runs.run_folder import claim
from raypaml.training.job import prepare_job
from raypaml.training.loop import train
from raypaml.writable import check_writable


def bare(rank: int, world_size: int, port: int, config: TrainConfig, data: str, folder: Path) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    train(config, data, folder, torch.device("cpu"), lambda _: False)
    os._exit(0)  # the interpreter's own shutdown would end in SIGABRT because of gloo's threads


def run_bare(config: TrainConfig) -> tuple[float, float]:
    """Trains in plain processes; returns training steps per second and the seconds from start to end."""
    job = prepare_job(config, lambda _: None)
    claim(job.folder, job.config, job.data)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.monotonic()
    workers = config.run.workers
    spawn(bare, (workers, port, job.config, job.data.address, job.folder), workers)
    return rate(job.folder), time.monotonic() - began


def run_ray(config: TrainConfig) -> tuple[float, float]:
    """Trains by `raypaml train` on Ray; returns training steps per second and the seconds from start to end."""
    job = prepare_job(config, lambda _: None)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in asked(job.config).items()]
    began = time.monotonic()
    command = [sys.executable, "-m", "raypaml.train", "digits", "--address=local", *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return rate(job.folder), time.monotonic() - began


def asked(config: TrainConfig) -> dict[str, object]:
    run = config.run
    return {
        "epochs": config.optim.epochs,
        "warmup_epochs": config.loss.warmup_epochs,
        "workers": run.workers,
        "storage": run.storage,
        "name": run.name,
        "checkpoint_steps": run.checkpoint_steps,
        "reference": run.reference,
        "data": config.data.data,
    }


def rate(folder: Path) -> float:
    """Returns the training steps per second of a run from its second epoch on."""
    history = read_history(folder)
    steps = -(-history[0]["expected"] // 32)
    return steps * (len(history) - 1) / (history[-1]["seconds"] - history[0]["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers to measure [1 2]")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each run [3]")
    parser.add_argument("--rounds", type=int, default=3, help="measurements, of which the median counts [3]")
    parser.add_argument("--data", default="digits", help="data set, as raypaml train names it [digits]")
    parser.add_argument("--json", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    if options.json:
        check_writable(options.json.absolute().parent)
    os.environ["OMP_NUM_THREADS"] = "1"  # for both: torch reads it when a process imports it
    storage = Path(tempfile.mkdtemp(prefix="bench-ray-"))
    values = {"epochs": options.epochs, "warmup_epochs": 1, "data": options.data, "storage": str(storage)}
    base = recipe("digits").override(values)
    print("| workers | plain steps/s | Ray steps/s | ratio | Ray takes longer by, s | time with checkpoints, ratio |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    figures: list[dict[str, float]] = []
    for workers in options.workers:
        rounds = []
        for number in range(options.rounds):
            config = base.override({"workers": workers, "name": f"{workers}-{number}"})
            both = [run_ray, run_bare] if number % 2 else [run_bare, run_ray]  # no drift of the machine helps either
            took = {run: run(config.override({"name": f"{run.__name__}-{config.run.name}"})) for run in both}
            (one, one_seconds), (two, two_seconds) = took[run_bare], took[run_ray]
            _, saving = run_bare(config.override({"name": f"save-{config.run.name}", "checkpoint_steps": 20}))
            rounds.append((one, two, two / one, two_seconds - one_seconds, saving / one_seconds))
            print(f"{workers} workers: {one:.1f} and {two:.1f} steps/s", file=sys.stderr, flush=True)
        medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
        shown = (f"{value:.{digits}f}" for value, digits in zip(medians, (1, 1, 3, 1, 2), strict=True))
        print(f"| {workers} | {' | '.join(shown)} |", flush=True)
        figures.append(dict(zip(("bare", "ray", "ratio", "more", "saving"), medians, strict=True), workers=workers))
    if options.json:
        write_whole(options.json, json.dumps(figures, indent=1))
    shutil.rmtree(storage)


if __name__ == "__main__":
    run_command(main, "python tools/bench/ray_overhead.py")
