"""Chooses the classes that are answered for a picture: those that reach a threshold, the best few, or both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raypaml.evaluation.measures import EvaluationOptions, evaluate_set
from raypaml.evaluation.parts import check_predicted_classes, open_set
from raypaml.inference.model_card import Card
from raypaml.labels import VOCABULARY, FloatArray, RealArray, Vocabulary
from raypaml.metrics.thresholds import sigmoid

Chosen = list[tuple[int, float]]
"""(class column, probability), best first."""


@dataclass(frozen=True)
class Choice:
    """The rule by which classes are answered for an image."""

    thresholds: NDArray[np.float64]
    """[K] logit that each class has to reach."""
    top: int = 0
    """The most classes that are answered; 0 for all that reach their threshold."""
    said: str = ""
    """What a class has to reach, in words."""

    def of(self, logits: RealArray) -> list[Chosen]:
        """The classes of each of B images, from their logits [B, K]; ties are in the order of classes."""
        best = np.argsort(-logits, axis=1, kind="stable")[:, : self.top or None]
        highest = np.take_along_axis(logits, best, 1)
        kept, scores = highest >= self.thresholds[best], sigmoid(highest)
        return [
            list(zip(k[mask].tolist(), p[mask].tolist(), strict=True))
            for k, p, mask in zip(best, scores, kept, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class ChoiceRequest:
    """What the flags of `raypaml predict` say about the classes that are answered.

    Where nothing is said, each class has the threshold in the model's card, which was chosen on validation together
    with alpha; a card without thresholds has probability 0.5 for all classes.
    """

    top: int = 0
    """The number of best classes that are answered, whatever their score unless a threshold is given too; 0 for all."""
    threshold: float | None = None
    """Probability that a class has to reach, 0 to 1."""
    thresholds_from: str = ""
    """Predictions of a validation split; each class has the threshold of its best F1 there."""


def choose(card: Card, asked: ChoiceRequest) -> Choice:
    """The rule by which classes of a model are answered, as it is asked for.

    Raises:
        ValueError: values out of range, both kinds of threshold, or predictions of other classes.
    """
    top, threshold, thresholds_from = asked.top, asked.threshold, asked.thresholds_from
    if threshold is not None and thresholds_from:
        raise ValueError("threshold and thresholds-from: give one of them")
    if top < 0:
        raise ValueError(f"top={top}: must be at least 1")
    if thresholds_from:
        return Choice(_best_thresholds(thresholds_from, card), top, f"each class's best F1 in {thresholds_from}")
    if threshold is None and top:
        return Choice(np.full(len(card.class_ids), -np.inf), top, "the best classes whatever their score")
    if threshold is None and card.thresholds is not None:
        return Choice(np.array(card.thresholds), top, "each class's best F1 on validation, at this alpha")
    threshold = 0.5 if threshold is None else threshold
    if not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold:g}: a probability, must be above 0 and below 1")
    limit = np.log(threshold / (1 - threshold))
    return Choice(np.full(len(card.class_ids), limit), top, f"probability {threshold:g} for every class")


def _best_thresholds(predictions: str, card: Card) -> FloatArray:
    validation = open_set(Path(predictions))
    vocabulary = Vocabulary.read(Path(predictions) / VOCABULARY)
    check_predicted_classes(validation, vocabulary, predictions)
    if vocabulary.digest != card.vocabulary:
        raise ValueError(f"thresholds-from={predictions}: of another vocabulary than the model's")
    options = EvaluationOptions(alpha=np.asarray(card.alpha, np.float64))
    return evaluate_set(validation, vocabulary, options).best_thresholds
