"""What raypaml does otherwise than the published code, whatever the scheme; and the table of it for people.

What concerns one scheme only is in its record, under `differs`.
"""

from __future__ import annotations

from raypaml.losses.schemes import SCHEMES, rows_as_markdown

GENERAL: tuple[tuple[str, str], ...] = (
    (
        "k",
        "It comes from the schedule in exact fractions and is rounded up once; the floats of published code add one "
        "where the product is whole (161 for 160).",
    ),
    (
        "batch",
        "Selection, penalty and mean are those of the global batch, so that results do not depend on the number of "
        "workers; published code works on the batch of one GPU (`--rejection-scope rank`).",
    ),
    (
        "last batch",
        "Every sample is trained and evaluated, the last batch may be short, as in LL's, BoostLU's and EM's code; "
        "Cole's drops it, of validation and test too.",
    ),
    (
        "sum or mean",
        "All losses are means over B x K, also where the code of ASL, CSL, Hill and SPLC adds up: Adam does not "
        "notice, and the learning rate does not depend on B and K.",
    ),
    (
        "scores",
        "Everything is ranked by float32 logits; published code ranks by probabilities, all of which are 1 from a "
        "logit of 17 on.",
    ),
    (
        "head at the start",
        "The recipes of the papers' data sets begin as published, with torch's uniform weights and biases within "
        "1 / sqrt(D) (`--head-init torch`); all others with normal weights of deviation 0.01 and biases 0: in eight "
        "pairs of runs on 1,864 photos, both of one seed (frozen EfficientNet-Lite0; AN at alpha 1 and 5, LL-R at 5), "
        "torch's had a best validation mAP 0.3 lower on average, from 0.0 to 0.9; seeds differ by 0.3 (standard "
        "deviation).",
    ),
    (
        "BoostLU at 0",
        "The slope at exactly 0 is alpha, where published code has 1; max(x, alpha x) has both there, and a value of "
        "exactly 0 hardly occurs.",
    ),
    (
        "images",
        "Shards hold them resized already, as JPEG of quality 90, so that they are not decoded in full size in every "
        "epoch; published code resizes the originals each time (`--resize none` keeps their size).",
    ),
    (
        "draws",
        "Order and mirroring are drawn by seed, epoch and sample, not in the order of one generator, so that they do "
        "not depend on workers or interruptions; which labels are hidden and the split are the published draws to the "
        "bit.",
    ),
    (
        "stopping",
        "All epochs are trained, as in BoostLU's code, and the best by validation mAP is kept; LL's code stops 3 below "
        "the best (`--stop-below 3`). The papers' recipes stop early under four schemes alone, as the code of these "
        "does: `em` and `em_apl` at the first epoch that is no better, `gr` 2 below the best, `gpr` 2 below it or "
        "after two epochs that are no better.",
    ),
    (
        "precision",
        "bfloat16 where the GPU has it, float32 products in TF32; `--precision float32 --matmul-precision highest` for "
        "published ones.",
    ),
    (
        "images without a label",
        "Open Images' training images with labels of other classes only are left out and counted; no published code "
        "shows what was done with them.",
    ),
)
"""What, and what is done otherwise and why."""


def otherwise_table() -> str:
    """The table of all differences in `losses/README.md`: general ones, then those of the schemes."""
    rows = [["of", "what we do otherwise, and why"], *map(list, GENERAL)]
    for differs in dict.fromkeys(scheme.differs for scheme in SCHEMES.values() if scheme.differs):
        names = [f"`{name}`" for name, scheme in SCHEMES.items() if scheme.differs == differs]
        rows.append([", ".join(names), differs])
    return rows_as_markdown(rows)
