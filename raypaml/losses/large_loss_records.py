"""The records of the plain schemes and of the large-loss schemes LL-R, LL-Ct and LL-Cp."""

from __future__ import annotations

from collections.abc import Mapping

from raypaml.losses.scheme import ABOVE_ZERO, SWITCH, Published, Scheme, Setting

BY_RATE = "raypaml.losses.scheme_losses:large_loss_by_rate"
BY_THRESHOLD = "raypaml.losses.scheme_losses:large_loss_by_threshold"

LARGE_LOSS = "Y. Kim et al., CVPR 2022"
FORMULAS = "section 4, equations 4 to 7"
EXACT_LOGARITHM = (
    "Logarithms are exact, as in LL's and BoostLU's code; Cole's and EM's code, whose tables also have these schemes, "
    "adds 1e-5 to probabilities first."
)
EXACT = (
    "Exactly the k unobserved entries of largest loss in the global batch are rejected, ties by position; the "
    "published code takes every tie of a mini-batch, and observed entries too where k exceeds the number of unobserved "
    "ones."
)


def _published(boostlu: float, best: Mapping[str, float]) -> tuple[Published, ...]:
    """The published values of delta_rel, in percent: BoostLU's, those of LL's author, and LL's search on OpenImages.

    The recipes use those of BoostLU's code, because they reproduce BoostLU's tables, which have one protocol for all
    schemes and data sets.

    Args:
        boostlu: the value of BoostLU's code, for all data sets.
        best: the best value of LL's author for each data set.
    """
    optimizers = {"VOC": "SGD 5e-3", "COCO": "Adam 1e-5", "NUS-WIDE": "Adam 1e-5", "CUB": "Adam 7.5e-5"}
    source = "LL without BoostLU: its author's best, LargeLossMatters issue 4, "
    return (
        Published(tuple(optimizers), {"delta_rel": boostlu}, "BoostLU code, Adam 1e-5"),
        *(
            Published((data,), {"delta_rel": value, "alpha": 1}, source + optimizers[data], applied=False)
            for data, value in best.items()
        ),
        Published(("OpenImages V3",), {"epochs": 20, "lr": 2e-5}, "supplement"),
        Published(("OpenImages V3",), {"delta_rel": (0.005, 0.01)}, "supplement, searched", applied=False),
    )


THRESHOLD = (
    Setting(
        "threshold",
        1.5,
        "R0, the loss above which an entry is rejected at first; one of the published search's values",
        ABOVE_ZERO,
    ),
    Setting(
        "delta_abs",
        0.1,
        "how much the threshold falls with each epoch since the warm-up; one of the published search's values",
    ),
)
SEARCHED = (
    Published((), {"threshold": (1.0, 1.5, 2.0), "delta_abs": (0.1, 0.15, 0.2)}, "supplement, searched", applied=False),
)
SAME_THRESHOLD = "All three schemes use the same threshold, and its epochs are counted from the end of the warm-up."

LARGE_LOSS_SCHEMES = (
    Scheme(
        name="full",
        about="Binary cross-entropy where every label is observed.",
        loss=BY_RATE,
        loss_of="batch",
        needs_truth=True,
        differs=EXACT_LOGARITHM,
    ),
    Scheme(
        name="an",
        about="Assume negative: an unobserved entry counts as a negative.",
        paper=LARGE_LOSS,
        loss=BY_RATE,
        loss_of="batch",
        differs=EXACT_LOGARITHM,
        plain_until_rejection=True,
    ),
    Scheme(
        name="ignore",
        about="Binary cross-entropy of the observed entries only, averaged over them.",
        paper=LARGE_LOSS,
        differs="The class priors that csl takes from such a run are means over all epochs up to its best one; CSL's "
        "code takes those of the last epoch, and trains this mode with the focusing weights of pasl unless these are "
        "set to 0.",
        loss=BY_RATE,
        loss_of="batch",
        settings=(
            Setting("last_epoch", 0.0, "1: class priors for csl are those of the last epoch; 0: of all", SWITCH, 1.0),
        ),
        state="class_means",
    ),
    Scheme(
        name="ll_r",
        about="Large-loss rejection: the unobserved entries of largest loss are left out, delta_rel percent more of "
        "all entries with each epoch.",
        paper=LARGE_LOSS,
        equation=FORMULAS,
        loss=BY_RATE,
        loss_of="batch",
        rejects_by="rate",
        rejected_become="left out",
        plain_until_rejection=True,
        published=_published(0.5, {"VOC": 0.2, "COCO": 0.4, "NUS-WIDE": 0.4, "CUB": 0.4}),
        differs=EXACT,
    ),
    Scheme(
        name="ll_ct",
        about="Temporary correction: as ll_r, but rejected entries count as positive in this step.",
        paper=LARGE_LOSS,
        equation=FORMULAS,
        loss=BY_RATE,
        loss_of="batch",
        rejects_by="rate",
        rejected_become="positive",
        plain_until_rejection=True,
        published=_published(0.2, {"VOC": 0.2, "COCO": 0.2, "NUS-WIDE": 0.2, "CUB": 0.4}),
        differs=EXACT,
    ),
    Scheme(
        name="ll_cp",
        about="Permanent correction: the unobserved entries of largest loss, delta_rel percent of all entries in each "
        "epoch, count as positive from then on.",
        paper=LARGE_LOSS,
        equation=FORMULAS,
        loss=BY_RATE,
        loss_of="batch",
        rejects_by="rate",
        rate_is_constant=True,
        rejected_become="positive",
        corrects=True,
        plain_until_rejection=True,
        published=_published(0.1, {"VOC": 0.1, "COCO": 0.2, "NUS-WIDE": 0.2, "CUB": 0.2}),
        differs="As ll_r. LL's published code runs LL-Ct here, because a comparison in it is never true. Otherwise it "
        "would keep k - 1 of the k entries corrected; BoostLU's code and ours keep all k.",
    ),
    Scheme(
        name="ll_r_abs",
        about="As ll_r, but the unobserved entries whose loss exceeds a threshold are left out; the threshold falls "
        "with each epoch.",
        paper=LARGE_LOSS,
        equation="supplement",
        loss=BY_THRESHOLD,
        loss_of="batch",
        settings=THRESHOLD,
        rejects_by="threshold",
        rejected_become="left out",
        plain_until_rejection=True,
        published=SEARCHED,
        differs=SAME_THRESHOLD,
    ),
    Scheme(
        name="ll_ct_abs",
        about="As ll_ct, with the threshold of ll_r_abs.",
        paper=LARGE_LOSS,
        equation="supplement",
        loss=BY_THRESHOLD,
        loss_of="batch",
        settings=THRESHOLD,
        rejects_by="threshold",
        rejected_become="positive",
        plain_until_rejection=True,
        published=SEARCHED,
        differs=SAME_THRESHOLD,
    ),
    Scheme(
        name="ll_cp_abs",
        about="As ll_cp, with the threshold of ll_r_abs.",
        paper=LARGE_LOSS,
        equation="supplement",
        loss=BY_THRESHOLD,
        loss_of="batch",
        settings=THRESHOLD,
        rejects_by="threshold",
        rejected_become="positive",
        corrects=True,
        plain_until_rejection=True,
        published=SEARCHED,
        differs=SAME_THRESHOLD,
    ),
)
"""The schemes in the order in which they are listed."""
