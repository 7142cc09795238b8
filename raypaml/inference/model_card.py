"""The card of a model, `card.json` beside its weights: its classes, the form of its images, and its origin."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from raypaml.config import EARLIER, TrainConfig
from raypaml.evaluation.result_records import read_result
from raypaml.files import file_digest, write_json
from raypaml.json_types import Within, check_fields, check_length
from raypaml.labels import VOCABULARY, Vocabulary
from raypaml.runs.alpha_of_use import CHOSEN, AlphaValues, OneAlpha, asked_alpha, used_alpha
from raypaml.runs.checkpoint import read_state
from raypaml.runs.history import VALIDATION_MEAN_AP
from raypaml.runs.models import find_checkpoint, tested_checkpoint
from raypaml.runs.run_files import CONFIG, MODEL, MODEL_CARD
from raypaml.runs.run_folder import read_config
from raypaml.runs.run_record import read_run_record
from raypaml.settings import OptimConfig
from raypaml.stored_json import read_stored, refused_as

_FORMAT = 1
_Side = Annotated[int, Within(1, 1 << 14)]
_LATER = ("training_alpha", "alpha_origin", "alpha_chosen", "thresholds")
"""Fields that cards of earlier versions lack."""
_SETTINGS = ("recipe", *(name for name, _ in TrainConfig().groups()), *TrainConfig().flat())
"""The parts of a configuration, which a card need not have."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """The facts about a model that its use depends on."""

    class_ids: list[str]
    names: list[str]
    vocabulary: str
    """Digest of the class ids in their order."""
    backbone: str
    alpha: AlphaValues
    """BoostLU's factor that the model is used with, one for all classes or [K]."""
    training_alpha: OneAlpha | None = None
    """BoostLU's factor in training; None in cards of earlier versions, where it is `alpha`."""
    alpha_origin: str = "that of training"
    """Where `alpha` comes from, in words."""
    alpha_chosen: bool = False
    """Whether it was chosen on validation."""
    thresholds: list[float] | None = None
    """[K] logits of each class's best F1 on validation at `alpha`, where they were chosen together."""
    height: _Side
    width: _Side
    """Size of the model's images, in pixels. Any picture is turned upright, made RGB, and resized to it by a bilinear
    filter with antialiasing, without keeping its aspect. The model takes uint8 [B, 3, H, W], 0..255, and normalises
    them itself."""
    weights: str
    """SHA-256 of `model.safetensors`."""
    metrics: dict[str, object]
    """The content of the run's result.json, if it is this checkpoint's, and its validation mAP; empty where nothing is
    known."""
    origin: dict[str, object]
    """The run, the checkpoint, and the run's configuration; empty where nothing is known."""

    @property
    def optim(self) -> OptimConfig:
        """The settings by which the run computed, such as its precision, in which the model is used too.

        A setting that the run's version did not have gets the value that it had before it existed (`config.EARLIER`).
        """
        known = {field.name for field in dataclasses.fields(OptimConfig)}
        stored: dict[str, Any] = EARLIER | self.settings("optim")
        return OptimConfig(**{name: value for name, value in stored.items() if name in known})

    def settings(self, group: str) -> dict[str, object]:
        """The run's settings in a group such as `optim`, by name; empty where the card says nothing of them."""
        config = self.origin.get("config")
        settings = config.get(group) if isinstance(config, dict) else None
        return settings if isinstance(settings, dict) else {}

    def at_alpha(self, asked: str) -> Card:
        """The card of the same model at another alpha.

        Args:
            asked: a number from 1, `training` or `chosen`; "" leaves the card as it is.

        Raises:
            ValueError: `chosen`, and the alpha of this card was not chosen on validation; or no alpha.
        """
        if asked == CHOSEN and not self.alpha_chosen:
            raise ValueError(
                f"alpha={CHOSEN}: this model's alpha was not chosen on validation ({self.alpha_origin}); run raypaml "
                "evaluate RUN --choose-alpha, and export the run again"
            )
        if asked in ("", CHOSEN):
            return self
        training = self.training_alpha
        if training is None:
            assert isinstance(self.alpha, float | int)  # earlier versions wrote one
            training = self.alpha
        used = asked_alpha(asked, training)
        thresholds = self.thresholds if used.alpha == self.alpha else None  # those of another alpha mean nothing
        return dataclasses.replace(
            self, alpha=used.alpha, alpha_origin=used.alpha_origin, alpha_chosen=used.chosen, thresholds=thresholds
        )

    def write(self, folder: Path) -> None:
        """Write `card.json`."""
        write_json(folder / MODEL_CARD, {"format": _FORMAT} | dataclasses.asdict(self), indent=1)

    @classmethod
    def read(cls, folder: Path) -> Card:
        """Read and check `card.json`; ValueError if it is no card, or the weights beside it are not those it names."""
        path = folder / MODEL_CARD
        with refused_as(path, "the card of a model", "export it again"):
            card = read_stored(path, cls, version=_FORMAT, lacking=_LATER)
            for name in ("names", "alpha", "thresholds"):
                check_length(name, getattr(card, name), len(card.class_ids))
            if isinstance(card.alpha, list) and card.training_alpha is None:
                raise ValueError("training_alpha is missing")
            check_fields(card.origin.get("config", {}), TrainConfig, _SETTINGS, "origin.config")
        if Vocabulary.digest_of(card.class_ids) != card.vocabulary:
            raise ValueError(f"{path}: its classes are not those of its vocabulary digest; export it again")
        if digest(folder / MODEL) != card.weights:
            raise ValueError(f"{folder / MODEL}: not the weights that {MODEL_CARD} names; export it again")
        return card


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The files of a model at one moment; two of them are equal where they predict the same."""

    card: Card
    """At the alpha of use."""
    weights: Path
    """The file with the weights, whose digest is in the card."""

    @classmethod
    def find(cls, path: Path, alpha: str = "") -> ModelFiles:
        """The files of a run's best checkpoint, of a checkpoint, or of an export.

        Args:
            path: its folder.
            alpha: BoostLU's factor, a number from 1, `training` or `chosen`; "" takes the one that was chosen, or where
                none was that of training.

        Raises:
            ValueError: another folder, or a damaged file.
        """
        if path.is_file():
            raise ValueError(
                f"{path}: a file; give the folder of a run, a checkpoint or an export (nothing is unpickled)"
            )
        card, folder = (Card.read(path), path) if (path / MODEL_CARD).is_file() else card_of_run(path)
        return cls(card=card.at_alpha(alpha), weights=(folder / MODEL).absolute())

    def __hash__(self) -> int:
        return hash(self.card.weights)  # the card has lists, which have none

    def check(self) -> None:
        """Raise ValueError if the weights have changed since the card was read."""
        if digest(self.weights) != self.card.weights:
            raise ValueError(f"{self.weights}: has changed since its card was read; give the command again")


def digest(path: Path) -> str:
    """SHA-256 of a file; ValueError if there is none."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return file_digest(path)


