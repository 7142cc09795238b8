"""The configuration of a training run: all its settings, checked before anything starts."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from raypaml.augmentation.augmentations import AS_PUBLISHED, Augmentation, augmentation_of
from raypaml.credentials import check_no_credentials
from raypaml.data.storage import Location
from raypaml.extensions import missing
from raypaml.fields import field_types
from raypaml.json_types import check_fields
from raypaml.losses.schemes import read_settings, scheme_names, scheme_of
from raypaml.model.pretrained import IMAGENET
from raypaml.names import check_new_folders, name_fault, shown_name
from raypaml.settings import (
    LARGEST_ALPHA,
    ConfigGroup,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SettingValues,
)

EXECUTION_FIELDS = (
    *("name", "storage", "workers", "address", "loader_workers", "checkpoint_steps", "device"),
    *("skip_budget", "cache", "cache_gb", "reference", "probe_images", "history", "tracker", "profile", "imports"),
    *("min_workers", "max_failures", "hang_seconds", "nonfinite", "pseudo_labels", "from_run"),
)
"""Fields that may differ when a run is continued: they do not change what is computed from here on."""

EARLIER: SettingValues = {
    "augment": "none",
    "augment_settings": "",
    "cudnn_benchmark": False,
    "decay_biases": True,
    "evaluation_precision": "float32",
    "from_sha256": "",
    "head_init": "normal",
    "head_prior": 0.0,
    "lr_warmup": "",
    "matmul_precision": "torch",
    "momentum": 0.9,
    "optimizer": "adam",
    "patience": 0,
    "pseudo_labels_sha256": "",
    "rejection_alpha": 0.0,
    "rejection_rounding": "half_up",
    "scheme_defaults": "earlier",
    "stop_below": 0.0,
    "test_features": False,
    "threads": 0,
    "weight_decay": 0.0,
}
"""For every setting that the first version did not have, the value by which a run behaves as it did without it.

Stored configurations that lack a setting get this value: a run begun by an earlier version goes on as it began, and a
search is found again, although its question is compared setting by setting.
"""

ConfigRecord = dict[str, Any]
"""A configuration as JSON files hold it: `recipe`, and by the name of each group its settings by their names."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a run, in groups, and the name of the recipe that they come from."""

    recipe: str = "digits"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def groups(self) -> Iterator[tuple[str, ConfigGroup]]:
        """The name and the value of each group of settings."""
        return ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "recipe")

    def flat(self) -> SettingValues:
        """The value of every setting by its name, which no two groups share."""
        return {name: value for _, group in self.groups() for name, value in dataclasses.asdict(group).items()}

    def to_dict(self) -> ConfigRecord:
        """The settings by group and name, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: ConfigRecord) -> TrainConfig:
        """The inverse of `to_dict`; settings that `content` lacks have the values of `EARLIER`.

        Raises:
            ValueError: `content` lacks other settings, has some that are not known, or values of other types.
        """
        check_fields(content, cls, {*EARLIER, *EXECUTION_FIELDS}, "config")
        blank = cls(recipe=content["recipe"])
        groups = [content[name] for name, _ in blank.groups()]
        return blank.override(EARLIER | {name: value for group in groups for name, value in group.items()})

    def override(self, values: SettingValues) -> TrainConfig:
        """A copy with some settings changed; ValueError for names that are not known."""
        unknown = set(values) - set(self.flat())
        if unknown:
            raise ValueError(f"no such settings: {', '.join(sorted(unknown))}; known: {', '.join(self.flat())}")
        groups: dict[str, Any] = {
            name: dataclasses.replace(group, **{k: v for k, v in values.items() if k in vars(group)})
            for name, group in self.groups()
        }
        return dataclasses.replace(self, **groups)

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation of training images, besides `flip`; `published` is that of the scheme's published code."""
        name = self.data.augment
        return augmentation_of(scheme_of(self.loss.scheme).augmentation if name == AS_PUBLISHED else name)

    @property
    def mirrors(self) -> bool:
        """Whether half of the training images are mirrored."""
        return self.data.flip or self.augmentation.mirrors

    def check(self) -> None:
        """Raise ValueError, naming the field to change, where values are out of range or do not go together."""
        if unknown := missing(self.run.imports):
            raise ValueError(
                f"imports: the run was begun with --import {self.run.imports}; give --import {','.join(unknown)} "
                "again, for a module is never imported because a file names it"
            )
        _check_ranges(self)
        self.augmentation.numbers(self.data.augment_settings)
        _check_loss(self)
        _check_step(self)
        _check_run(self)


