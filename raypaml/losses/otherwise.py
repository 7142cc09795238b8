"""The differences from the published code that do not depend on the scheme, and the table of all differences.

Those of a single scheme are in its record, under `differs`.
"""

from __future__ import annotations

from raypaml.losses.schemes import SCHEMES, rows_as_markdown

GENERAL: tuple[tuple[str, str], ...] = (
    (
        "k",
        "The number of entries to reject is computed in exact fractions and rounded up once; the published code "
        "computes in floats, and gets one entry more where the product is a whole number (161 for 160).",
    ),
    (
        "batch",
        "Selection, penalty and mean are computed over the global batch, so that results do not depend on the number "
        "of workers; the published code computes them over the batch of one GPU (`--rejection-scope rank`).",
    ),
    (
        "last batch",
        "Every sample is used, and the last batch may be smaller, as in LL's, BoostLU's and EM's code; Cole's code "
        "drops that batch in training, validation and test.",
    ),
    (
        "sum or mean",
        "All losses are means over B x K, also where the published code sums (ASL, CSL, Hill, SPLC): Adam is invariant "
        "to this factor, and the learning rate does not depend on B and K.",
    ),
    (
        "scores",
        "Average precision ranks by float32 logits; the published code ranks by probabilities, which are all 1 from a "
        "logit of 17 on.",
    ),
    (
        "initialisation of the head",
        "The recipes of the papers' data sets use the published initialisation, torch's uniform weights and biases "
        "within 1 / sqrt(D) (`--head-init torch`); all others use normal weights of standard deviation 0.01 and biases "
        "0. In eight pairs of runs on 1,864 photos, each pair with the same seed (frozen EfficientNet-Lite0; AN at "
        "alpha 1 and 5, LL-R at 5), the best validation mAP with torch's was lower by 0.3 on average (from 0.0 to "
        "0.9); the standard deviation between seeds is 0.3.",
    ),
    (
        "BoostLU at 0",
        "The derivative at exactly 0 is alpha, in the published code 1; both are subgradients of max(x, alpha x), and "
        "a value of exactly 0 hardly occurs.",
    ),
    (
        "images",
        "Shards hold resized images, as JPEG of quality 90, so that no epoch decodes them in full size; the published "
        "code resizes the originals each time (`--resize none` keeps their size).",
    ),
    (
        "random numbers",
        "The order of samples and their mirroring are functions of seed, epoch and sample, not draws from one "
        "generator, so that they do not depend on workers or interruptions; the hidden labels and the split are "
        "exactly the published ones.",
    ),
    (
        "early stopping",
        "All epochs are trained, as in BoostLU's code, and the checkpoint of best validation mAP is kept; LL's code "
        "stops when validation mAP is 3 below the best (`--stop-below 3`). The papers' recipes stop early for four "
        "schemes only, as their code does: `em` and `em_apl` at the first epoch that is no better, `gr` at 2 below the "
        "best, `gpr` at 2 below the best or after two epochs that are no better.",
    ),
    (
        "precision",
        "Training uses bfloat16 where the GPU supports it, and TF32 for float32 matrix products; `--precision float32 "
        "--matmul-precision highest` is the published precision.",
    ),
    (
        "images without a label",
        "Open Images' training images that have labels of other classes only are left out, and their number is "
        "reported; no published code shows what was done with them.",
    ),
)
"""Pairs of a subject and the difference, with its reason."""


def otherwise_table() -> str:
    """The table of all differences in `losses/README.md`: the general ones, then those of single schemes."""
    rows = [["subject", "difference, and why"], *map(list, GENERAL)]
    for differs in dict.fromkeys(scheme.differs for scheme in SCHEMES.values() if scheme.differs):
        names = [f"`{name}`" for name, scheme in SCHEMES.items() if scheme.differs == differs]
        rows.append([", ".join(names), differs])
    return rows_as_markdown(rows)
