"""The published rows that `reproduce.py` compares with: test mAP in percent, numbers of images, and their sources.

The figures are those of BoostLU (CVPR 2023), tables of single positive labels and of OpenImages V3, as its repository
shows them (youngwk/BridgeGapExplanationPAMC, imgs/quantitative1.png and quantitative2.png); those of GR and GPR are
from the table of AEVLP (ICCV 2025, Fsoft-AIC/AEVLP, assets/results.png).
"""

from __future__ import annotations

from dataclasses import dataclass

Row = tuple[str, float]
"""Scheme and alpha."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """The published figures for one data set, and the images that they were measured on."""

    recipe: str
    shard: str
    """The arguments of `raypaml shard`, with the placeholders {files}, {images} and {out}."""
    rows: dict[Row, float]
    """The published test mAP of each row, in percent."""
    tolerance: float
    """By how many points the mean over seeds may differ from the published figure and still count as reproduced."""
    why: str
    """The reason for this tolerance."""
    classes: int
    train: int
    """Training images of the protocol, after the validation images are cut off."""
    validation: int
    test: int
    missing: float = 0.0
    """The share of images that may be missing because they are no longer available at their source."""
    pixels: int = 448
    remark: str = ""


_SCHEMES = ("full", "an", "ls", "asl", "role", "em", "em_apl", "gr", "gpr", "ll_r", "ll_ct", "ll_cp")


def _rows(plain: str, boosted: str) -> dict[Row, float]:
    """Reads the figures of `_SCHEMES` at alpha 1, and of the last three of them at alpha 5."""
    at_one = {(scheme, 1.0): float(value) for scheme, value in zip(_SCHEMES, plain.split(), strict=True)}
    return at_one | {(scheme, 5.0): float(v) for scheme, v in zip(_SCHEMES[-3:], boosted.split(), strict=True)}


TWO_PAPERS = "the LL paper's and the BoostLU paper's figures of one scheme differ by as much on this data set"
OTHERS = (
    "the figures of full, an, ls, asl, role, em and em_apl are from the EM+APL paper, those of gr and gpr from AEVLP, "
    "with the protocols of these papers; gpr needs -- --pseudo-labels FILE"
)

PUBLISHED: dict[str, Published] = {
    "voc": Published(
        recipe="voc2012_single",
        shard="voc {files} --hide single-positive --out {out}",
        rows=_rows("89.42 85.89 87.90 87.76 87.77 89.09 89.19 89.83 90.46 88.27 87.79 87.44", "89.29 88.61 87.81"),
        tolerance=1.2,
        why=TWO_PAPERS,
        classes=20,
        train=4574,
        validation=1143,
        test=5823,
        remark=OTHERS,
    ),
    "coco": Published(
        recipe="coco2014_single",
        shard="coco {files} --hide single-positive --out {out}",
        rows=_rows("76.78 64.92 67.15 68.78 67.04 70.70 70.87 73.17 73.54 70.70 70.29 70.27", "72.89 71.78 71.41"),
        tolerance=0.5,
        why=TWO_PAPERS,
        classes=80,
        train=65665,
        validation=16416,
        test=40137,
        remark=OTHERS,
    ),
    "nus": Published(
        recipe="nuswide_single",
        shard="nuswide {files} --images {images} --hide single-positive --out {out}",
        rows=_rows("52.08 42.27 43.77 46.93 41.63 47.15 47.59 49.08 50.70 48.76 48.08 47.92", "49.59 48.37 48.61"),
        tolerance=1.4,
        why=TWO_PAPERS,
        classes=81,
        train=120000,
        validation=30000,
        test=60260,
        missing=0.02,
        remark=f"the figures of ll_* are for the re-crawled images, about 150,000 and 60,260; {OTHERS}, on the images "
        "of the official lists",
    ),
    "cub": Published(
        recipe="cub_single",
        shard="cub {files} --hide single-positive --out {out}",
        rows=_rows("30.90 18.31 16.26 18.81 13.66 20.85 21.84 21.64 24.89 19.56 19.06 19.21", "19.80 19.25 19.34"),
        tolerance=1.4,
        why=TWO_PAPERS,
        classes=312,
        train=4795,
        validation=1199,
        test=5794,
        remark=OTHERS,
    ),
    "openimages": Published(
        recipe="openimages_v3",
        shard="openimages --metadata {files} --images {images} --resize 224 --out {out}",
        rows={
            ("ll_r", 1.0): 82.53,
            ("ll_ct", 1.0): 82.58,
            ("ll_cp", 1.0): 82.46,
            ("ll_r", 5.0): 83.86,
            ("ll_ct", 5.0): 83.94,
            ("ll_cp", 5.0): 84.04,
            ("pasl", 1.0): 83.03,
        },
        tolerance=0.5,
        why="chosen here, because image size, batch size and augmentation are not published",
        classes=5000,
        train=3_400_000,
        validation=41_620,
        test=125_436,
        missing=0.03,
        pixels=224,
        remark="the authors trained on 3.4 of 3.7 million images; pasl has the protocol of its own paper",
    ),
}
