"""delta_rel from data: how many positives nobody labelled, and the schedule that rejects as many when it counts.

Method. An image of the validation split shows v observed positives on average, one of the training split t. Where both
splits were drawn alike and validation was labelled more thoroughly, v - t positives per training image were missed;
the share of all K entries of an image is (v - t) / K. The schedule rejects delta_rel percent more with each epoch after
the warm-up (LL-Cp corrects as many in each). The start is the delta_rel that reaches the missed share after half of the
R rejecting epochs, 2 (v - t) / (K R), for two reasons: not every rejection is right (about half were, on photos, where
as many were rejected as there were missed positives), and the epoch that is tested is the best on validation, which is
often not the last.

Where it was tried: frozen EfficientNet-Lite0 features of 1,864 photos of 20 classes, one positive label kept, LL-R +
BoostLU, lr 1e-4, 10 epochs, best validation mAP, mean of three seeds (2026-11-25). As multiples of the delta_rel whose
last epoch rejects the missed share: without rejection 35.6, 0.5: 36.2, 1: 36.6, 2 (the start): 37.0, 4: 37.2, 8: 36.6.
The search that chose delta_rel for the recipe `digits` ended at 1. The published choices end between 0.4 and 3.3 times
the true share (VOC 1.8 % for 2.3 %, NUS 3.6 % for 1.1 %; facts of LL, CVPR 2022). Hence a range of a quarter of the
start to four times it, and hence a start for a search rather than a value to trust.

Assumptions: the same mix of images in both splits; validation complete. Where validation misses positives too, as
OpenImages' does, the share is a lower bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raypaml.config import TrainConfig, rejecting_epochs
from raypaml.data.index import Index
from raypaml.search.spaces import SUGGESTED, Space

RANGE = 4.0
"""The search goes from the start divided by it to the start times it."""
REACHED = 0.5
"""Share of the rejecting epochs after which as many entries are rejected as positives were missed."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """What the labels say about delta_rel."""

    validation_positives: float
    """Observed positives per image of the validation split."""
    train_positives: float
    """Observed positives per image of the training split."""
    missed_of_all: float
    """Missed positives of the training split as a share of all its entries, 0..1."""
    missed_of_unobserved: float
    """Missed positives of the training split as a share of its unobserved entries, 0..1."""
    margin: float
    """Half the 95 % interval of `missed_of_unobserved`, from the number of validation images alone."""
    validation_observed: float
    """Share of the entries of the validation split that are observed, 0..1; below 1 the shares are lower bounds."""
    epochs: int
    """Epochs that reject."""
    delta_rel: float
    low: float
    high: float
    """What is suggested, and a range around it, in percent of all entries per epoch."""

    @property
    def text(self) -> str:
        """The suggestion in words, for people."""
        bound = "" if self.validation_observed == 1 else ", at least: validation is labelled in part only"
        return (
            f"positives per image: {self.validation_positives:.3f} in validation ({self.validation_observed:.2%} of "
            f"its entries observed), {self.train_positives:.3f} in train\n"
            f"missed positives: {self.missed_of_unobserved:.3%} of the unobserved training entries "
            f"(95 %: +-{self.margin:.3%}), {self.missed_of_all:.3%} of all entries{bound}\n"
            f"delta_rel {self.delta_rel:g} % per epoch reaches that halfway through {self.epochs} rejecting epochs: a "
            f"start, not the best value; search {self.low:g} to {self.high:g}"
        )

    def space(self, unit: str) -> Space:
        """The space of delta_rel around it."""
        return Space(
            name="delta_rel",
            field="delta_rel",
            distribution="log",
            low=self.low,
            high=self.high,
            unit=unit,
            start=self.delta_rel,
        )


def suggest(train: Index, validation: Index, config: TrainConfig) -> Suggestion:
    """Estimate the share of missed positives from labels alone, and what follows for delta_rel.

    Raises:
        ValueError: validation shows no more positives per image than train, every entry of train is observed, or no
            epoch rejects.
    """
    epochs = rejecting_epochs(config.optim.epochs, config.loss.warmup_epochs)
    if not epochs:
        raise ValueError(
            f"delta_rel={SUGGESTED}: warmup_epochs={config.loss.warmup_epochs} of epochs={config.optim.epochs} leave "
            "none that rejects"
        )
    v, t = (len(index.positives.values) / len(index) for index in (validation, train))
    if v <= t:
        raise ValueError(
            f"delta_rel={SUGGESTED}: validation shows {v:.3f} positives per image, train {t:.3f}; without a split that "
            "is labelled more thoroughly than train nothing can be said, so give bounds: delta_rel=log:LOW:HIGH"
        )
    classes = train.num_classes
    unobserved = classes - (len(train.positives.values) + len(train.negatives.values)) / len(train)
    if not unobserved:
        raise ValueError(
            f"delta_rel={SUGGESTED}: every entry of train is observed, so that no positive can be missing; there is "
            "nothing to reject"
        )
    spread = np.diff(validation.positives.offsets).std() / math.sqrt(len(validation))
    start = float(f"{100 * (v - t) / classes / (epochs * REACHED):.2g}")
    return Suggestion(
        validation_positives=v,
        train_positives=t,
        missed_of_all=(v - t) / classes,
        missed_of_unobserved=(v - t) / unobserved,
        margin=1.96 * float(spread) / unobserved,
        validation_observed=(len(validation.positives.values) + len(validation.negatives.values))
        / (len(validation) * classes),
        epochs=epochs,
        delta_rel=start,
        low=float(f"{start / RANGE:.2g}"),
        high=min(float(f"{start * RANGE:.2g}"), 99 / (epochs + 1)),  # never everything
    )
