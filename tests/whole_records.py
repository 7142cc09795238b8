"""An epoch's record and a run's result with all their fields, of which tests change those that they are about."""

from __future__ import annotations

from typing import Any

EPOCH_RECORD: dict[str, Any] = {
    "epoch": 0,
    "loss": 0.1,
    "expected": 3,
    "samples": 3,
    "skipped": 0,
    "rejected": 1,
    "rejected_missed": None,
    "missed": None,
    "rejection_precision": None,
    "rejection_recall": None,
    "corrected": 0,
    "validation_skipped": 0,
    "validation_mean_ap": 0.5,
    "validation_groups": {},
    "seconds": 1.0,
}
RESULT: dict[str, Any] = {
    "mean_ap": 0.5,
    "groups": {"G1": 0.1},
    "classes": 2,
    "classes_scored": 2,
    "classes_without_positives": 1,
    "convention": "paper",
    "split": "test",
    "images": 3,
    "skipped": 0,
    "positives": 1,
    "negatives": 5,
    "vocabulary": "0",
    "scheme": "an",
    "alpha": 5,
    "delta_rel": 0.5,
    "seed": 0,
    "epochs": 3,
    "world_size": 1,
    "best_epoch": 0,
    "validation_mean_ap": 0.25,
    "training_seconds": 1.5,
}
