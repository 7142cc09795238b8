"""Train multi-label image classifiers from partial annotations.

The names below are imported on first use, so that `--help` and the data tools need neither torch nor ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raypaml.api.run import Run as Run
    from raypaml.api.search import Search as Search
    from raypaml.augmentation.augmentations import Augmentation as Augmentation
    from raypaml.augmentation.augmentations import register_augmentation as register_augmentation
    from raypaml.cluster.as_loop import train_in_worker as train_in_worker
    from raypaml.errors import CallbackError as CallbackError
    from raypaml.errors import StoppedAtOnce as StoppedAtOnce
    from raypaml.errors import UserError as UserError
    from raypaml.inference.classifier import load as load
    from raypaml.losses.large_loss import large_loss as large_loss
    from raypaml.losses.scheme import Scheme as Scheme
    from raypaml.losses.scheme import Setting as Setting
    from raypaml.losses.schemes import register_scheme as register_scheme
    from raypaml.losses.selection import rejection_rate as rejection_rate
    from raypaml.metrics.average_precision import average_precision as average_precision
    from raypaml.metrics.own_metrics import register_metric as register_metric
    from raypaml.model.backbones import Backbone as Backbone
    from raypaml.model.backbones import register_backbone as register_backbone
    from raypaml.model.cam import CamClassifier as CamClassifier
    from raypaml.model.cam import boostlu as boostlu
    from raypaml.training.callbacks import Callback as Callback
    from raypaml.training.callbacks import Save as Save
    from raypaml.training.callbacks import StepValues as StepValues
    from raypaml.training.callbacks import Stop as Stop

__version__ = "0.1.0"

_HOMES = {
    "Run": "raypaml.api.run",
    "Search": "raypaml.api.search",
    "UserError": "raypaml.errors",
    "CallbackError": "raypaml.errors",
    "StoppedAtOnce": "raypaml.errors",
    "Callback": "raypaml.training.callbacks",
    "Save": "raypaml.training.callbacks",
    "StepValues": "raypaml.training.callbacks",
    "Stop": "raypaml.training.callbacks",
    "boostlu": "raypaml.model.cam",
    "CamClassifier": "raypaml.model.cam",
    "rejection_rate": "raypaml.losses.selection",
    "load": "raypaml.inference.classifier",
    "train_in_worker": "raypaml.cluster.as_loop",
    "large_loss": "raypaml.losses.large_loss",
    "average_precision": "raypaml.metrics.average_precision",
    "Scheme": "raypaml.losses.scheme",
    "Setting": "raypaml.losses.scheme",
    "Augmentation": "raypaml.augmentation.augmentations",
    "Backbone": "raypaml.model.backbones",
    "register_scheme": "raypaml.losses.schemes",
    "register_backbone": "raypaml.model.backbones",
    "register_augmentation": "raypaml.augmentation.augmentations",
    "register_metric": "raypaml.metrics.own_metrics",
}


__all__ = [*_HOMES]  # names, each of which is imported by `__getattr__`


def __dir__() -> list[str]:
    """The names that a notebook completes after `raypaml.`."""
    return sorted(["__version__", *__all__])


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'raypaml' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
