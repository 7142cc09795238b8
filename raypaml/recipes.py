"""Named runs. Each says its command, its expected time and figures, and which fields are published or our choice.

What is published for a scheme on the data set of a recipe stands in the scheme's record; `resolve` lays it over the
recipe, and every command asks it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from raypaml.cli import known_names
from raypaml.config import TrainConfig
from raypaml.losses.schemes import all_settings, join_settings, scheme_of, settings_text
from raypaml.settings import DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig


def digits() -> TrainConfig:
    """LL-R with BoostLU on the embedded scenes of handwritten digits, single positive labels, two workers.

        python -m raypaml.train digits

    alpha 5 and head_lr_mult 10 are published; the rest is our choice for a network that starts from nothing: a
    warm-up long enough for it to see anything (published runs start from ImageNet weights and warm up one epoch),
    and four lanes of eight images, so that one to four workers compute the same weights. The large-loss schemes have
    values of their own here (`OF_DIGITS`), all others their published defaults. Images are not
    augmented.
    Measured time and figures: tools/papers/README.md.
    """
    return TrainConfig(
        recipe="digits",
        data=DataConfig(data="digits", global_batch_size=32, lanes=4),
        model=ModelConfig(backbone="small", alpha=5.0),
        loss=LossConfig(scheme="ll_r", delta_rel=0.25, warmup_epochs=6),
        optim=OptimConfig(epochs=18, lr=4e-3, head_lr_mult=10.0, lr_schedule="trapezoid", reproducible=True),
        run=RunConfig(workers=2, history=True),
    )


def openimages_v3() -> TrainConfig:
    """LL-R with BoostLU on OpenImages V3: 5,000 classes, 3.4 million images, ResNet-101.

        python -m raypaml.train openimages_v3 --data DIR --workers 4
        python -m raypaml.train openimages_v3 --data DIR --workers 4 --scheme ll_cp    # the best published row

    A recipe for the rows of BoostLU's authors (CVPR 2023), test mAP without (--alpha 1) and with BoostLU; not yet
    reproduced here:

        ll_r    82.53   83.86
        ll_ct   82.58   83.94
        ll_cp   82.46   84.04    the best figure published on this data set

    Published: backbone, alpha 5, Adam without decay, 20 epochs, lr 2e-5, head 10x (LL, CVPR 2022, supplement),
    mirroring and nothing else (both papers' other data sets), ImageNet weights V1 (torchvision's of that time).
    delta_rel was searched in 0.005 and 0.01, and which of them gave the rows is not known: 0.01 for all three schemes
    is our choice. So are the global batch of 256, the size of the images (that of the shards), and bfloat16 where the
    GPU has it. The row of assumed negatives (82.0) is LL's (CVPR 2022), that of P-ASL (83.03) is of another backbone
    and protocol.
    """
    return TrainConfig(
        recipe="openimages_v3",
        data=DataConfig(data="openimages_v3", global_batch_size=256, shuffle_window=4, loader_workers=8, flip=True),
        model=ModelConfig(backbone="resnet101", weights="imagenet-v1", alpha=5.0, head_init="torch"),
        loss=LossConfig(scheme="ll_r", delta_rel=0.01, warmup_epochs=1),
        optim=OptimConfig(epochs=20, lr=2e-5, head_lr_mult=10.0),
        run=RunConfig(workers=4),
    )


def openimages_v7() -> TrainConfig:
    """LL-R with BoostLU on Open Images V7, the release that people download today, with human-verified labels.

        raypaml shard openimages --help
        python -m raypaml.train openimages_v7 --data DIR --workers 4

    No figure of this method is published for it, and none is claimed. The protocol is ours: that of `openimages_v3`,
    over the trainable classes that the release itself lists; delta_rel 0.005, the smaller of the two values that LL
    searched on V3, because the label matrix has about twice as many classes and hardly more positives an image; the
    better ImageNet weights V2; average precision over observed labels only. The figures of others on V6 (CSL 86.72 and
    more) are of other backbones, of weights of ImageNet-21k and of other schedules.
    """
    values = {"data": "openimages_v7", "delta_rel": 0.005, "weights": "imagenet-v2"}
    return dataclasses.replace(openimages_v3(), recipe="openimages_v7").override(values)


def voc2012_single() -> TrainConfig:
    """LL-R with BoostLU on PASCAL VOC 2012, one positive label an image: 4,574 images, 20 classes.

        raypaml shard voc VOCdevkit/VOC2012 --hide single-positive --out voc2012_single
        python -m raypaml.train voc2012_single --data voc2012_single

    A recipe for the rows that BoostLU's authors trained (CVPR 2023), test mAP without (--alpha 1) and with BoostLU, and
    by `--scheme` for those of other papers, each with its own settings; not yet reproduced here:

        ll_r     88.27   89.29    delta_rel 0.5
        ll_ct    87.79   88.61    delta_rel 0.2
        ll_cp    87.44   87.81    delta_rel 0.1
        em       89.09            weight 0.2; batch 8, the head no faster, alpha 1 (ECCV 2022)
        em_apl   89.19            the same, pseudo labels of weight 0.02 after 5 epochs
        gr       89.83            batch 8, 8 epochs, alpha 1 (IJCAI 2024, the figure as AEVLP lists it)

    Published (BoostLU and its code, for VOC, COCO, NUS-WIDE and CUB alike): ResNet-50, ImageNet weights V1, 448 px,
    mirroring, Adam 1e-5 without decay, head 10x from torch's own start, batch 16, 10 epochs, alpha 5, the best
    validation mAP is tested.
    Its table's rows of full labels (89.42) and assumed negatives (85.89) are not of that protocol but those of EM+APL's
    paper: --alpha 1 --global-batch-size 8 --head-lr-mult 1. Nor are the rows of LL without BoostLU (CVPR 2022: LL-R
    89.2, LL-Ct 89.0, LL-Cp 88.4, an 85.1, full labels 90.2) those of this recipe. Its author's best settings are

        scheme     VOC (SGD 5e-3)   COCO   NUS   CUB (Adam 7.5e-5)
        ll_r       0.2              0.4    0.4   0.4
        ll_ct      0.2              0.2    0.2   0.4
        ll_cp      0.1              0.2    0.2   0.2

    so that LL-R's 89.2 is --alpha 1 --delta-rel 0.2 --optimizer sgd --lr 5e-3 --momentum 0.9 --weight-decay 1e-3.

    Our choice: bfloat16 where the GPU has it. Better weights than the papers': --weights imagenet-v2. Their LinearInit:
    --freeze-backbone E. Mirroring is all their augmentation; the code of asl, pasl, csl, hill and splc has another
    instead: --augment published --no-flip.
    """
    return TrainConfig(
        recipe="voc2012_single",
        data=DataConfig(data="voc2012_single", global_batch_size=16, loader_workers=4, flip=True),
        model=ModelConfig(backbone="resnet50", weights="imagenet-v1", alpha=5.0, head_init="torch"),
        loss=LossConfig(scheme="ll_r", delta_rel=0.5, warmup_epochs=1),
        optim=OptimConfig(epochs=10, lr=1e-5, head_lr_mult=10.0),
    )


def _single_positive(name: str) -> TrainConfig:
    """As `voc2012_single`, on other data."""
    return dataclasses.replace(voc2012_single(), recipe=name).override({"data": name})


def coco2014_single() -> TrainConfig:
    """LL-R with BoostLU on COCO 2014, one positive label an image: 65,665 images, 80 classes.

        raypaml shard coco COCO --hide single-positive --out coco2014_single
        python -m raypaml.train coco2014_single --data coco2014_single --workers 1

    Settings, and whose rows these are: `voc2012_single`. Test mAP without and with BoostLU, not yet reproduced here:
    ll_r 70.70, 72.89; ll_ct 70.29, 71.78; ll_cp 70.27, 71.41. em 70.70, em_apl 70.87, gr 73.17. Of other protocols: an
    64.92, full labels 76.78 (EM+APL's, batch 16); LL-R 71.0, LL-Ct 70.5, LL-Cp 70.7 (LL's).
    """
    return _single_positive("coco2014_single")


def nuswide_single() -> TrainConfig:
    """LL-R with BoostLU on NUS-WIDE, one positive label an image: 81 classes.

        raypaml shard nuswide DIR --images DIR/Flickr --hide single-positive --out nuswide_single
        python -m raypaml.train nuswide_single --data nuswide_single

    Settings, and whose rows these are: `voc2012_single`. The papers differ in their images: official lists (EM+APL), or
    the re-crawled ones (LL, BoostLU). Test mAP without and with BoostLU, not yet reproduced here: ll_r 48.76, 49.59;
    ll_ct 48.08, 48.37; ll_cp 47.92, 48.61. em 47.15, em_apl 47.59, gr 49.08. Of other protocols: an 42.27, full labels
    52.08 (EM+APL's); LL-R 47.4, LL-Ct 48.0, LL-Cp 48.3 (LL's).
    """
    return _single_positive("nuswide_single")


def cub_single() -> TrainConfig:
    """LL-R with BoostLU on CUB-200-2011's attributes, one positive label an image: 4,795 images, 312 classes.

        raypaml shard cub CUB --hide single-positive --out cub_single
        python -m raypaml.train cub_single --data cub_single

    Settings, and whose rows these are: `voc2012_single`. Test mAP without and with BoostLU, not yet reproduced here:
    ll_r 19.56, 19.80; ll_ct 19.06, 19.25; ll_cp 19.21, 19.34. em 20.85, em_apl 21.84, gr 21.64. Of other protocols: an
    18.31, full labels 30.90 (EM+APL's, batch 8, lr 1e-4); LL-R 19.5, LL-Ct 20.4, LL-Cp 20.1 (LL's).
    """
    return _single_positive("cub_single")


def linear_init() -> TrainConfig:
    """LL-R with BoostLU on a frozen backbone, for data of your own: the head alone learns, from features computed once.

        raypaml train linear_init --data data/mine --name mine
        raypaml evaluate runs/mine --choose-alpha

    Published: the head first (the papers' LinearInit; Cole: 25 epochs of it), batch 16, Adam, head 10x, delta_rel 0.2
    for VOC (LL's author). Ours: ResNet-18, no mirroring, lr 1e-4 and so 1e-3 for the head, 20 epochs; and BoostLU where
    it helped: rejection ranks by alpha 20 and validation chooses the alpha of use, while loss and gradient have 1.

    Measured on 1,839 photos of VOC that nothing was tuned on (786 to train on; EfficientNet-Lite0, three seeds, mAP of
    the 12 frequent classes; 2026-11-26), at training's alpha, and at the one that validation chose of 1 to 50. Heads
    were trained by a script outside of the package, which agreed with this recipe in the two runs made with both;
    ResNet-18, the recipe's own backbone, was not measured.

        an, alpha 1     48.3   50.7        ll_r, alpha 1   49.0   51.6        this recipe   49.4   51.7
        an, alpha 5     47.5   48.3        ll_r, alpha 5   49.3   50.3        full labels   53.4   55.6

    At the chosen alpha its lead over ll_r with alpha 1 is not significant (+0.2 +- 1.1 over seeds); that over an with
    alpha 1 is +1.0 (0.4 to 1.6 over images), over ll_r with alpha 5 at its own alpha +2.4 (1.4 to 4.1).
    """
    return TrainConfig(
        recipe="linear_init",
        data=DataConfig(data="linear_init", global_batch_size=16),
        model=ModelConfig(backbone="resnet18", weights="imagenet", alpha=1.0),
        loss=LossConfig(scheme="ll_r", delta_rel=0.2, warmup_epochs=1, rejection_alpha=20.0),
        optim=OptimConfig(epochs=20, lr=1e-4, head_lr_mult=10.0, freeze_backbone=1_000_000),
    )


_SINGLE = (voc2012_single, coco2014_single, nuswide_single, cub_single)
RECIPES: dict[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe for recipe in (digits, openimages_v3, openimages_v7, *_SINGLE, linear_init)
}


def recipe(name: str) -> TrainConfig:
    """The recipe of this name."""
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r}: no such recipe{known_names(name, RECIPES)}")
    return RECIPES[name]()


# --- What is published for a scheme -----------------------------------------------------------------------------------

DATA_SETS = {
    "openimages_v3": "OpenImages V3",
    "voc2012_single": "VOC",
    "coco2014_single": "COCO",
    "nuswide_single": "NUS-WIDE",
    "cub_single": "CUB",
}
"""The data set of a recipe, as the records of the schemes name it."""

OF_DIGITS: dict[str, dict[str, float]] = {
    "ll_r": {"delta_rel": 0.25},
    "ll_ct": {"delta_rel": 0.2},
    "ll_cp": {"delta_rel": 0.05},
    "ll_r_abs": {"threshold": 1.5, "delta_abs": 0.1},
    "ll_ct_abs": {"threshold": 1.5, "delta_abs": 0.1},
    "ll_cp_abs": {"threshold": 1.5, "delta_abs": 0.1},
}
"""What `digits` has for the large-loss schemes, for which nothing is published on it, found by search on validation:
delta_rel in steps of two (figures: tools/papers/README.md; 0.05 is the least that ll_cp can reject, one entry of each
batch), the thresholds by an earlier search."""


def as_before(base: TrainConfig) -> TrainConfig:
    """A recipe as earlier versions had it, which knew one name for ImageNet weights and one way to begin a head.

    Searches that they began go on so.
    """
    return base.override({"weights": "imagenet", "head_init": "normal"}) if base.recipe in DATA_SETS else base


def own_values(recipe_name: str, scheme: str) -> dict[str, float]:
    """What a recipe has for a scheme instead of its usual values: settings of the scheme, and fields by name."""
    if recipe_name == "digits":
        return OF_DIGITS.get(scheme, {})
    return scheme_of(scheme).published_for(DATA_SETS.get(recipe_name, ""))


def resolve(base: TrainConfig, given: Mapping[str, Any]) -> TrainConfig:
    """A configuration with some fields given, such as by flags or by a trial of a search.

    Where another scheme than that of `base` is given, what its recipe has for the scheme of `base` becomes usual again,
    and what it has for the other one (`own_values`) holds instead; pseudo labels stay only where it takes them. What is
    given always wins; settings of the scheme win one by one. Where the scheme stays, nothing else changes, so that a
    stored run goes on with what it has.

    Raises:
        ValueError: fields that are not known, or settings that the scheme has not.
    """
    scheme = given.get("scheme", base.loss.scheme)
    if scheme != base.loss.scheme:
        base = _with_scheme(base, scheme)
    values = dict(given)
    if "scheme_settings" in given:
        values["scheme_settings"] = join_settings(scheme, base.loss.scheme_settings, given["scheme_settings"])
    return base.override(values)


def _with_scheme(base: TrainConfig, scheme: str) -> TrainConfig:
    """`base` with another scheme, and what its recipe has for that one instead of what it has for the one before."""
    usual = recipe(base.recipe).flat()
    own = own_values(base.recipe, scheme)
    fields: dict[str, Any] = {name: usual[name] for name in own_values(base.recipe, base.loss.scheme) if name in usual}
    fields |= {name: type(usual[name])(value) for name, value in own.items() if name in usual}
    if not scheme_of(scheme).takes_pseudo_labels:
        fields |= {"pseudo_labels": "", "pseudo_labels_sha256": ""}
    settings = settings_text({name: value for name, value in own.items() if name not in usual})
    return base.override(fields | {"scheme": scheme, "scheme_settings": settings})


def otherwise_than_own(config: TrainConfig) -> list[str]:
    """Where a configuration differs from what its recipe has for its scheme (`own_values`), in words."""
    loss, data = config.loss, DATA_SETS.get(config.recipe)
    has: dict[str, Any] = config.flat() | all_settings(loss.scheme, loss.scheme_settings, loss.scheme_defaults)
    wanted = f"{loss.scheme}'s published value for {data} is" if data else f"{config.recipe} has for {loss.scheme}"
    return [
        f"{name} {has[name]:g} where {wanted} {value:g}"
        for name, value in own_values(config.recipe, loss.scheme).items()
        if has[name] != value
    ]
