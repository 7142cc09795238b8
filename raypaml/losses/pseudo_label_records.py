"""The records of the schemes that use pseudo labels (`--pseudo-labels`)."""

from __future__ import annotations

import dataclasses

from raypaml.losses.formula_records import EXPECTED, EXPECTED_POSITIVES, GR, SINGLE_POSITIVE, by_data_set
from raypaml.losses.scheme import AT_LEAST_ZERO, COUNT, SHARE, Published, Scheme, Setting

GPR_COCO = {"slope_end": 10.0, "offset_end": -8.0}
"""The defaults in which gpr differs from gr: the values for COCO."""

PSEUDO_LABEL_SCHEMES = (
    Scheme(
        name="gpr",
        about="Generalised pseudo-label robust loss: as gr, but the classes to which another model gives an image's "
        "highest scores (--pseudo-labels) are soft positives; with the penalty of epr.",
        paper="L. Tran et al., ICCV 2025",
        equation="L_GPR of AEVLP",
        loss="raypaml.losses.pseudo_label_losses:gpr_loss",
        loss_of="batch",
        settings=(
            Setting("threshold", 0.5, "score from which an entry is pseudo-positive", SHARE),
            Setting("top", 3.0, "the most pseudo-positives of an image: those of highest score", COUNT),
            Setting("lowest", 0.0, "share of an image's scores that become pseudo-negative: the lowest", SHARE),
            Setting("lightest", 0.5, "least weight 1 - v(p) of a pseudo-positive", SHARE),
            Setting("heaviest", 0.7, "largest weight 1 - v(p) of a pseudo-positive", SHARE),
            Setting("target", 0.9, "target of a pseudo-positive", SHARE),
            Setting("regulariser", 0.001, "weight of the penalty of epr", AT_LEAST_ZERO),
            EXPECTED,
            *(dataclasses.replace(each, default=GPR_COCO.get(each.name, each.default), earlier=None) for each in GR),
        ),
        ascending=("lightest", "heaviest"),
        state="pseudo_scores",
        takes_pseudo_labels=True,
        rejected_become="positive",
        published=(
            Published(
                SINGLE_POSITIVE, {"alpha": 1, "lr": 1e-5, "head_lr_mult": 10, "patience": 2, "stop_below": 2}, "code"
            ),
            *by_data_set(
                "code",
                threshold=(0.5, 0.5, 0.6, 0.005),
                top=(3, 3, 3, 32),
                lightest=(0.4, 0.5, 0.5, 0.2),
                heaviest=(0.7, 0.7, 0.7, 0.8),
                regulariser=(0.05, 0.001, 0.001, 0.01),
                slope_end=(2, 10, 10, 10),
                offset_end=(-2, -8, -8, -8),
                q3=(1, 1, 1, 1.5),
                global_batch_size=(8, 16, 16, 8),
                epochs=(8, 8, 10, 10),
            ),
            *EXPECTED_POSITIVES,
        ),
        differs="The scores are read from a file; the published code lets CLIP score the image and a grid of its parts "
        "in every step. Its settings make the lowest share of scores (VOC, NUS-WIDE, CUB 0.2, COCO 0.3) "
        "pseudo-negative, but it writes 0 for them, which means no pseudo label there: it was trained as with "
        "lowest=0. It has no observed negatives. Published: VOC 90.46, COCO 73.54, NUS-WIDE 50.70, CUB 24.89 mAP.",
    ),
)
"""The schemes in the order in which they are listed."""
