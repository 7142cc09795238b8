"""Predict the entries of a split, in parts that do not depend on the number of workers; nothing dense, nothing lost."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from raypaml.config import TrainConfig
from raypaml.data.batches import Reader, read
from raypaml.data.folder import DataFolder, open_folder
from raypaml.data.plan import Part as PlanPart
from raypaml.data.plan import Plan, default_lanes
from raypaml.labels import POSITIVE, UNOBSERVED
from raypaml.metrics.average_precision import average_precision
from raypaml.model.cam import CamClassifier
from raypaml.predictions.parts import Part, is_finished, read_part, read_skipped, write_part
from raypaml.training.distributed import Team
from raypaml.training.features import Features
from raypaml.training.gradients import lane_slices
from raypaml.training.skips import Skip, check_budget, named

EVALUATION_BATCHES = 4
"""Evaluation takes this many training batches at once: it keeps no activations."""
PART_BATCHES = 4
"""Evaluation batches of one part: what an interruption can cost a worker."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """R entries: the sample, the class, its label, and the score's parts P and N."""

    row: NDArray[np.int64]
    class_index: NDArray[np.int64]
    label: NDArray[np.int8]
    P: NDArray[np.float32]
    N: NDArray[np.float32]
    skipped: tuple[Skip, ...] = ()
    """Broken samples of this rank, which have no entry."""

    def ap(self, alpha: float, num_classes: int) -> Floats:
        """[K] average precision of observed entries with this alpha, convention `paper`."""
        logits = np.float32(alpha) * self.P + self.N
        return average_precision(self.class_index, logits, self.label == POSITIVE, num_classes)

    def gather(self, team: Team) -> Predictions:
        """The entries of all ranks, on every rank; what they skipped is gathered by `skips.gather`."""
        columns = (self.row, self.class_index, self.label, self.P, self.N)
        return Predictions(*(team.gather(column) for column in columns))  # type: ignore[arg-type]


def predict(
    model: CamClassifier,
    data: DataFolder,
    split: str,
    team: Team,
    *,
    lanes: int,
    batch_size: int,
    loader_workers: int,
    features: Features | None = None,
    skip_broken: bool = False,
    moved: Callable[[], None] = lambda: None,
) -> Predictions:
    """Predict this rank's share of a split, from kept features if there are any; each sample belongs to one rank.

    `moved` is called for every batch.
    """
    plan = Plan(num_samples=len(data.splits[split]), global_batch_size=batch_size, lanes=lanes, shuffle=False)
    steps = plan.epoch(0, team.rank, team.world_size)
    return predict_steps(
        model,
        data,
        split,
        steps,
        team.device,
        loader_workers=loader_workers,
        features=features,
        skip_broken=skip_broken,
        moved=moved,
    )


def predict_steps(
    model: CamClassifier,
    data: DataFolder,
    split: str,
    steps: Sequence[PlanPart],
    device: torch.device,
    *,
    loader_workers: int,
    unobserved: bool = False,
    features: Features | None = None,
    skip_broken: bool = False,
    moved: Callable[[], None] = lambda: None,
) -> Predictions:
    """Predict the samples of some steps of a plan: their observed entries, or all."""
    index = data.splits[split]
    reader = Reader(data.shards, index, steps, skip_broken=skip_broken, with_images=features is None)
    columns, skipped = [_empty()], list[Skip]()
    model.eval()
    with torch.inference_mode():
        threads = loader_workers if features is None else 0
        for batch in read(reader, loader_workers=threads, pin_memory=device.type == "cuda"):
            moved()
            skipped += batch.skipped
            if not len(batch.rows):
                continue
            # lane by lane: a convolution's last bit may depend on the batch's shape, not so the lanes'
            lanes = lane_slices(batch.lane_sizes)
            if features is None:
                parts = [model.pooled(batch.images[lane].to(device)) for lane in lanes]
            else:
                parts = [model.pooled_features(features.take(batch.rows[lane]).to(device)) for lane in lanes]
            p, n = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
            labels = batch.labels.numpy()
            cell = position, classes = np.nonzero((labels != UNOBSERVED) | unobserved)
            columns.append((batch.rows[position], classes, labels[cell], p[cell], n[cell]))
    model.train()
    row, class_index, label, p, n = (np.concatenate(column) for column in zip(*columns, strict=True))
    return Predictions(row, class_index, label, p, n, tuple(skipped))


def _empty() -> tuple[NDArray[np.generic], ...]:
    return tuple(np.empty(0, kind) for kind in (np.int64, np.int64, np.int8, np.float32, np.float32))


