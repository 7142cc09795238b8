"""What the workers of a disturbed run import: they meet the faults of the test's folder, each once, at its step.

The environment variable RAYPAML_CHAOS names the folder. `faults.json` is read from it; `met-N`, with the time, is
written when fault N comes, and `taken-N` by whoever acts; `ledger-LIFE-RANK-of-RANKS.jsonl` gets the keys of every
step. A life is a group of workers from its (new) start on; its name is the time of its first step, in milliseconds.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from raypaml.training import loop
from raypaml.training.step import train_step
from tests.chaos import Fault, act_of, victim_of

FOLDER = "RAYPAML_CHAOS"
OF_WORKERS = ("killed", "stopped", "connection", "killed saving", "not finite", "disk full")
"""What workers do themselves; the rest is done by `tests.ray_chaos.commands`."""
PAUSE = 0.15
"""Seconds by which a step is longer."""


def write_faults(folder: Path, faults: list[Fault]) -> None:
    """Write the faults that the workers will meet."""
    (folder / "faults.json").write_text(json.dumps([asdict(fault) for fault in faults]))


class _Meeting:
    """Training steps that meet faults."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._faults = [Fault(**values) for values in json.loads((folder / "faults.json").read_text())]
        self._worker: Any = None
        self._life = 0

    def step(self, worker: Any, batch: Any) -> None:
        """A step of training, after the faults that are due."""
        if worker is not self._worker:  # a life begins with a process, and when training has gone back
            self._worker, self._life = worker, self._agreed_time(worker)
        time.sleep(PAUSE)
        number, ranks = worker.steps_done, worker.ranks
        for index, fault in enumerate(self._faults):
            due = number >= fault.moment and ranks.rank == victim_of(fault, ranks.world_size)
            if due and self._comes(index):
                act_of(fault)()
                self._wait_until_taken(worker, index, fault)
        train_step(worker, batch)
        with (self._folder / f"ledger-{self._life}-{ranks.rank}-of-{ranks.world_size}.jsonl").open("a") as file:
            file.write(json.dumps([number, batch.keys]) + "\n")

    def _agreed_time(self, worker: Any) -> int:
        mine = time.time() * 1000 if worker.ranks.rank == 0 else 0.0
        return int(worker.ranks.sum(torch.tensor([mine], dtype=torch.float64)).item())

    def _wait_until_taken(self, worker: Any, index: int, fault: Fault) -> None:
        """Wait for whoever acts from outside, for a minute at most, so that no other fault comes before."""
        for _ in range(0 if fault.kind in OF_WORKERS else 600):
            if (self._folder / f"taken-{index}").exists():
                return
            time.sleep(0.1)
            worker.now("waiting for a fault")

    def _comes(self, index: int) -> bool:
        """Note that a fault comes now; whether it has not come before."""
        try:
            with (self._folder / f"met-{index}").open("x") as file:
                file.write(f"{time.time()}")
        except FileExistsError:
            return False
        return True


if FOLDER in os.environ:
    loop.train_step = _Meeting(Path(os.environ[FOLDER])).step
