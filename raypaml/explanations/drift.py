"""Measures after each epoch how far a model's maps are from a reference's, on a fixed set of validation images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from raypaml.config import TrainConfig
from raypaml.data.data_folder import DataFolder
from raypaml.data.plan import Part
from raypaml.explanations.comparing import evenly_spaced, explain_steps
from raypaml.files import number_or_null
from raypaml.metrics.maps import scale_ratio
from raypaml.model.cam import CamClassifier
from raypaml.runs.history import Drift
from raypaml.runs.models import checkpoint_model, find_checkpoint
from raypaml.runs.run_folder import check_trained_classes, stored_config

SPLIT = "validation"


@dataclass(frozen=True)
class DriftProbe:
    """A reference model, and the validation images on which its maps are compared with those of the trained model."""

    reference: CamClassifier
    data: DataFolder
    steps: list[Part]
    """Batches of the images."""
    device: torch.device
    skip_broken: bool = False
    """Leave broken images out, instead of raising."""

    def measure(self, model: CamClassifier, epoch_seconds: float) -> Drift:
        """Compare a model after an epoch whose training took so many seconds."""
        began = time.monotonic()
        pairs = explain_steps(
            model, self.reference, self.data, SPLIT, self.steps, self.device, skip_broken=self.skip_broken
        )
        model.train()
        positive, seconds = pairs.positive, time.monotonic() - began
        boosted = scale_ratio(pairs.top_boosted[positive], pairs.top_other_boosted[positive])
        pointing = pairs.pointing[np.isfinite(pairs.pointing)]
        return {
            "rank_correlation": _median(pairs.rank_correlation[positive]),
            "scale_ratio": number_or_null(scale_ratio(pairs.top[positive], pairs.top_other[positive])),
            "scale_ratio_boosted": number_or_null(boosted),
            "top": _median(pairs.top[positive]),
            "top_reference": _median(pairs.top_other[positive]),
            "pointing_game": float(pointing.mean()) if len(pointing) else None,
            "seconds": round(seconds, 3),
            "share_of_epoch": round(seconds / epoch_seconds, 4),
        }


def make_probe(config: TrainConfig, data: DataFolder, device: torch.device | str) -> DriftProbe | None:
    """The probe for the reference that a configuration names; None where it names none.

    Raises:
        ValueError: the reference is no run or checkpoint, or was trained with other classes.
    """
    if not config.run.reference:
        return None
    run, checkpoint = find_checkpoint(Path(config.run.reference))
    trained = stored_config(run)
    if trained is None:
        raise ValueError(f"reference={config.run.reference}: neither the folder of a run nor one of its checkpoints")
    check_trained_classes(run, data.vocabulary.digest, data.address)
    reference = checkpoint_model(checkpoint, trained.model, len(data.vocabulary)).to(device)
    steps = evenly_spaced(len(data.splits[SPLIT]), config.run.probe_images, config.data.global_batch_size)
    return DriftProbe(reference, data, steps, torch.device(device), config.data.skip_budget > 0)


def _median(values: NDArray[np.float64]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None
