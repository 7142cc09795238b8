"""The weights of another run that a run starts from (`--from`), identified by their SHA-256."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from raypaml.config import TrainConfig
from raypaml.data.data_folder import DataFolder
from raypaml.data.storage import Location, brief
from raypaml.labels import VOCABULARY, Vocabulary
from raypaml.model.cam import CamClassifier
from raypaml.runs.alpha_of_use import model_digest
from raypaml.runs.checkpoint import load_model, valid_checkpoints
from raypaml.runs.mirror import MARKER, Mirror, local_folder
from raypaml.runs.models import find_checkpoint
from raypaml.runs.run_files import CONFIG
from raypaml.runs.run_folder import stored_config
from raypaml.runs.run_record import read_run_record
from raypaml.settings import ModelConfig

_NAMED = 5
"""Most classes that a message names."""


def with_weights_of_run(config: TrainConfig, data: DataFolder, say: Callable[[str], None]) -> TrainConfig:
    """Check the weights that a run starts from, and record their full path and SHA-256 in its configuration.

    Args:
        config: the configuration, checked; without `from_run` it is returned as it is.
        data: the data set to train on.
        say: takes a line about which checkpoint it is, and which settings have no effect then.

    Raises:
        ValueError: `from_run` is neither a run nor a checkpoint, has other classes or another backbone, or has no
            weights with the SHA-256 that the configuration names.
    """
    model = config.model
    if not model.from_run:
        return config
    run, checkpoint = _open(model)
    _check_same_model(run, model, data)
    asked, usual = asdict(model), asdict(ModelConfig())
    new_weights = ("weights", "head_weights", "head_init", "head_prior")
    unused = ", ".join(f"{name}={asked[name]}" for name in new_weights if asked[name] != usual[name])
    about = f"starts from {checkpoint.parent.parent.name}/{checkpoint.name}, backbone and head"
    say(f"from={model.from_run}: {about}" + (f"; not used: {unused}" if unused else ""))
    return config.override({"from_run": full_address(model.from_run), "from_sha256": model_digest(checkpoint)})


def full_address(run: str) -> str:
    """A run's address, or its absolute path."""
    return run if _is_remote(run) else str(Path(run).absolute())


def load_weights_of_run(config: ModelConfig, model: CamClassifier) -> None:
    """Load backbone and head of the run that a configuration starts from into a model."""
    _, checkpoint = _open(config)
    load_model(checkpoint, model)


def _is_remote(run: str) -> bool:
    return not Location(run).is_local


def _open(model: ModelConfig) -> tuple[Path, Path]:
    """The folder of the run on this machine, and its checkpoint with the given SHA-256 or, without one, its best.

    A run in a store is copied as far as needed.
    """
    run, checkpoint = find_checkpoint(_fetched(model.from_run) if _is_remote(model.from_run) else Path(model.from_run))
    if stored_config(run) is None or not (checkpoint / MARKER).is_file():
        raise ValueError(f"from={model.from_run}: neither the folder of a run nor one of its checkpoints")
    if model.from_sha256 in ("", model_digest(checkpoint)):
        return run, checkpoint
    for other in valid_checkpoints(run / "checkpoints")[0]:
        if model_digest(other) == model.from_sha256:
            return run, other
    raise ValueError(
        f"from={model.from_run}: has no weights of SHA-256 {model.from_sha256[:12]} any more, with which this run was "
        "begun; begin another with another --name"
    )


def _fetched(address: str) -> Path:
    """Copy the records and checkpoints of a run in a store; returns the copy's folder on this machine.

    The folder in which this machine trains that run, perhaps at this moment, is left alone: it may be ahead of the
    store, which removes what it lacks.
    """
    base, mark, options = address.partition("?")
    storage, _, name = base.rstrip("/").rpartition("/")
    trained = local_folder(f"{storage}{mark}{options}", name)
    copy = trained.parents[2] / "copies" / trained.parent.name / name
    mirror = Mirror.of(f"{storage}{mark}{options}", copy)
    assert mirror is not None
    try:
        mirror.pull(CONFIG, VOCABULARY)
        mirror.pull_checkpoints()
    except OSError as error:
        raise ValueError(f"from={address}: cannot be read: {brief(error)}") from None
    return copy


def _check_same_model(run: Path, model: ModelConfig, data: DataFolder) -> None:
    """Raise ValueError where the run has another backbone or other classes than what is to be trained."""
    trained = stored_config(run)
    assert trained is not None
    if trained.model.backbone != model.backbone:
        raise ValueError(
            f"from={model.from_run}: its backbone is {trained.model.backbone}, and not {model.backbone}; give "
            f"--backbone {trained.model.backbone}"
        )
    digest = read_run_record(run)["data"]["vocabulary"]
    if digest != data.vocabulary.digest:
        raise ValueError(f"from={model.from_run}: {_difference(run, data)}; --weights takes a backbone alone")


def _difference(run: Path, data: DataFolder) -> str:
    """How the classes of a run differ from those of the data, in words."""
    path = run / VOCABULARY
    if not path.is_file():
        return f"its classes are not those of {data.address}"
    theirs, ours = Vocabulary.read(path).class_ids, data.vocabulary.class_ids
    parts = [
        f"{_named(set(theirs) - set(ours))} only in the run" * bool(set(theirs) - set(ours)),
        f"{_named(set(ours) - set(theirs))} only in {data.address}" * bool(set(ours) - set(theirs)),
    ]
    said = " and ".join(filter(None, parts)) or "they are in another order"
    return f"its {len(theirs):,} classes are not the {len(ours):,} of {data.address}: {said}"


def _named(classes: set[str]) -> str:
    some = ", ".join(sorted(classes)[:_NAMED])
    return f"{len(classes):,} ({some}{', ...' if len(classes) > _NAMED else ''})"
