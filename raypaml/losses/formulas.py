"""The loss of one entry, under each scheme whose loss is a formula of an entry's logit, label and state.

p = sigmoid(logit). Where nothing else is said, an observed positive costs -log p and an observed negative
-log(1 - p); the published experiments have no observed negatives. Losses are averaged over all B x K entries, also
where the paper sums them (ASL, CSL, Hill, SPLC): Adam is invariant to this factor, with SGD the learning rate has to be
adapted. `epsilon` is added to a probability before its logarithm is taken, as in the published code of some schemes;
for p far below it the gradient nearly vanishes. All formulas are safe for any finite logit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from raypaml.labels import POSITIVE, UNOBSERVED


def _by_label(labels: Tensor, positive: Tensor, negative: Tensor, unobserved: Tensor) -> Tensor:
    return torch.where(labels == POSITIVE, positive, torch.where(labels == UNOBSERVED, unobserved, negative))


def _focal(logits: Tensor, gamma: float) -> Tensor:
    """p^gamma, computed from log p, so that the gradient is right where p underflows and finite where p is 0."""
    return torch.exp(gamma * logsigmoid(logits)) if gamma else torch.ones_like(logits)


def _cost(logits: Tensor, epsilon: float) -> Tensor:
    """-log(p + epsilon)."""
    return -torch.log(torch.sigmoid(logits) + epsilon) if epsilon else softplus(-logits)


def _cross(target: Tensor, logits: Tensor, epsilon: float) -> Tensor:
    """-target log(p + epsilon) - (1 - target) log(1 - p + epsilon)."""
    return target * _cost(logits, epsilon) + (1 - target) * _cost(-logits, epsilon)


def wan(logits: Tensor, labels: Tensor, *, weight: float, epsilon: float) -> Tensor:
    """Weak assume-negative: an unobserved entry costs -weight log(1 - p), weight 1 / (K - 1) as published.

    The one positive of an image then weighs as much as all its assumed negatives together. (E. Cole et al., CVPR 2021,
    section 4, L_WAN, after O. Mac Aodha et al., ICCV 2019.)
    """
    negative = _cost(-logits, epsilon)
    return _by_label(labels, _cost(logits, epsilon), negative, weight * negative)


def ls(logits: Tensor, labels: Tensor, *, smoothing: float, epsilon: float) -> Tensor:
    """Label smoothing of assumed negatives (LS, LSAN, AN-LS): targets 1 and 0 become 1 - smoothing and smoothing.

    (E. Cole et al., CVPR 2021, section 4, L_AN-LS. Our choice: a smoothing of 0.1, as in the published code, which is
    half of the paper's epsilon.)
    """
    target = torch.where(labels == POSITIVE, torch.full_like(logits, 1 - smoothing), smoothing)
    return _cross(target, logits, epsilon)


def _focused(logits: Tensor, gamma: float, clip: float, detached: bool) -> Tensor:
    """-q^gamma log(1 - q) with q = max(p - clip, 0); where `detached`, q^gamma takes no gradient."""
    if not clip:
        return _focal(logits.detach() if detached else logits, gamma) * softplus(logits)
    shifted = (torch.sigmoid(logits) - clip).clamp(min=0)
    return (shifted.detach() if detached else shifted) ** gamma * -torch.log1p(-shifted)


def asl(
    logits: Tensor, labels: Tensor, *, gamma_pos: float, gamma_neg: float, clip: float, detach_focal: float
) -> Tensor:
    """Asymmetric loss on assumed negatives.

    A positive costs -(1 - p)^gamma_pos log p, any other entry -q^gamma_neg log(1 - q) with q = max(p - clip, 0).
    (T. Ridnik et al., ICCV 2021, sections 2.2 to 2.4. With `detach_focal` the focusing weights take no gradient, as in
    the published training code; without it they do, as in the paper's section 2.5.)
    """
    positive = _focused(-logits, gamma_pos, 0.0, bool(detach_focal))
    return torch.where(labels == POSITIVE, positive, _focused(logits, gamma_neg, clip, bool(detach_focal)))


def pasl(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma_pos: float,
    gamma_neg: float,
    gamma_unobserved: float,
    clip: float,
    detach_focal: float,
) -> Tensor:
    """Partial asymmetric loss (P-ASL): as ASL, with a focusing parameter of its own for unobserved entries.

    (E. Ben-Baruch et al., CVPR 2022, section 3. With `detach_focal` the focusing weights take no gradient, as in the
    published code.)
    """
    detached = bool(detach_focal)
    positive = _focused(-logits, gamma_pos, 0.0, detached)
    negative = _focused(logits, gamma_neg, clip, detached)
    return _by_label(labels, positive, negative, _focused(logits, gamma_unobserved, clip, detached))


def csl(logits: Tensor, labels: Tensor, *, left_out: Tensor, **settings: float) -> Tensor:
    """Class-aware selective loss (CSL): P-ASL without the entries `left_out`.

    Left out are the unobserved entries of classes whose prior exceeds a threshold, and the `likely` x B unobserved
    entries of highest score in the batch. (E. Ben-Baruch et al., CVPR 2022, section 3. As in the published code, this
    number is counted over the batch and not for each image.)
    """
    return torch.where(left_out, 0.0, pasl(logits, labels, **settings))


def em(logits: Tensor, labels: Tensor, *, weight: float, epsilon: float) -> Tensor:
    """Entropy maximisation: an unobserved entry costs -weight H(p), H(p) = -p log p - (1 - p) log(1 - p).

    (D. Zhou et al., ECCV 2022, section 3; weight: alpha, published 0.2 VOC, 0.1 COCO and NUS, 0.01 CUB.)
    """
    entropy = _cross(torch.sigmoid(logits), logits, epsilon)
    return _by_label(labels, _cost(logits, epsilon), _cost(-logits, epsilon), -weight * entropy)


def em_apl(
    logits: Tensor,
    labels: Tensor,
    *,
    weight: float,
    pseudo_weight: float,
    epsilon: float,
    threshold: Tensor,
    soft: Tensor,
) -> Tensor:
    """EM with asymmetric pseudo labels: an unobserved entry whose logit is below `threshold` is a soft pseudo-negative.

    It costs pseudo_weight (-soft log p - (1 - soft) log(1 - p)). (D. Zhou et al., ECCV 2022, section 3;
    pseudo_weight: beta, published 0.02 VOC, 0.9 COCO, 0.2 NUS, 0.4 CUB. Where the pseudo labels come from, and how
    that differs from the paper: `training.class_scores.ClassScores`.)
    """
    negative = _cross(soft.to(logits.dtype), logits, epsilon)
    chosen = (labels == UNOBSERVED) & (logits.detach() < threshold)
    return torch.where(chosen, pseudo_weight * negative, em(logits, labels, weight=weight, epsilon=epsilon))


def gr(
    logits: Tensor,
    labels: Tensor,
    *,
    q2: float,
    q3: float,
    slope: float,
    offset: float,
    centre: float,
    width: float,
    epsilon: float,
) -> Tensor:
    """Generalised robust loss (GR): an unobserved entry costs v [k (1 - p^q2) / q2 + (1 - k) (1 - (1 - p)^q3) / q3].

    k = sigmoid(slope p + offset) is the probability of a missed positive, v = exp(-(p - centre)^2 / (2 width^2)) the
    weight; neither takes a gradient. A positive costs -log p, the limit q1 -> 0. (Y. Chen et al., IJCAI 2024, section
    3. Our choice: k and v change linearly with the epoch, as in the published code.)
    """
    k = torch.sigmoid(slope * torch.sigmoid(logits.detach()) + offset)
    v = _gr_weight(logits, centre, width)
    missed = -torch.expm1(q2 * logsigmoid(logits)) / q2
    absent = -torch.expm1(q3 * logsigmoid(-logits)) / q3
    unobserved = v * (k * missed + (1 - k) * absent)
    return _by_label(labels, _cost(logits, epsilon), _cost(-logits, epsilon), unobserved)


def _gr_weight(logits: Tensor, centre: float, width: float) -> Tensor:
    """GR's v(p), which takes no gradient."""
    return torch.exp(-((torch.sigmoid(logits.detach()) - centre) ** 2) / (2 * width**2))


def gpr(
    logits: Tensor,
    labels: Tensor,
    *,
    pseudo: Tensor,
    pull: Tensor,
    lightest: float,
    heaviest: float,
    target: float,
    regulariser: float,
    **settings: float,
) -> Tensor:
    """Generalised pseudo-label robust loss (GPR): as GR for entries without a pseudo label, plus EPR's regulariser.

    An unobserved entry that is pseudo-positive costs w (-target log p - (1 - target) log(1 - p)), with w = 1 - v(p)
    clamped to `lightest` and `heaviest`; one that is pseudo-negative costs -v(p) log(1 - p); v(p) is that of GR.
    `regulariser` x `pull` x p has the gradient of the penalty, as in `epr`. (L. Tran et al., ICCV 2025.)

    Args:
        pseudo: [n] POSITIVE, NEGATIVE, or UNOBSERVED for an entry without a pseudo label.
    """
    weight = _gr_weight(logits, settings["centre"], settings["width"])
    sure = (1 - weight).clamp(lightest, heaviest)
    positive = sure * _cross(torch.full_like(logits, target), logits, settings["epsilon"])
    negative = weight * _cost(-logits, settings["epsilon"])
    robust = gr(logits, labels, **settings)
    unlabelled = _by_label(pseudo, positive, negative, robust)
    losses = torch.where(labels == UNOBSERVED, unlabelled, robust)
    return losses + regulariser * pull.to(logits.dtype) * torch.sigmoid(logits)


def hill(logits: Tensor, labels: Tensor, *, margin: float, gamma: float, lamb: float) -> Tensor:
    """Hill loss: a positive costs the focal margin loss, any other entry (lamb - p) p^2.

    The focal margin loss is -(1 - s)^gamma log s with s = sigmoid(logit - margin).
    (Y. Zhang et al., 2021, "Simple and Robust Loss Design for Multi-Label Learning with Missing Labels", section 3.
    lamb: 1.5 as published. Our choice: an observed negative costs the same as an unobserved entry.)
    """
    p = torch.sigmoid(logits)
    return torch.where(labels == POSITIVE, _focal_margin(logits, margin, gamma), (lamb - p) * p**2)


def _focal_margin(logits: Tensor, margin: float, gamma: float) -> Tensor:
    return _focal(margin - logits, gamma) * softplus(margin - logits)


def splc(logits: Tensor, labels: Tensor, *, margin: float, gamma: float, flipped: Tensor) -> Tensor:
    """Self-paced loss correction with the focal margin loss: `flipped` entries count as positive.

    A positive costs -(1 - s)^gamma log s with s = sigmoid(logit - margin); a flipped entry the same with s = p; any
    other entry -p^gamma log(1 - p). (Y. Zhang et al., 2021, section 3. Our choice: flipped entries have no margin and
    the focusing weights take a gradient, as in the published code; observed negatives are never flipped.)
    """
    negative = _focal(logits, gamma) * softplus(logits)
    positive = torch.where(flipped, _focal_margin(logits, 0.0, gamma), _focal_margin(logits, margin, gamma))
    return torch.where((labels == POSITIVE) | flipped, positive, negative)


def epr(logits: Tensor, labels: Tensor, *, pull: Tensor, epsilon: float) -> Tensor:
    """Expected positive regularisation: the loss of observed entries, plus `pull` x p for every entry.

    `pull` x p has the gradient of the penalty ((mean number of positives) - expected)^2 / K^2 of the global batch; see
    `losses.scheme_losses`. (E. Cole et al., CVPR 2021, section 4, R_k and L_EPR, the squared form.)
    """
    observed = _by_label(labels, _cost(logits, epsilon), _cost(-logits, epsilon), torch.zeros_like(logits))
    return observed + pull.to(logits.dtype) * torch.sigmoid(logits)


def role(logits: Tensor, labels: Tensor, *, pull: Tensor, estimates: Tensor, epsilon: float) -> Tensor:
    """Regularised online label estimation, the loss of the classifier: half EPR, half cross-entropy to the estimates.

    The cross-entropy of an entry is -e log p - (1 - e) log(1 - p) with e = sigmoid(estimates). (E. Cole et al., CVPR
    2021, section 4, L_ROLE. The loss of the estimates is in `estimates_step`.)
    """
    cross = _cross(torch.sigmoid(estimates.to(logits.dtype)), logits, epsilon)
    return 0.5 * (epr(logits, labels, pull=pull, epsilon=epsilon) + cross)


def estimates_step(
    estimates: Tensor,
    logits: Tensor,
    labels: Tensor,
    *,
    step: float,
    expected: float,
    count: float | Tensor,
    epsilon: float,
) -> Tensor:
    """The logits [B, K] of ROLE's label estimates after one step of gradient descent on their part of the loss.

    Args:
        estimates: the logits [B, K] of the estimates before the step.
        logits: the classifier's logits [B, K].
        step: learning rate for the loss of one entry, not averaged. Our choice: the published code uses Adam, whose
            moments would need two more numbers for each entry of the data set.
        expected: the expected number of positives of an image.
        count: the number of positives of an image by the estimates, on average over the global batch.
        epsilon: added to the estimates, and to 1 - estimates, before their logarithms are taken.
    """
    guess, absent = torch.sigmoid(estimates), torch.sigmoid(-estimates)
    rising, falling = absent * guess / (guess + epsilon), guess * absent / (absent + epsilon)  # d log e, -d log(1 - e)
    score = torch.sigmoid(logits.to(estimates.dtype))
    slope = (1 - score) * falling - score * rising  # gradient of the cross-entropy to p
    slope = slope + _by_label(labels, -rising, falling, torch.zeros_like(guess))
    slope = slope + 2 * (count - expected) / labels.shape[1] * guess * absent
    return estimates - step * slope
