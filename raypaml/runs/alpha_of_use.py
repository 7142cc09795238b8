"""The alpha and the thresholds that a trained model is used with: of training, chosen on validation, or asked for.

    <run>/alpha_of_use.json                the choice for the run's best checkpoint
    <run>/alpha_of_use-0003-000120.json    the choice for another checkpoint

A choice holds the digest of the weights that it was made for. For other weights it is not used, which is said.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import numpy as np
from safetensors import SafetensorError, safe_open

from raypaml.files import write_json
from raypaml.json_types import Within, check_length
from raypaml.labels import FloatArray
from raypaml.metrics.alpha_choice import Way
from raypaml.runs.mirror import MARKER
from raypaml.runs.run_files import MODEL
from raypaml.settings import LARGEST_ALPHA
from raypaml.stored_json import read_stored, refused_as

ALPHA_FILE = "alpha_of_use.json"
TRAINING = "training"
"""Value of --alpha that asks for the alpha of training."""
CHOSEN = "chosen"
"""Value of --alpha that asks for the alpha chosen on validation."""
_FORMAT = 1
_AGAIN = "run raypaml evaluate --choose-alpha again"

_LARGEST = float(np.finfo(np.float32).max)

OneAlpha = Annotated[float, Within(1, _LARGEST)]
AlphaValues = OneAlpha | list[OneAlpha]
"""BoostLU's factor, >= 1: one for all classes, or [K]."""
Share = Annotated[float, Within(0, 1)]


class TriedWay(TypedDict):
    """One way to give alphas to classes, and how it did on images left out (cross-validation)."""

    way: Way
    alphas: list[OneAlpha]
    """The distinct alphas of the classes."""
    held_out: Share | None
    """Mean AP under cross-validation; None without positives."""
    gain: Annotated[float, Within(-1, 1)]
    """Mean AP above that of the simpler way compared with it."""
    noise: Annotated[float, Within(0, math.inf)]
    """Standard error of the gain."""
    wins: bool
    """Whether it was preferred to the simpler way."""


@dataclass(frozen=True)
class ModelClasses:
    """The classes of a model, which a choice must fit."""

    vocabulary: str
    """Digest of the vocabulary."""
    num_classes: int

    @classmethod
    def of(cls, checkpoint: Path) -> ModelClasses:
        """Read the classes of a checkpoint from its state and its head; ValueError where it holds no model."""
        from raypaml.runs.checkpoint import read_state  # with torch, which raypaml aggregate does without

        path = checkpoint / MODEL
        try:
            with safe_open(path, "np") as weights:
                return cls(read_state(checkpoint).vocabulary, weights.get_slice("head.bias").get_shape()[0])
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file of a model ({error}); nothing else is read") from None


@dataclass(frozen=True, kw_only=True)
class AlphaChoice:
    """The choice made on validation for one set of weights; K classes in the order of the vocabulary."""

    way: Way
    """Which classes share an alpha: `training` (that of training is kept), `one`, `group` or `class`."""
    alpha: AlphaValues
    training_alpha: OneAlpha
    thresholds: list[float] | None
    """[K] logits of best F1 at this alpha; None where validation has no positives or no negatives."""
    pooled_thresholds: list[int]
    """Class columns without positives or without negatives, whose threshold is that of all classes together."""
    model: str
    """SHA-256 of the weights."""
    checkpoint: str
    """Name of the checkpoint that has these weights."""
    vocabulary: str
    """Digest of the vocabulary."""
    labels: Literal["complete", "partial"]
    """`complete` where every entry of validation is observed, else `partial`."""
    observed_share: Share
    """Share of the entries of validation that are observed."""
    images: int
    """Number of validation images that have a label."""
    few_positives: list[int]
    """Class columns with so few positives that their alpha mostly follows that of all classes together."""
    candidates: list[TriedWay]
    """The ways compared, from the simplest to the richest."""
    undecided: str = ""
    """Why the labels of validation cannot decide, or hardly can, in a sentence; empty where they can."""

    @property
    def said(self) -> str:
        """The choice, described for the user."""
        ways = {
            "training": "that of training",
            "one": "one alpha for all classes",
            "group": "alpha by class group",
            "class": "alpha by class",
        }
        why = "kept, for none was clearly better" if self.way == "training" else "chosen"
        return f"{ways[self.way]}, {why} on validation ({self.images:,} images, {self.labels} labels)"

    def write(self, path: Path) -> None:
        """Write the choice, whole or not at all."""
        write_json(path, {"format": _FORMAT} | dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path, classes: ModelClasses) -> AlphaChoice:
        """Read and check a choice; ValueError where it is damaged, of another version, or of other classes."""
        with refused_as(path, "a choice of alpha of this version and model", f"remove it, or {_AGAIN}"):
            choice = read_stored(path, cls, version=_FORMAT, lacking=("undecided",))  # earlier versions had none
            _check_consistency(choice, classes)
            return choice