def card_of_run(given: Path) -> tuple[Card, Path]:
    """The card of a run's best checkpoint, or of a checkpoint, and the checkpoint.

    Raises:
        ValueError: not a run or checkpoint, a damaged one, or one of another vocabulary than the run's.
    """
    if not given.is_dir():
        raise ValueError(f"{given}: no such folder; give a run, one of its checkpoints, or an export")
    run, checkpoint = find_checkpoint(given)
    if not (run / CONFIG).is_file():
        raise ValueError(
            f"{given}: not a run (it has no config.json), not a checkpoint (in the checkpoints of a run), not an "
            f"export (it has no {MODEL_CARD}); give one of them"
        )
    config = read_config(run / CONFIG)
    data = read_run_record(run)["data"]
    written = [path for path in (run / VOCABULARY, run / "predictions" / "test" / VOCABULARY) if path.is_file()]
    if not written:
        raise ValueError(f"{run}: has no vocabulary.csv; copy that of its data set into it")
    vocabulary = Vocabulary.read(written[0])
    state = read_state(checkpoint)
    for what, other in ((run / CONFIG, data["vocabulary"]), (checkpoint, state.vocabulary)):
        if other != vocabulary.digest:
            raise ValueError(
                f"{what}: of another vocabulary (digest {other[:12]}) than {run} ({vocabulary.digest[:12]})"
            )
    if "image_size" not in data:
        raise ValueError(
            f"{run}: does not say the size of its images; it was trained by an older version, train it again"
        )
    height, width = data["image_size"]
    metrics = _test_figures(given, run, checkpoint) | ({VALIDATION_MEAN_AP: state.score} if state.score >= 0 else {})
    return _card(config, vocabulary, (height, width), run, checkpoint, metrics), checkpoint


def _card(
    config: TrainConfig,
    vocabulary: Vocabulary,
    size: tuple[int, int],
    run: Path,
    checkpoint: Path,
    metrics: dict[str, object],
) -> Card:
    used = used_alpha(run, checkpoint, config.model.alpha)
    return Card(
        class_ids=list(vocabulary.class_ids),
        names=list(vocabulary.names),
        vocabulary=vocabulary.digest,
        backbone=config.model.backbone,
        alpha=used.alpha,
        training_alpha=config.model.alpha,
        alpha_origin=used.alpha_origin,
        alpha_chosen=used.chosen,
        thresholds=used.thresholds,
        height=size[0],
        width=size[1],
        weights=digest(checkpoint / MODEL),
        metrics=metrics,
        origin={"run": run.absolute().name, "checkpoint": checkpoint.name, "config": config.to_dict()},
    )


def _test_figures(given: Path, run: Path, checkpoint: Path) -> dict[str, object]:
    """The figures of result.json, where they are those of this checkpoint; else none.

    A run that was given stands for the checkpoint that was tested. For one given by itself, the tested one is searched
    for, which reads every checkpoint of the run.
    """
    result = read_result(run)
    if result is None or (given != run and tested_checkpoint(run).name != checkpoint.name):
        return {}
    return dict(result)
