"""Named runs. Each says its command, its expected time and figures, and which fields are published or our choice."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from raypaml.config import DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig


def digits() -> TrainConfig:
    """LL-R with BoostLU on the embedded scenes of handwritten digits, single positive labels, two workers.

        python -m raypaml.train digits

    alpha 5 and head_lr_mult 10 are published; the rest is our choice for a network that starts from nothing: a
    warm-up long enough for it to see anything (published runs start from ImageNet weights and warm up one epoch),
    and four lanes of eight images, so that one to four workers compute the same weights.
    Measured time and figures: README.md, "What it does to digits".
    """
    return TrainConfig(
        recipe="digits",
        data=DataConfig(data="digits", global_batch_size=32, lanes=4),
        model=ModelConfig(backbone="small", alpha=5.0),
        loss=LossConfig(scheme="ll_r", delta_rel=0.25, warmup_epochs=6),
        optim=OptimConfig(epochs=18, lr=4e-3, head_lr_mult=10.0, lr_schedule="trapezoid", reproducible=True),
        run=RunConfig(workers=2),
    )


def openimages_v3() -> TrainConfig:
    """LL-R with BoostLU on OpenImages V3: 5,000 classes, 3.4 million images, ResNet-101.

        python -m raypaml.train openimages_v3 --data DIR --workers 4

    Published: backbone, alpha 5, Adam without decay, 20 epochs, lr 2e-5, head 10x, delta_rel 0.005 or 0.01 (LL, CVPR
    2022, supplement), mirroring (both papers' other data sets). Our choice: global batch 256 (not published), ImageNet
    weights V2 where the papers' are V1, bfloat16 where the GPU has it. Expected from the paper, not yet reproduced
    here: LL-R 82.53, with BoostLU 83.86 mAP on the test split.
    """
    return TrainConfig(
        recipe="openimages_v3",
        data=DataConfig(data="openimages_v3", global_batch_size=256, shuffle_window=4, loader_workers=8, flip=True),
        model=ModelConfig(backbone="resnet101", weights="imagenet", alpha=5.0),
        loss=LossConfig(scheme="ll_r", delta_rel=0.01, warmup_epochs=1),
        optim=OptimConfig(epochs=20, lr=2e-5, head_lr_mult=10.0),
        run=RunConfig(workers=4),
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {"digits": digits, "openimages_v3": openimages_v3}


def recipe(name: str) -> TrainConfig:
    """The recipe of this name."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"recipe {name!r}: no such recipe; {hint}Known: {', '.join(RECIPES)}")
    return RECIPES[name]()