def _check_consistency(choice: AlphaChoice, classes: ModelClasses) -> None:
    """Raise ValueError where fields, each of the right type, do not fit each other or the model."""
    if choice.vocabulary != classes.vocabulary:
        raise ValueError(f"vocabulary={choice.vocabulary[:12]!r}: the model's is {classes.vocabulary[:12]!r}")
    check_length("alpha", choice.alpha, classes.num_classes)
    check_length("thresholds", choice.thresholds, classes.num_classes)
    for name in ("pooled_thresholds", "few_positives"):
        if beyond := [column for column in getattr(choice, name) if column >= classes.num_classes]:
            raise ValueError(f"{name}: no class {beyond[0]}; the model has {classes.num_classes:,}, from 0")
    if choice.way in ("training", "one") and isinstance(choice.alpha, list):
        raise ValueError(f"way={choice.way}: must have one alpha for all classes, not {len(choice.alpha):,}")
    if choice.way == "training" and choice.alpha != choice.training_alpha:
        raise ValueError(f"way=training: alpha {choice.alpha:g} is not that of training")


@dataclass(frozen=True)
class UsedAlpha:
    """The alpha that a model is used with."""

    alpha: AlphaValues
    alpha_origin: str
    """Where it comes from, for the user."""
    thresholds: list[float] | None = None
    """[K] logits, where they were chosen on validation along with this alpha."""
    chosen: bool = False
    """Whether it was chosen on validation."""


def alpha_file(run: Path, checkpoint: str = "") -> Path:
    """The file with the choice for the run's best checkpoint, or for another checkpoint of this name."""
    return run / (f"alpha_of_use-{checkpoint}.json" if checkpoint else ALPHA_FILE)


def alpha_choice(run: Path, weights: str, classes: ModelClasses) -> tuple[AlphaChoice | None, str]:
    """Find the choice for the weights of a digest.

    Returns:
        The choice, or None; and, where there are only choices for other weights, a sentence that says so, else "".
    """
    said = ""
    for path in sorted(run.glob("alpha_of_use*.json")):
        choice = AlphaChoice.read(path, classes)
        if choice.model == weights:
            return choice, ""
        said = f"{path.name} is of other weights (checkpoint {choice.checkpoint}); {_AGAIN}"
    return None, said


def chosen_alpha(run: Path, weights: str, classes: ModelClasses) -> AlphaValues:
    """The alpha chosen for the weights of a digest; ValueError where none was chosen."""
    choice, unused = alpha_choice(run, weights, classes)
    if choice is None:
        said = unused or "none was chosen for these predictions; run raypaml evaluate RUN --choose-alpha"
        raise ValueError(f"alpha={CHOSEN}: {run}: {said}")
    return choice.alpha


def used_alpha(run: Path, checkpoint: Path, training: float, asked: str = "") -> UsedAlpha:
    """The alpha to use the weights of a checkpoint with.

    Args:
        run: the folder of the run.
        checkpoint: the checkpoint whose weights are used.
        training: the alpha of the run's configuration.
        asked: a number >= 1, `training` or `chosen`; "" for the one chosen on validation or, if there is none, that of
            training.

    Raises:
        ValueError: `asked` is none of these, none was chosen, or the stored choice is damaged.
    """
    if asked not in ("", CHOSEN):
        return asked_alpha(asked, training)
    choice, unused = alpha_choice(run, model_digest(checkpoint), ModelClasses.of(checkpoint))
    if choice is not None:
        return UsedAlpha(choice.alpha, choice.said, choice.thresholds, chosen=True)
    if asked == CHOSEN:
        said = unused or "none was chosen for these weights; run raypaml evaluate RUN --choose-alpha"
        raise ValueError(f"alpha={CHOSEN}: {run}: {said}")
    return UsedAlpha(training, "that of training" + (f"; {unused}" if unused else ""))


def asked_alpha(asked: str, training: float) -> UsedAlpha:
    """The alpha given on a command line; ValueError unless it is a number >= 1 or `training`."""
    if asked == TRAINING:
        return UsedAlpha(training, "that of training, as asked for")
    try:
        alpha = float(asked)
    except ValueError:
        alpha = float("nan")
    if not 1 <= alpha <= LARGEST_ALPHA:
        known = f"{TRAINING} or {CHOSEN}"
        raise ValueError(
            f"alpha={asked}: expected a number of at least 1 and at most {LARGEST_ALPHA:,g}, or {known}; 1 switches "
            "BoostLU off"
        )
    return UsedAlpha(alpha, "as asked for")


def model_digest(checkpoint: Path) -> str:
    """SHA-256 of the weights of a valid checkpoint, as its marker records it."""
    return read_stored(checkpoint / MARKER, dict[str, str])[MODEL]


def alpha_text(alpha: AlphaValues | FloatArray) -> str:
    """An alpha as text: one value, or the range of the classes' values."""
    values = np.atleast_1d(np.asarray(alpha, np.float64))
    low, high = values.min(), values.max()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