def rejecting_epochs(epochs: int, warmup_epochs: int) -> int:
    """Number of epochs after the warm-up; in the last of them the rejection rate is this multiple of delta_rel."""
    return max(0, epochs - warmup_epochs)


_LR_WARMUP = {"constant": "0 steps", "trapezoid": "100 steps", "cosine": "0 steps", "one-cycle": "20%"}


@functools.lru_cache  # every step asks
def lr_warmup_steps(optim: OptimConfig, steps: int) -> float:
    """Steps in which the learning rate rises, not always a whole number where they are given in epochs or percent.

    Args:
        optim: its `lr_warmup` says how long; where that is empty, the default of its `lr_schedule` does.
        steps: the number of steps of an epoch.

    Raises:
        ValueError: `lr_warmup` is neither steps, epochs nor percent, or is longer than the run.
    """
    text = optim.lr_warmup or _LR_WARMUP[optim.lr_schedule]
    duration = re.fullmatch(r"(\d+(?:\.\d+)?) ?(steps?|epochs?|%)", text)
    if not duration:
        raise ValueError(f"lr_warmup={text!r}: give steps, epochs or a share of the run: '100 steps', '1 epoch', '20%'")
    unit = {"s": Fraction(1), "e": Fraction(steps), "%": Fraction(steps * optim.epochs, 100)}[duration[2][0]]
    warmup = Fraction(duration[1]) * unit
    if optim.lr_warmup and warmup > optim.epochs * steps:
        run = f"{optim.epochs * steps:,} steps" if duration[2][0] == "s" else f"{optim.epochs} epochs"
        raise ValueError(f"lr_warmup={text!r}: longer than the run of {run}; give less")
    return float(warmup)


_AT_MOST = {"alpha": LARGEST_ALPHA, "rejection_alpha": LARGEST_ALPHA, "epochs": 10**6, "global_batch_size": 10**7}
_AT_MOST |= {"workers": 10**5, "loader_workers": 1024, "threads": 1024, "profile": 10**4, "seed": 2**63 - 1}
_AT_MOST |= {"lr": 10**3, "head_lr_mult": 10**6, "max_failures": 10**6}
"""The largest values of settings. Larger ones are slips of the keyboard, which would end in an overflow or in a machine
without memory, threads or an end; a file of an earlier version with one is refused too."""


def _check_ranges(config: TrainConfig) -> None:
    values = config.flat()
    for _, group in config.groups():
        for name, kind in field_types(type(group)).items():
            if get_origin(kind) is Literal and values[name] not in get_args(kind):
                raise ValueError(f"{name}={values[name]!r}: must be one of {', '.join(get_args(kind))}")
    at_least = {"alpha": 1, "delta_rel": 0, "warmup_epochs": 1, "epochs": 1, "global_batch_size": 1, "workers": 1}
    at_least |= {"lanes": 0, "loader_workers": 0, "seed": 0, "checkpoint_steps": 0, "shuffle_window": 0}
    at_least |= {"micro_batch_size": 0, "clip_gradient": 0, "ema": 0, "freeze_backbone": 0, "probe_images": 1}
    at_least |= {"min_workers": 0, "max_failures": 0, "profile": 0, "threads": 0}
    at_least |= {"momentum": 0, "weight_decay": 0, "patience": 0, "stop_below": 0}
    for name, least in at_least.items():
        if not (math.isfinite(values[name]) and values[name] >= least):
            why = " (1 switches BoostLU off; below 1 it would shrink negative attributions)" if name == "alpha" else ""
            finite = "" if math.isfinite(values[name]) else " and finite"
            raise ValueError(f"{name}={values[name]}: must be at least {least}{finite}{why}")
    for name in ("lr", "head_lr_mult", "cache_gb", "hang_seconds"):
        if not (math.isfinite(values[name]) and values[name] > 0):
            raise ValueError(f"{name}={values[name]}: must be above 0")
    for name, most in _AT_MOST.items():
        if values[name] > most:
            raise ValueError(f"{name}={values[name]}: must be at most {most:,}")
    if not 0 <= values["skip_budget"] < 1:
        raise ValueError(f"skip_budget={values['skip_budget']}: a share of the samples, at least 0 and below 1")
    if values["lanes"] and values["global_batch_size"] % values["lanes"]:
        raise ValueError(f"lanes={values['lanes']}: must divide global_batch_size={values['global_batch_size']}")


