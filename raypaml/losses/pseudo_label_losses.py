"""Losses that use pseudo labels, which are made of scores from 0 to 1 that another model gave to training entries."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED
from raypaml.losses import formulas
from raypaml.losses.scheme_losses import StepContext, gr_settings, regularised


def gpr_loss(logits: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """Generalised pseudo-label robust loss; the state has the scores [B, K], NaN for an entry that has none."""
    settings, scores = context.settings, torch.as_tensor(context.known["scores"])
    pseudo = pseudo_labels_of(scores, settings["threshold"], int(settings["top"]), settings["lowest"])
    own = {name: settings[name] for name in ("lightest", "heaviest", "target", "regulariser")}
    known = gr_settings(context) | own | {"pseudo": pseudo, "expected": context.known["expected"]}
    loss = regularised(formulas.gpr, settings["regulariser"], logits, labels, dataclasses.replace(context, known=known))
    return loss, (labels == UNOBSERVED) & (pseudo == POSITIVE)


def pseudo_labels_of(scores: Tensor, threshold: float, top: int, lowest: float) -> Tensor:
    """The pseudo labels of images, from the scores of their classes.

    Args:
        scores: [B, K] from 0 to 1; NaN for an entry without a score, which gets no pseudo label.
        threshold: the least score of a pseudo-positive.
        top: the most pseudo-positives of an image: those of highest score, ties by class.
        lowest: share of an image's scores, rounded down, that become pseudo-negative: the lowest, ties by class.

    Returns:
        int8 [B, K]: POSITIVE, NEGATIVE, or UNOBSERVED for an entry without a pseudo label. An entry that both rules
        choose is POSITIVE.
    """
    scored = ~scores.isnan()
    order = torch.where(scored, scores, -1.0).sort(stable=True, dim=1, descending=True).indices
    places = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)
    rank = torch.empty_like(order).scatter_(1, order, places)
    count = scored.sum(1, keepdim=True)
    negatives = torch.floor(count * lowest + 1e-6)  # 0.7 of 10 scores are 7, also where floats give 6.999...
    pseudo = torch.full_like(order, UNOBSERVED, dtype=torch.int8)
    pseudo = pseudo.masked_fill(scored & (rank >= count - negatives), NEGATIVE)
    return pseudo.masked_fill((rank < top) & (scores >= threshold), POSITIVE)
