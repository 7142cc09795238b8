"""Measures how long training waits for a checkpoint that the step itself writes, or that a thread writes meanwhile.

python tools/bench/checkpoint.py                                                      # ResNet-101, 5,000 classes
python tools/bench/checkpoint.py --backbone resnet18 --pixels 64 --rounds 2 --classes 50    # to try it
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import save_file
from torch import Tensor

from raypaml.cli import Parser, run_command
from raypaml.data.index import Index, open_index, write_index
from raypaml.data.index_table import SCHEMA
from raypaml.files import file_digest, sync
from raypaml.labels import Vocabulary
from raypaml.model.backbones import build_backbone
from raypaml.model.cam import CamClassifier
from raypaml.reports.tables import markdown
from raypaml.runs.checkpoint import State, retain
from raypaml.runs.checkpoint_writer import Snapshot, take_snapshot, write_checkpoint
from raypaml.runs.corrections import Corrections
from raypaml.runs.history import EpochRecord
from raypaml.runs.mirror import MARKER
from raypaml.runs.models import placed
from raypaml.training.saving import Saving

PROG = "python tools/bench/checkpoint.py"
BETWEEN = 6
"""Training steps between two checkpoints, so that the writing thread has as much time as in a run."""


def main(argv: list[str] | None = None) -> int:
    asked = _parse(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = placed(CamClassifier(build_backbone(asked.backbone), asked.classes), torch.device(device))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6, fused=True)
    images = torch.randint(0, 256, (asked.images, 3, asked.pixels, asked.pixels), dtype=torch.uint8).to(device)
    step = partial(_step, model, optimizer, images)
    with tempfile.TemporaryDirectory(dir=asked.folder) as place:
        index = _index(Path(place) / "train.arrow", asked.classes)
        ways: dict[str, InStep | InThread] = {
            "in the step": InStep(Path(place) / "old", model, optimizer),
            "by a thread": InThread(Path(place) / "new", model, optimizer, index),
        }
        for way in ways.values():  # the warm-up allocates memory and Adam's moments, and leaves checkpoints to retain
            for _ in range(2):
                _seconds(step)
                way.save()
                way.settle()
        held: dict[str, list[float]] = {name: [] for name in ways}
        steps: dict[str, list[float]] = {name: [] for name in (*ways, "no saving")}
        for _ in range(asked.rounds):
            steps["no saving"] += [_seconds(step) for _ in range(BETWEEN)]
            for name, way in ways.items():
                held[name].append(_seconds(way.save))
                steps[name] += [_seconds(step) for _ in range(BETWEEN)]
                way.settle()
        size = sum(path.stat().st_size for path in max((Path(place) / "new").iterdir()).iterdir())
    _print(asked, device, size, held, steps)
    return 0


def _epoch(number: int) -> EpochRecord:
    """Returns the record of an epoch whose mAP is above that of every earlier one, so that its checkpoint is kept."""
    return {
        "epoch": number,
        "loss": 0.0,
        "expected": 1,
        "samples": 1,
        "skipped": 0,
        "rejected": 0,
        "rejected_missed": None,
        "missed": None,
        "rejection_precision": None,
        "rejection_recall": None,
        "corrected": 0,
        "validation_skipped": 0,
        "validation_mean_ap": 1 / number,
        "validation_groups": {},
        "seconds": 0.0,
    }


class InStep:
    """Saves within the step: writes the files, reads them again to hash them, and hashes all earlier checkpoints."""

    def __init__(self, folder: Path, model: CamClassifier, optimizer: torch.optim.Optimizer):
        self.folder, self.model, self.optimizer, self.count = folder, model, optimizer, 0

    def save(self) -> None:
        """Writes the next checkpoint."""
        self.count += 1
        state = State(epoch=self.count, history=[_epoch(self.count)])
        final = self.folder / f"{state.epoch:04d}-{state.step:06d}"
        unfinished = self.folder / f".unfinished-{final.name}"
        unfinished.mkdir(parents=True)
        _save_file(self.model.state_dict(), unfinished / "model.safetensors")
        slots = self.optimizer.state_dict()["state"]
        moments = {f"{number}.{name}": value for number, slot in slots.items() for name, value in slot.items()}
        _save_file(moments, unfinished / "optimizer.safetensors")
        (unfinished / "state.json").write_text(json.dumps(asdict(state), indent=1))
        digests = {path.name: file_digest(path) for path in sorted(unfinished.iterdir())}
        (unfinished / MARKER).write_text(json.dumps(digests, indent=1))
        for path in unfinished.iterdir():
            sync(path)
        unfinished.replace(final)
        sync(self.folder)
        retain(self.folder)

    def settle(self) -> None:
        """Does nothing: `save` has written everything."""


def _save_file(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


class InThread:
    """Saves as raypaml does: the step copies the state, and a thread writes and hashes the copy."""

    def __init__(self, folder: Path, model: CamClassifier, optimizer: torch.optim.Optimizer, index: Index):
        self.folder, self.model, self.optimizer, self.index = folder, model, optimizer, index
        self.saving, self.corrections, self.count = Saving(), Corrections(index.num_classes), 0

    def save(self) -> None:
        """Copies the state and starts the thread that writes it."""
        self.saving.wait()
        self.count += 1
        state = State(epoch=self.count, history=[_epoch(self.count)])
        snapshot = take_snapshot(state, self.model, self.optimizer, self.corrections, self.index, host=self.saving.host)
        self.saving.start(lambda: self._commit(snapshot))

    def _commit(self, snapshot: Snapshot) -> str:
        verified = self.saving.verified
        verified.note(write_checkpoint(self.folder, snapshot))
        retain(self.folder, verified.is_valid)
        return ""

    def settle(self) -> None:
        """Waits until the thread has written the checkpoint."""
        self.saving.wait()


def _step(model: CamClassifier, optimizer: torch.optim.Optimizer, images: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    model(images).square().mean().backward()
    optimizer.step()


def _seconds(run: Callable[[], None]) -> float:
    """Measures the wall-clock seconds of a call; a GPU is synchronised before and after it."""
    _synchronize()
    began = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - began


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _index(path: Path, classes: int) -> Index:
    ids = tuple(f"c{number}" for number in range(classes))
    zeros = torch.zeros(classes, dtype=torch.int64).numpy()
    vocabulary = Vocabulary(class_ids=ids, names=ids, train_positives=zeros, train_negatives=zeros)
    place: dict[str, Any] = {"shard": 0, "offset": 512, "size": 1, "crc32": 0, "truth": None, "boxes": []}
    table = pa.Table.from_pylist([place | {"key": "s", "positives": [], "negatives": []}], schema=SCHEMA)
    write_index(path, table, shards=["t.tar"], shard_bytes=[1024], vocabulary=vocabulary, has_truth=False)
    return open_index(path)


def _print(
    asked: argparse.Namespace, device: str, size: int, held: dict[str, list[float]], steps: dict[str, list[float]]
) -> None:
    old = statistics.median(held["in the step"])
    plain = statistics.fmean(steps["no saving"])
    print(
        f"{asked.backbone}, {asked.classes:,} classes, {asked.images} images of {asked.pixels} px on {device}: "
        f"{size / 1e6:,.0f} MB per checkpoint, {asked.rounds} rounds in turns, {BETWEEN} steps from one to the next\n"
    )
    rows = []
    for name, times in held.items():
        median, slower = statistics.median(times), sum(steps[name]) / asked.rounds - BETWEEN * plain
        cells = (median, min(times), max(times), slower)
        rows.append([name, *(f"{cell:.3f}" for cell in cells), f"{median / old:.1%}", f"{(median + slower) / old:.1%}"])
    heads = ["checkpoint written", "wait, s (median)", "minimum", "maximum", "slowdown of the next steps, s"]
    print(markdown([*heads, "wait, relative to in the step", "wait and slowdown, relative"], rows))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog=PROG, description=__doc__)
    parser.add_argument(
        "--backbone", default="resnet101", help="backbone of the model, as raypaml train names it [resnet101]"
    )
    parser.add_argument("--classes", type=int, default=5000, help="number of classes [5000]")
    parser.add_argument("--images", type=int, default=2, help="images of a training step [2]")
    parser.add_argument("--pixels", type=int, default=224, help="height and width of the images [224]")
    parser.add_argument("--rounds", type=int, default=5, help="checkpoints that are saved in each way [5]")
    parser.add_argument(
        "--folder", type=Path, default=None, help="folder on the disk that is written to [the system's /tmp]"
    )
    return parser.parse(argv)


if __name__ == "__main__":
    run_command(main, PROG)
