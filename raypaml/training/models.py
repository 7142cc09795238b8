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


def tested_model(run_folder: Path, config: ModelConfig, num_classes: int) -> CamClassifier:
    """The model of a run's best checkpoint, on the CPU."""
    valid, _ = valid_checkpoints(run_folder / "checkpoints")
    if not valid:
        raise ValueError(f"{run_folder}: no valid checkpoint; train the run again")
    model = CamClassifier(build_backbone(config.backbone), num_classes, config.alpha)
    load_model(best_checkpoint(valid), model)
    return model
