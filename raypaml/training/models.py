"""The model a configuration describes, new or as a run left it."""

from __future__ import annotations

from pathlib import Path

from raypaml.config import ModelConfig
from raypaml.model.backbones import build_backbone
from raypaml.model.cam import CamClassifier
from raypaml.training.checkpoint import best_checkpoint, load_model, valid_checkpoints


def build_model(config: ModelConfig, num_classes: int) -> CamClassifier:
    """A new model, its backbone with the configured weights."""
    return CamClassifier(build_backbone(config.backbone, config.weights), num_classes, config.alpha)


def tested_checkpoint(run_folder: Path) -> Path:
    """A run's best checkpoint; ValueError if it has none that is whole."""
    valid, _ = valid_checkpoints(run_folder / "checkpoints")
    if not valid:
        raise ValueError(f"{run_folder}: no valid checkpoint; train the run again")
    return best_checkpoint(valid)


def checkpoint_model(checkpoint: Path, config: ModelConfig, num_classes: int) -> CamClassifier:
    """The model of a checkpoint, on the CPU."""
    model = CamClassifier(build_backbone(config.backbone), num_classes, config.alpha)
    load_model(checkpoint, model)
    return model


def tested_model(run_folder: Path, config: ModelConfig, num_classes: int) -> CamClassifier:
    """The model of a run's best checkpoint, on the CPU."""
    return checkpoint_model(tested_checkpoint(run_folder), config, num_classes)