def _check_loss(config: TrainConfig) -> None:
    loss, epochs = config.loss, config.optim.epochs
    steps = rejecting_epochs(epochs, loss.warmup_epochs) + (loss.schedule == "samples")
    scheme = scheme_of(loss.scheme)
    read_settings(scheme.name, loss.scheme_settings)
    if loss.pseudo_labels and not scheme.takes_pseudo_labels:
        takers = ", ".join(name for name in scheme_names() if scheme_of(name).takes_pseudo_labels)
        raise ValueError(
            f"pseudo_labels={loss.pseudo_labels}: scheme {scheme.name} takes none; these do: {takers}. "
            "To compare schemes by tune, start from one of these; trials of the others use no file"
        )
    if loss.pseudo_labels_sha256 and not loss.pseudo_labels:
        raise ValueError("pseudo_labels_sha256: there is no file it belongs to; give --pseudo-labels FILE too")
    if not (loss.rejection_alpha == 0 or 1 <= loss.rejection_alpha < math.inf):
        raise ValueError(f"rejection_alpha={loss.rejection_alpha}: must be at least 1, or 0 for the alpha of training")
    most = 1 if scheme.rate_is_constant else steps
    if scheme.rejects_by == "rate" and loss.delta_rel * most > 100:
        raise ValueError(
            f"delta_rel={loss.delta_rel} %/epoch over {epochs} epochs ({loss.warmup_epochs} of warm-up) asks to reject "
            f"{loss.delta_rel * most:g} % of all entries in the last epoch; keep delta_rel * {most} <= 100"
        )


def _check_step(config: TrainConfig) -> None:
    optim, model = config.optim, config.model
    if optim.ema >= 1:
        raise ValueError(f"ema={optim.ema}: must be below 1, the share of the average that a step keeps, such as 0.999")
    if optim.momentum >= 1:
        raise ValueError(f"momentum={optim.momentum}: must be below 1, the share of the last update that a step keeps")
    if optim.momentum != OptimConfig.momentum and optim.optimizer != "sgd":
        raise ValueError(f"momentum={optim.momentum}: {optim.optimizer} has none; use --optimizer sgd")
    if optim.momentum != OptimConfig.momentum and optim.lr_schedule == "one-cycle":
        raise ValueError(f"momentum={optim.momentum}: --lr-schedule one-cycle sets it; use another --lr-schedule")
    lr_warmup_steps(optim, 10**9)  # how many steps an epoch has is not known yet
    if optim.compile and optim.reproducible:
        raise ValueError("compile: compiled kernels may differ between workers; use --no-compile or --no-reproducible")
    if not optim.feature_cache:
        raise ValueError("feature_cache='': give run, off or a folder")
    if model.head_weights and not model.from_run and model.weights in ("", *IMAGENET):
        raise ValueError(f"head_weights: weights={model.weights!r} has no classifier of your classes; give a file")
    if not 0 <= model.head_prior < 1:
        raise ValueError(f"head_prior={model.head_prior}: a probability, at least 0 and below 1, such as 0.05")
    if model.head_weights and model.head_prior:
        raise ValueError("head_prior: with head_weights the biases are the file's; leave one of the two out")
    if model.from_sha256 and not model.from_run:
        raise ValueError("from_sha256: there is no run it belongs to; give --from RUN too")
    if model.sync_batchnorm and optim.micro_batch_size:
        raise ValueError("sync_batchnorm: statistics would be those of micro batches; use --micro-batch-size 0")


def _is_begun(run: RunConfig) -> bool:
    """Whether there is such a run or search, which an earlier version may have begun, that refused fewer names."""
    folder = Path(run.storage) / run.name
    try:
        return folder.name == run.name and any((folder / f"{what}.json").is_file() for what in ("config", "search"))
    except OSError:  # such as a name that is too long
        return False


def _check_storage(storage: str) -> None:
    """Raise ValueError where runs cannot be kept at a place, as far as its text and this machine say."""
    if not Location(storage).is_local:
        return
    check_new_folders("storage", storage)
    if Path(storage).is_file():
        raise ValueError(f"storage={storage}: a file; give a folder, which is made if there is none")


def _check_run(config: TrainConfig) -> None:
    run = config.run
    if run.name and (fault := name_fault(run.name)) and not _is_begun(run):
        raise ValueError(f"name={shown_name(run.name)}: {fault}")
    for name, place in (("storage", run.storage), ("from", config.model.from_run)):
        if place.startswith("file:"):
            path = place.removeprefix("file:").removeprefix("//")
            raise ValueError(f"{name}={place}: give the path alone, such as {path}")
    _check_storage(run.storage)
    if run.min_workers > run.workers:
        raise ValueError(f"min_workers={run.min_workers}: must be at most workers={run.workers}")
    if run.nonfinite == "skip" and not config.data.skip_budget:
        raise ValueError("nonfinite=skip: the samples of skipped steps count against skip_budget, which is 0; raise it")
    check_no_credentials(config.flat())
