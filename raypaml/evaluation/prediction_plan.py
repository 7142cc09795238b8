"""Predicts a split in parts, each of which is written whole; their bounds do not depend on the number of processes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from raypaml.config import TrainConfig
from raypaml.data.data_folder import DataFolder, open_folder, resolve_data
from raypaml.data.plan import Part, Plan, default_lanes
from raypaml.evaluation.parts import PredictionPart, is_of_set, is_predicted, read_skipped, write_part
from raypaml.evaluation.predicting import predict_steps
from raypaml.files import file_digest, sweep
from raypaml.labels import POSITIVE, UNOBSERVED, VOCABULARY
from raypaml.model.cam import CamClassifier
from raypaml.outputs import output_folder
from raypaml.runs.kept_features import Features
from raypaml.runs.models import checkpoint_model, find_checkpoint, placed, prepare_device
from raypaml.runs.run_files import MODEL
from raypaml.runs.run_folder import changed_data, check_trained_classes, stored_config
from raypaml.runs.skips import check_budget, named

ALPHA_SPLIT = "validation"
"""The split on which alpha and thresholds are chosen."""
EVALUATION_BATCHES = 4
"""Training batches in one batch of evaluation, which is larger because no activations are kept."""
_PART_BATCHES = 4
"""Evaluation batches in one part: an interruption costs a worker at most as many."""
_MOST_ENTRIES = 8_000_000
"""The most entries of a part of several batches, where unobserved ones are predicted too: each takes 140 bytes."""


@dataclass(frozen=True)
class PredictionPlan:
    """The prediction of one split by one checkpoint, cut into parts; small enough to be sent to every process."""

    checkpoint: Path
    config: TrainConfig
    data: str
    """Path or address of the data set."""
    folder: Path
    """Folder of the predictions."""
    parts: tuple[PredictionPart, ...]

    def unfinished(self) -> list[PredictionPart]:
        """The parts that the folder does not yet hold undamaged, predicted by this checkpoint from this data."""
        return [part for part in self.parts if not is_predicted(self.folder, part)]

    def steps(self, part: PredictionPart) -> list[Part]:
        """The batches of a part, in the lanes of training, so that every process predicts the same bits."""
        plan = evaluation_plan(self.config, part.samples)
        batches = _part_batches(plan, part.num_classes, part.unobserved)
        return plan.epoch(0, 0, 1)[part.part * batches :][:batches]


@dataclass(frozen=True, kw_only=True)
class SplitRequest:
    """What `raypaml evaluate` is asked for; the fields are its flags.

    Raises:
        ValueError: alpha is to be chosen on another split than validation.
    """

    split: str = ""
    """The split to predict; "" for test, or for validation where alpha is chosen."""
    data: str = ""
    """A data set of the same classes, in the place of the run's own; "" for the run's own."""
    choose_alpha: bool = False
    """Whether to choose the alpha and the thresholds that the model is used with."""
    out: str = ""
    """Folder of the predictions; "" for one in the run's folder."""
    unobserved: bool = False
    """Whether unobserved entries are predicted too."""
    skip_budget: float | None = None
    """Share of the samples that may be broken; None for the run's own."""

    def __post_init__(self) -> None:
        if self.choose_alpha and self.split not in ("", ALPHA_SPLIT):
            raise ValueError(f"split={self.split}: alpha is chosen on {ALPHA_SPLIT} alone; leave --split out")

    @property
    def predicted_split(self) -> str:
        """The split to predict, also where none was named."""
        return self.split or (ALPHA_SPLIT if self.choose_alpha else "test")


def plan_asked(given: Path, request: SplitRequest, say: Callable[[str], None] = lambda _: None) -> PredictionPlan:
    """Plan and check the prediction of a split by a run or a checkpoint, and make its folder ready.

    Parts that lie in the folder already are kept. Where alpha is chosen and no folder was named, parts of another
    checkpoint or data set are removed; otherwise they make it refuse the folder.

    Args:
        given: folder of a run, whose best checkpoint is taken, or of a checkpoint.
        request: what is to be predicted.
        say: prints a line of progress.

    Raises:
        ValueError: the run, its checkpoint, the data or the folder do not fit.
    """
    split, skip_budget = request.predicted_split, request.skip_budget
    run, checkpoint = find_checkpoint(given)
    config = stored_config(run)
    if config is None:
        raise ValueError(f"{given}: neither the folder of a run nor one of its checkpoints")
    config = config if skip_budget is None else config.override({"skip_budget": skip_budget})
    config.check()
    folder = open_folder(resolve_data(request.data or config.data.data, say), **config.data.opening)
    if split not in folder.splits:
        raise ValueError(f"split={split!r}: the data set has {', '.join(folder.splits)}")
    check_trained_classes(run, folder.vocabulary.digest, folder.address)
    if not request.data and (changed := changed_data(run, folder, [split])):
        say(changed)
    own = f"-{checkpoint.name}" if given == checkpoint else ""
    usual = run / "predictions" / (split + own + ("-unobserved" if request.unobserved else ""))
    out = Path(request.out) if request.out else usual
    plan = plan_prediction(checkpoint, config, folder, split, out, unobserved=request.unobserved)
    with output_folder(plan.folder, goes_on=True):
        clear_folder(plan, folder, replace=request.choose_alpha and not request.out)
    return plan