# --- Parts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """One checkpoint on one split, cut into parts. Small, and the same in every process that works on it."""

    checkpoint: Path
    config: TrainConfig
    data: str
    """Path or address of the data set."""
    folder: Path
    """Where the parts go."""
    parts: tuple[Part, ...]

    def unfinished(self) -> list[Part]:
        """The parts that are not there yet, whole, from this checkpoint and this data."""
        return [part for part in self.parts if not is_finished(self.folder, part)]

    def steps(self, part: Part) -> list[PlanPart]:
        """What a part reads: the lanes of the run that was trained, whoever predicts it."""
        plan = _plan(self.config, part.samples)
        first = part.part * PART_BATCHES
        return plan.epoch(0, 0, 1)[first : first + PART_BATCHES]


def plan_evaluation(
    checkpoint: Path, config: TrainConfig, data: DataFolder, split: str, folder: Path, *, unobserved: bool = False
) -> Evaluation:
    """Cut the evaluation of a split into parts; their bounds depend on the configuration and the split alone."""
    index = data.splits[split]
    steps = _plan(config, len(index)).epoch(0, 0, 1)
    chunks = [steps[first : first + PART_BATCHES] for first in range(0, len(steps), PART_BATCHES)]
    sizes = [sum(len(step.rows) for step in chunk) for chunk in chunks]
    first = Part(
        split=split,
        vocabulary=data.vocabulary.digest,
        num_classes=len(data.vocabulary),
        alpha=config.model.alpha,
        model=_digest(checkpoint / "model.safetensors"),
        data=_digest(index.where),
        unobserved=unobserved,
        samples=len(index),
        parts=len(chunks),
        part=0,
        part_samples=sizes[0],
    )
    parts = (dataclasses.replace(first, part=number, part_samples=size) for number, size in enumerate(sizes))
    return Evaluation(checkpoint, config, data.address, folder.absolute(), tuple(parts))


def _plan(config: TrainConfig, samples: int) -> Plan:
    size = config.data.global_batch_size
    lanes = config.data.lanes or default_lanes(size)
    return Plan(num_samples=samples, global_batch_size=size * EVALUATION_BATCHES, lanes=lanes, shuffle=False)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clear_folder(evaluation: Evaluation, data: DataFolder, *, replace: bool) -> None:
    """Make the folder ready: the vocabulary in it, and no part of another set.

    Raises:
        ValueError: there are parts of another set, and `replace` is False.
    """
    evaluation.folder.mkdir(parents=True, exist_ok=True)
    for path in evaluation.folder.glob("part-*.unfinished"):
        path.unlink()
    for path in evaluation.folder.glob("part-*.parquet"):
        if not _belongs(path, evaluation.parts[0]):
            if not replace:
                raise ValueError(
                    f"{path}: predictions of another checkpoint, data or split; give another --out or remove them"
                )
            path.unlink()
    data.vocabulary.write(evaluation.folder / "vocabulary.csv")


def _belongs(path: Path, part: Part) -> bool:
    """Whether a file is of the same set, or so damaged that it will be written again."""
    try:
        return read_part(path).of_set == part.of_set
    except ValueError:
        return dataclasses.replace(part, part=0).name[10:] == path.name[10:]


def predict_part(
    evaluation: Evaluation, part: Part, model: CamClassifier, data: DataFolder, device: torch.device
) -> None:
    """Predict and write one part."""
    found = predict_steps(
        model,
        data,
        part.split,
        evaluation.steps(part),
        device,
        loader_workers=evaluation.config.data.loader_workers,
        unobserved=part.unobserved,
        skip_broken=evaluation.config.data.skip_budget > 0,
    )
    index = data.splits[part.split]
    skipped = named(found.skipped, index)
    check_budget(skipped, part.split, part.samples, evaluation.config.data.skip_budget)
    columns = {
        "key": pa.array(index.keys(found.row), pa.string()),
        "class": found.class_index,
        "positive": pa.array(found.label == POSITIVE, mask=found.label == UNOBSERVED),
        "P": found.P,
        "N": found.N,
    }
    write_part(evaluation.folder, part, pa.table(columns), skipped)


def check_skipped(evaluation: Evaluation) -> int:
    """How many broken samples all parts together skipped; ValueError if more than the budget allows."""
    skipped = [line for part in evaluation.parts for line in read_skipped(evaluation.folder / part.name)]
    one = evaluation.parts[0]
    check_budget(skipped, one.split, one.samples, evaluation.config.data.skip_budget)
    return len(skipped)


def predict_part_alone(evaluation: Evaluation, part: Part, device: str) -> int:
    """Predict and write one part in a process that has nothing yet; returns its number."""
    torch.set_num_threads(1)  # their number may move a float's last bit
    model, data = _opened(evaluation.checkpoint, evaluation.config, evaluation.data, device)
    predict_part(evaluation, part, model, data, torch.device(device))
    return part.part


@functools.lru_cache(maxsize=1)
def _opened(checkpoint: Path, config: TrainConfig, data: str, device: str) -> tuple[CamClassifier, DataFolder]:
    from raypaml.training.models import checkpoint_model

    folder = open_folder(data, **config.data.opening)
    return checkpoint_model(checkpoint, config.model, len(folder.vocabulary)).to(device), folder
