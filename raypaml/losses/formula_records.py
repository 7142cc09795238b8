"""The records of the schemes whose loss is a formula of each entry; some of them also keep state during training."""

from __future__ import annotations

import dataclasses

from raypaml.losses.scheme import ABOVE_ZERO, COUNT, FOCUSING, SHARE, SWITCH, Published, Scheme, Setting

COLE = "E. Cole et al., CVPR 2021"
BEN_BARUCH = "E. Ben-Baruch et al., CVPR 2022"
ZHOU = "D. Zhou et al., ECCV 2022"
ZHANG = 'Y. Zhang et al., 2021, "Simple and Robust Loss Design for Multi-Label Learning with Missing Labels"'

FOCAL_MARGIN = (
    Setting("margin", 1.0, "subtracted from the logit of a positive"),
    Setting("gamma", 2.0, "power of the focusing weight", FOCUSING),
)
DETACH_FOCAL = Setting(
    "detach_focal",
    1.0,
    "whether the focusing weights take no gradient, as in the published training code",
    SWITCH,
    0.0,
)
EPSILON = Setting(
    "epsilon", 1e-5, "added to a probability before its logarithm is taken, as the published code does", SHARE, 0.0
)
NO_FLOOR = (
    "The published code clamps probabilities to at least 1e-8 before it takes their logarithms, so that an entry far "
    "on the wrong side (a logit beyond 18) has no gradient; here it has one."
)
PASL = (
    Setting("gamma_pos", 0.0, "power of the focusing weight of positives", FOCUSING),
    Setting("gamma_neg", 1.0, "power of the focusing weight of observed negatives", FOCUSING),
    Setting("gamma_unobserved", 4.0, "power of the focusing weight of unobserved entries", FOCUSING),
    Setting("clip", 0.0, "subtracted from p of all entries but positives", SHARE),
    DETACH_FOCAL,
)
EXPECTED_DIFFERS = (
    "Where neither a setting nor the recipe gives the expected number, it is measured on the validation split; the "
    "published code has one for each data set, which the recipes apply."
)

SINGLE_POSITIVE = ("VOC", "COCO", "NUS-WIDE", "CUB")


def by_data_set(source: str, **values: tuple[float, float, float, float]) -> tuple[Published, ...]:
    """Records of published values, each given for VOC, COCO, NUS-WIDE and CUB in this order."""
    return tuple(
        Published((data,), {name: each[number] for name, each in values.items()}, source)
        for number, data in enumerate(SINGLE_POSITIVE)
    )


EM_PROTOCOL = Published(
    SINGLE_POSITIVE,
    {"alpha": 1, "head_lr_mult": 1, "epochs": 10, "patience": 1},
    "code, which stops at the first epoch that is no better",
)
EM_BATCHES: dict[str, tuple[float, float, float, float]] = {
    "weight": (0.2, 0.1, 0.1, 0.01),
    "global_batch_size": (8, 16, 16, 8),
    "lr": (1e-5, 1e-5, 1e-5, 1e-4),
}
"""What EM and EM+APL share, for VOC, COCO, NUS-WIDE and CUB."""
EXPECTED_POSITIVES = by_data_set("code", expected=(1.5, 2.9, 1.9, 31.4))
GR = (
    Setting("q2", 0.01, "bounds the cost of a missed positive", ABOVE_ZERO),
    Setting("q3", 1.0, "bounds the cost of a negative", ABOVE_ZERO),
    Setting("slope", 0.0, "slope of k(p) = sigmoid(slope p + offset) at the start of training"),
    Setting("slope_end", 2.0, "slope of k(p) after the last epoch"),
    Setting("offset", -2.0, "offset of k(p) at the start of training"),
    Setting("offset_end", -2.0, "offset of k(p) after the last epoch"),
    Setting("centre", 0.5, "centre of the Gaussian v(p) at the start of training"),
    Setting("centre_end", 0.8, "centre of v(p) in the last epoch"),
    Setting("width", 2.0, "standard deviation of the Gaussian v(p) at the start of training", ABOVE_ZERO),
    Setting("width_end", 0.5, "standard deviation of v(p) in the last epoch"),
    dataclasses.replace(EPSILON, default=1e-7),
)
EXPECTED = Setting("expected", 0.0, "positives expected in an image; 0: as many as observed in the validation split")