def plan_prediction(
    checkpoint: Path, config: TrainConfig, data: DataFolder, split: str, folder: Path, *, unobserved: bool = False
) -> PredictionPlan:
    """Cut the prediction of a split into parts; their bounds depend on the configuration and the split alone."""
    index = data.splits[split]
    batches = evaluation_plan(config, len(index))
    steps, many = batches.epoch(0, 0, 1), _part_batches(batches, len(data.vocabulary), unobserved)
    chunks = [steps[first : first + many] for first in range(0, len(steps), many)]
    sizes = [sum(len(step.rows) for step in chunk) for chunk in chunks]
    first = PredictionPart(
        split=split,
        vocabulary=data.vocabulary.digest,
        num_classes=len(data.vocabulary),
        alpha=config.model.alpha,
        model=file_digest(checkpoint / MODEL),
        data=file_digest(index.where),
        unobserved=unobserved,
        samples=len(index),
        parts=len(chunks),
        part=0,
        part_samples=sizes[0],
    )
    parts = (dataclasses.replace(first, part=number, part_samples=size) for number, size in enumerate(sizes))
    return PredictionPlan(checkpoint, config, data.address, folder.absolute(), tuple(parts))


def evaluation_plan(config: TrainConfig, samples: int) -> Plan:
    """The batches in which so many samples are evaluated: in order, in the lanes of training, larger than there."""
    size = config.data.global_batch_size
    lanes = config.data.lanes or default_lanes(size)
    return Plan(num_samples=samples, global_batch_size=size * EVALUATION_BATCHES, lanes=lanes, shuffle=False)


def _part_batches(plan: Plan, num_classes: int, unobserved: bool) -> int:
    """The number of batches in one part, which is smaller where all entries of many classes are predicted."""
    most = _MOST_ENTRIES // (plan.global_batch_size * num_classes)
    return max(1, min(_PART_BATCHES, most)) if unobserved else _PART_BATCHES


def clear_folder(plan: PredictionPlan, data: DataFolder, *, replace: bool) -> None:
    """Make the folder of a plan, write the vocabulary into it, and with `replace` remove parts of other sets.

    Raises:
        ValueError: there are parts of another set, and `replace` is False.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    sweep(plan.folder)
    for path in plan.folder.glob("part-*.unfinished"):  # of versions that did not hide them
        path.unlink()
    for path in plan.folder.glob("part-*.parquet"):
        if not is_of_set(path, plan.parts[0], data.vocabulary.content_digest):
            if not replace:
                raise ValueError(
                    f"{path}: predictions of another checkpoint, data, classes or split, or of another version; give "
                    "another --out or remove them"
                )
            path.unlink()
    data.vocabulary.write(plan.folder / VOCABULARY)


def predict_part(
    plan: PredictionPlan,
    part: PredictionPart,
    model: CamClassifier,
    data: DataFolder,
    device: torch.device,
    features: Features | None = None,
) -> None:
    """Predict and write one part; `features` are kept features of the split, in the place of its images."""
    predicted = predict_steps(
        model,
        data,
        part.split,
        plan.steps(part),
        device,
        optim=plan.config.optim,
        loader_workers=plan.config.data.loader_workers,
        unobserved=part.unobserved,
        features=features,
        skip_broken=plan.config.data.skip_budget > 0,
    )
    index = data.splits[part.split]
    skipped = named(predicted.skipped, index)
    check_budget(skipped, part.split, part.samples, plan.config.data.skip_budget)
    first = np.flatnonzero(np.diff(predicted.row, prepend=-1))  # of each image's entries, of which there are thousands
    image = np.repeat(np.arange(len(first)), np.diff(first, append=len(predicted.row)))
    columns = {
        "key": pa.array(index.keys(predicted.row[first]), pa.string()).take(pa.array(image)),
        "class": predicted.class_index,
        "positive": pa.array(predicted.label == POSITIVE, mask=predicted.label == UNOBSERVED),
        "P": predicted.P,
        "N": predicted.N,
    }
    write_part(plan.folder, part, pa.table(columns), skipped, data.vocabulary.content_digest)


def check_skipped(plan: PredictionPlan) -> int:
    """The number of broken samples that were skipped in all parts; ValueError if the budget allows fewer."""
    skipped = [line for part in plan.parts for line in read_skipped(plan.folder / part.name)]
    one = plan.parts[0]
    check_budget(skipped, one.split, one.samples, plan.config.data.skip_budget)
    return len(skipped)


def predict_part_alone(plan: PredictionPlan, part: PredictionPart, device: str) -> int:
    """Predict and write one part in a process that has neither model nor data yet; returns the number of the part."""
    torch.set_num_threads(1)  # the last bit of a result may depend on the number of threads
    model, data = _opened(plan, device)
    predict_part(plan, part, model, data, torch.device(device))
    return part.part


@functools.lru_cache(maxsize=1)
def _opened(plan: PredictionPlan, device: str) -> tuple[CamClassifier, DataFolder]:
    """The model and the data of a plan, kept for its next part; a plan with other weights or data is another key."""
    folder = open_folder(plan.data, **plan.config.data.opening)
    prepare_device(plan.config.optim, torch.device(device))
    model = checkpoint_model(plan.checkpoint, plan.config.model, len(folder.vocabulary))
    return placed(model, torch.device(device)), folder
