"""The records of figures that JSON files hold: of a prediction set, of a run, and of `raypaml aggregate`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from raypaml.cli import command
from raypaml.json_types import Figure
from raypaml.metrics.conventions import Convention
from raypaml.runs.run_cost import RunCost
from raypaml.runs.run_files import RESULT
from raypaml.runs.run_record import Length
from raypaml.stored_json import read_if_there


class GroupFigures(TypedDict):
    """Mean AP, 0..1, under the convention `paper`."""

    mean_ap: Figure
    """Mean over all classes that count."""
    groups: dict[str, Figure]
    """Mean over those of each class group, by its name, G1 (rarest) to G5."""


class ChosenAlphaFigures(GroupFigures):
    """The test figures at the alpha that was chosen on validation."""

    alpha: float | list[float]
    """BoostLU's factor, one for all classes or [K]."""
    way: str
    """One of `metrics.alpha_choice`: one alpha for all classes, for each class group, or for each class."""
    said: str
    """How the alpha was chosen, in words."""


class Summary(GroupFigures):
    """The figures of one prediction set and what they count, as JSON files have them."""

    classes: int
    """Classes of the vocabulary."""
    classes_scored: int
    """Classes with an observed label."""
    classes_without_positives: int
    """Scored classes without a positive, which count 0."""
    convention: str
    split: str
    images: int
    """Images with an observed label."""
    skipped: int
    """Broken images, which have no predictions."""
    positives: int
    """Observed positive entries."""
    negatives: int
    """Observed negative entries."""
    vocabulary: str
    """Digest of the classes."""
    metrics: NotRequired[dict[str, dict[str, Figure]]]
    """Means over G1..G5 and All of every registered metric, by its name."""
    chosen_alpha: NotRequired[ChosenAlphaFigures | None]
    """The figures at the alpha chosen on validation, in the result of a run; None where it is not used."""
    chosen_alpha_unused: NotRequired[str]
    """Why the alpha that was chosen is not used, such as that it was chosen for other weights."""


class Training(TypedDict):
    """What `result.json` says of the settings of a run and of how its training ended."""

    scheme: str
    alpha: float
    """BoostLU's factor in training."""
    delta_rel: float
    """Percent of all entries that are rejected in addition with each epoch."""
    seed: int
    epochs: int
    """Epochs that the configuration asks for."""
    epochs_trained: NotRequired[int]
    """Missing, as the next, in results of earlier versions."""
    stopped_early: NotRequired[str | None]
    """Why training ended before its last epoch; None where it did not."""
    world_size: int
    """Training workers."""
    best_epoch: int
    """The epoch, from 0, of best validation mAP, whose checkpoint is tested."""
    validation_mean_ap: Figure
    """Mean AP, 0..1, on the validation split after the best epoch."""
    training_seconds: float


class RunResult(Summary, Training):
    """The content of `result.json`."""

    lengths: NotRequired[list[Length]]
    """The lengths in epochs that the run was given one after the other, where it was lengthened."""
    cost: NotRequired[RunCost]
    """Hours of the run's workers; missing in results of earlier versions."""
    validation_labels: NotRequired[Literal["complete", "partial"]]
    """Whether every entry of the validation split is observed; missing in results of earlier versions."""


def read_result(run_folder: Path) -> RunResult | None:
    """Read a run's `result.json`; None for an unfinished run, ValueError where the file is damaged."""
    remedy = f"{command('report')} {run_folder} writes it again"
    return read_if_there(run_folder / RESULT, RunResult, "the result of a run", remedy)


Interval = tuple[float, float]
"""The ends of a 95 % bootstrap interval."""


class ConventionFigures(TypedDict, total=False):
    """Mean AP, 0..1, under one convention; with `reason` alone beside it where it could not be computed."""

    mean_ap: float | None
    """Mean over all classes that count."""
    reason: str
    """Why there is no mean."""
    groups: dict[str, float]
    """Mean over those of each class group, by its name."""
    classes_counted: int
    classes_counted_by_group: list[int]
    """Counted classes of G1 to G5."""
    classes_skipped: dict[str, int]
    """How many classes do not count, by the reason."""
    interval_95: dict[str, Interval]
    """The interval of each group's mean and of All; only with bootstrap replicates."""


class Difference(TypedDict):
    """The mean AP of a second set minus that of the first, 0..1, under one convention."""

    difference: dict[str, float]
    """By class group, and All."""
    interval_95: NotRequired[dict[str, Interval]]
    """The interval of the paired difference: the same images are drawn for both sets."""


class SetFigures(Summary):
    """All figures of one prediction set, 0..1; every mean stands beside its convention and what it counts."""

    alpha: float | list[float] | None
    """BoostLU's factor, one for all classes or [K]; None where the predictions have one score an entry."""
    scores: Literal["logits", "probabilities"]
    samples: int | None
    """Predicted images; None where only those with an entry are known."""
    conventions: dict[Convention, ConventionFigures]
    calibration_error: float
    """Expected calibration error over observed entries."""
    alpha_curve: NotRequired[dict[str, dict[str, float]]]
    """Mean AP of G1..G5 and All under the convention `paper`, by alpha."""
    decisions: NotRequired[dict[str, float]]
    """Precision, recall and F1 at the thresholds that were asked for, over all entries and as means over classes."""
    precision_at_recall: NotRequired[dict[str, float]]
    """Mean over the classes of G1..G5 and All of the precision at the recall that was asked for."""


class AggregateFigures(TypedDict):
    """The content of the file that `raypaml aggregate --json` writes."""

    runs: list[SetFigures]
    difference: NotRequired[dict[Convention, Difference]]
    """The second set compared with the first, where two were given."""