FORMULA_SCHEMES = (
    Scheme(
        name="wan",
        about="Weak assume negative: an unobserved entry costs -weight log(1 - p).",
        paper=COLE,
        equation="section 4, L_WAN, after O. Mac Aodha et al., ICCV 2019",
        loss="raypaml.losses.scheme_losses:wan_loss",
        loss_of="batch",
        settings=(Setting("weight", 0.0, "weight of an unobserved entry; 0: 1 / (K - 1)"), EPSILON),
    ),
    Scheme(
        name="ls",
        about="Assume negative with label smoothing: targets 1 and 0 become 1 - smoothing and smoothing.",
        paper=COLE,
        equation="section 4, L_AN-LS",
        loss="raypaml.losses.formulas:ls",
        settings=(
            Setting("smoothing", 0.1, "what is taken from the target 1 and added to the target 0", SHARE),
            EPSILON,
        ),
        differs="The smoothing is 0.1, as in the published code, which is half of the paper's epsilon.",
    ),
    Scheme(
        name="asl",
        about="Asymmetric loss on assumed negatives: -(1 - p)^gamma_pos log p for a positive, else "
        "-q^gamma_neg log(1 - q) with q = max(p - clip, 0).",
        paper="T. Ridnik et al., ICCV 2021",
        equation="sections 2.2 to 2.4",
        loss="raypaml.losses.formulas:asl",
        settings=(
            Setting("gamma_pos", 0.0, "power of the focusing weight of positives", FOCUSING),
            Setting("gamma_neg", 4.0, "power of the focusing weight of all other entries", FOCUSING),
            Setting("clip", 0.05, "subtracted from p of all entries but positives", SHARE),
            DETACH_FOCAL,
        ),
        differs=NO_FLOOR,
        augmentation="asl",
    ),
    Scheme(
        name="pasl",
        about="Partial asymmetric loss: as asl, with a separate focusing weight for unobserved entries.",
        paper=BEN_BARUCH,
        equation="section 3",
        loss="raypaml.losses.formulas:pasl",
        settings=PASL,
        differs=NO_FLOOR,
        augmentation="asl",
    ),
    Scheme(
        name="csl",
        about="Class-aware selective loss: pasl without the unobserved entries of frequent classes, and without the "
        "unobserved entries of highest score in each batch.",
        paper=BEN_BARUCH,
        equation="section 3",
        loss="raypaml.losses.scheme_losses:csl_loss",
        loss_of="batch",
        settings=(
            *PASL,
            Setting("prior", 0.05, "class prior above which the unobserved entries of a class are left out"),
            Setting(
                "likely",
                5.0,
                "unobserved entries of highest score left out: this number x the images of a batch",
                COUNT,
            ),
        ),
        state="class_priors",
        rejected_become="left out",
        published=(
            Published(("COCO",), {"prior": 0.5}, "README, with labels hidden by class or by sample"),
            Published(("COCO",), {"gamma_neg": (1, 3)}, "README: by sample, by class", applied=False),
        ),
        differs=NO_FLOOR + " The entries of highest score are those of the batch, as in that code, not of each image.",
        augmentation="asl",
    ),
    Scheme(
        name="epr",
        about="Expected positive regularisation: observed entries only, and a penalty that pulls the number of "
        "predicted positives of an image towards the expected one.",
        paper=COLE,
        equation="section 4, R_k and L_EPR, the squared form",
        loss="raypaml.losses.scheme_losses:epr_loss",
        loss_of="batch",
        settings=(EXPECTED, EPSILON),
        differs=EXPECTED_DIFFERS,
        state="expected_positives",
        published=EXPECTED_POSITIVES,
    ),
    Scheme(
        name="role",
        about="Regularised online label estimation: half epr, half the cross-entropy to label estimates that are "
        "trained together with the classifier.",
        paper=COLE,
        equation="section 4, L_ROLE",
        loss="raypaml.losses.scheme_losses:role_loss",
        loss_of="batch",
        settings=(
            EXPECTED,
            EPSILON,
            Setting("step", 1.0, "learning rate of the label estimates; our choice"),
        ),
        state="label_estimates",
        published=EXPECTED_POSITIVES,
        differs=EXPECTED_DIFFERS + " The estimates are trained by gradient descent and start at a probability of 0.5; "
        "the published code trains them by Adam at ten times the classifier's learning rate, and starts at random "
        "between 0.4 and 0.6. Adam's moments would need N x K numbers for N training images. For the same reason each "
        "image keeps the estimates of its 64 highest classes, and one number for all others.",
    ),
    Scheme(
        name="em",
        about="Entropy maximisation: an unobserved entry costs -weight H(p), H(p) = -p log p - (1 - p) log(1 - p).",
        paper=ZHOU,
        equation="section 3",
        loss="raypaml.losses.formulas:em",
        settings=(Setting("weight", 0.1, "weight of the entropy, the paper's alpha; the value for COCO"), EPSILON),
        published=(EM_PROTOCOL, *by_data_set("code", **EM_BATCHES)),
    ),
    Scheme(
        name="em_apl",
        about="Entropy maximisation with asymmetric pseudo labels: as em, but the unobserved entries of lowest score "
        "become soft negatives.",
        paper=ZHOU,
        equation="section 3",
        loss="raypaml.losses.scheme_losses:em_apl_loss",
        loss_of="batch",
        settings=(
            Setting("weight", 0.1, "weight of the entropy, the paper's alpha; the value for COCO"),
            Setting("pseudo_weight", 0.9, "weight of a pseudo-negative, the paper's beta; the value for COCO"),
            Setting("share", 0.9, "share of a class's unobserved entries that become pseudo-negative", SHARE),
            EPSILON,
        ),
        state="class_scores",
        follows_length=True,
        published=(
            EM_PROTOCOL,
            *by_data_set("code", **EM_BATCHES, pseudo_weight=(0.02, 0.9, 0.2, 0.4), warmup_epochs=(5, 5, 4, 3)),
            Published(SINGLE_POSITIVE, {"share": 0.9}, "code"),
        ),
        differs="In every epoch the pseudo-negatives are chosen anew, from a histogram of each class's logits in the "
        "epoch before, and those of a class share one soft label; the published code ranks all entries in an extra "
        "pass and keeps each chosen entry with its score: 0.9 x N x K numbers for N training images.",
    ),
    Scheme(
        name="gr",
        about="Generalised robust loss: an unobserved entry of probability p is a missed positive with probability "
        "k(p), else a negative. The losses of both cases are bounded, and their expectation is weighted with v(p).",
        paper="Y. Chen et al., IJCAI 2024",
        equation="section 3",
        loss="raypaml.losses.scheme_losses:gr_loss",
        loss_of="batch",
        follows_length=True,
        settings=GR,
        published=(
            Published(
                SINGLE_POSITIVE,
                {"alpha": 1, "lr": 1e-5, "head_lr_mult": 10, "stop_below": 2},
                "GR's and AEVLP's code",
            ),
            *by_data_set(
                "AEVLP's code, configured for its own loss, which contains GR; GR's code has VOC's for all",
                slope_end=(2, 10, 10, 10),
                offset_end=(-2, -8, -8, -8),
                q3=(1, 1, 1, 1.5),
            ),
            *by_data_set(
                "AEVLP's code; GR's has 8 and 8 for all", global_batch_size=(8, 16, 16, 8), epochs=(8, 8, 10, 10)
            ),
        ),
        differs="A positive costs -log(p + epsilon), the limit of q1 = 0; k and v move linearly with the epoch, as in "
        "the published code.",
    ),
    Scheme(
        name="hill",
        about="Hill loss: a positive costs the focal margin loss, any other entry (lamb - p) p^2.",
        paper=ZHANG,
        equation="section 3",
        loss="raypaml.losses.formulas:hill",
        settings=(*FOCAL_MARGIN, Setting("lamb", 1.5, "the lambda of (lamb - p) p^2")),
        differs="An observed negative costs the same as an unobserved entry.",
        augmentation="asl",
    ),
    Scheme(
        name="splc",
        about="Self-paced loss correction: the focal margin loss, in which unobserved entries of p above tau count as "
        "positive after the warm-up.",
        paper=ZHANG,
        equation="section 3",
        loss="raypaml.losses.scheme_losses:splc_loss",
        loss_of="batch",
        settings=(*FOCAL_MARGIN, Setting("tau", 0.6, "p above which an unobserved entry counts as positive", SHARE)),
        rejected_become="positive",
        differs="An unobserved entry that counts as positive has no margin, as in the published code; observed "
        "negatives never count as positive.",
        augmentation="asl",
    ),
)
"""The schemes in the order in which they are listed."""
