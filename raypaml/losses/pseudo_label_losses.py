"""Losses that work on pseudo labels: scores within 0 and 1 that another model gave entries of the training split."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED
from raypaml.losses import formulas
from raypaml.losses.scheme_losses import StepContext, gr_settings, regularised


def gpr_loss(logits: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """Generalised pseudo-label robust loss; the scores [B, K] are known, NaN where there is none."""
    settings = context.settings
    pseudo = pseudo_labels_of(context.known["scores"], settings["threshold"], int(settings["top"]), settings["lowest"])
    own = {name: settings[name] for name in ("lightest", "heaviest", "target", "regulariser")}
    known = gr_settings(context) | own | {"pseudo": pseudo, "expected": context.known["expected"]}
    loss = regularised(formulas.gpr, settings["regulariser"], logits, labels, dataclasses.replace(context, known=known))
    return loss, (labels == UNOBSERVED) & (pseudo == POSITIVE)


def pseudo_labels_of(scores: Tensor, threshold: float, top: int, lowest: float) -> Tensor:
    """The pseudo labels of images, from the scores of their classes.

    Args:
        scores: [B, K] within 0 and 1, NaN for an entry that has none: it gets no pseudo label.
        threshold: a positive's least score.
        top: positives of an image, at most: those of highest score, ties by class.
        lowest: share of the scores of an image that are negative, rounded down: the lowest ones, ties by class.

    Returns:
        int8 [B, K]: POSITIVE, NEGATIVE, or UNOBSERVED for no pseudo label. What is positive is not negative.
    """
    scored = ~scores.isnan()
    order = torch.where(scored, scores, -1.0).sort(stable=True, dim=1, descending=True).indices
    places = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)
    rank = torch.empty_like(order).scatter_(1, order, places)
    count = scored.sum(1, keepdim=True)
    negatives = torch.floor(count * lowest + 1e-6)  # 0.7 means seven tenths: of 10 scores 7, and not 6.999...
    pseudo = torch.full_like(order, UNOBSERVED, dtype=torch.int8)
    pseudo = pseudo.masked_fill(scored & (rank >= count - negatives), NEGATIVE)
    return pseudo.masked_fill((rank < top) & (scores >= threshold), POSITIVE)
