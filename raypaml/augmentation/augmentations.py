"""The registry of augmentations: what each does, its source, and its settings. This module does not import torch.

A new augmentation takes a function (images, draws, **settings) -> images, as in `augmentation.policies`, and a record.
`--augment published` is not an augmentation: it stands for the one that the record of the scheme names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from raypaml.cli import indented_list, known_names
from raypaml.losses.scheme import Bounds, Setting, read_numbers

AS_PUBLISHED = "published"
FLAG = "augment_settings"


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The record of an augmentation: what it does to the images of a training step."""

    name: str
    """The name that `--augment` takes."""
    about: str
    """What it does, in one sentence."""
    source: str = ""
    """The paper or code that published it; empty where there is none."""
    mirrors: bool = False
    """Whether half of the images are mirrored first, as with `--flip`."""
    change: str = ""
    """The function that makes the other changes, as 'module:function'; empty where there are none.

    It is imported when it is first used. It takes uint8 images [B, 3, H, W] on the device, `draws.Draws`, and the
    settings by name, and returns images of the same type, shape and device.
    """
    settings: tuple[Setting, ...] = ()

    def __post_init__(self) -> None:
        if self.change and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", self.change):
            raise ValueError(f"augmentation {self.name}: change={self.change!r}: give it as 'module:function'")
        for setting in self.settings:
            setting.check(setting.default, FLAG)

    @property
    def changes_images(self) -> bool:
        """Whether an image may differ from epoch to epoch."""
        return self.mirrors or bool(self.change)

    def numbers(self, text: str) -> dict[str, float]:
        """The value of every setting: those given as `name=value,...`, and the defaults of the others.

        Raises:
            ValueError: there is no such setting, or its value is outside the bounds.
        """
        defaults = {setting.name: setting.default for setting in self.settings}
        return defaults | read_numbers(text, self.settings, FLAG, f"augmentation {self.name}")


_SIDE = Bounds(least=0.0, most=1.0, from_least=True, wording="a share of each side, at least 0 and below 1")
_AREA = Bounds(least=0.0, most=1.0, also=(1.0,), wording="a share of the area, above 0 and at most 1")
_TURN = Bounds(least=0.0, most=0.5, from_least=True, also=(0.5,), wording="a share of the circle, 0 to 0.5")
_SHARE = Bounds(least=0.0, most=1.0, from_least=True, also=(1.0,), wording="0 to 1")
_WHOLE = Bounds(least=0.0, most=11.0, from_least=True, whole=True, wording="a whole number from 0 to 10")
_MAGNITUDE = Bounds(least=0.0, most=30.0, from_least=True, also=(30.0,), wording="0 to 30")
_CROP = Setting("crop", 0.5, "least area of the cropped box, as a share of the image's area", _AREA)
_CUTOUT = "sides of the covered rectangle, as a share of the image's sides; 0: none"

AUGMENTATIONS: dict[str, Augmentation] = {}
"""The records by name, in the order in which they are listed."""


def register_augmentation(augmentation: Augmentation) -> None:
    """Add an augmentation, so that `--augment` takes its name.

    Raises:
        ValueError: the name is taken.
    """
    if augmentation.name in (AS_PUBLISHED, *AUGMENTATIONS):
        raise ValueError(f"augmentation {augmentation.name}: there is one of this name already; choose another")
    AUGMENTATIONS[augmentation.name] = augmentation


def augmentation_names() -> tuple[str, ...]:
    """The names that `--augment` takes: those of all augmentations registered so far, and `published`."""
    return (*AUGMENTATIONS, AS_PUBLISHED)


def augmentation_of(name: str) -> Augmentation:
    """The record of an augmentation. Raises ValueError, which suggests the nearest name, where there is none."""
    if name not in AUGMENTATIONS:
        known = known_names(name, AUGMENTATIONS)
        raise ValueError(f"augment={name!r}: no such augmentation{known}; one of your own: --import MODULE")
    return AUGMENTATIONS[name]


def augmentations_text() -> str:
    """The list of augmentations for `--help`, each with its sentence, source and settings."""
    texts = {}
    for name, each in AUGMENTATIONS.items():
        numbers = ", ".join(f"{setting.name}={setting.default:g}" for setting in each.settings)
        source, numbers = each.source and f" ({each.source})", numbers and f" [{numbers}]"
        texts[name] = f"{each.about}{source}{numbers}"
    return "Augmentations, [with their settings for --augment-settings]:\n" + indented_list(texts)


for record in (
    Augmentation(name="none", about="No change, except for the mirroring of --flip."),
    Augmentation(
        name="mirror",
        about="Half of the images are mirrored, as with --flip.",
        source="E. Cole et al., CVPR 2021, and the papers that build on their code: LL, BoostLU, EM, GR",
        mirrors=True,
    ),
    Augmentation(
        name="asl",
        about="A rectangle of half of each side is covered in a random colour, then RandAugment as in the package "
        "randaugment: two of 15 operations, each with probability 0.5 and one of nine magnitudes. No mirroring.",
        source="the code of ASL, CSL, Hill and SPLC",
        change="raypaml.augmentation.policies:asl_published",
        settings=(Setting("cutout", 0.5, _CUTOUT, _SIDE),),
    ),
    Augmentation(
        name="light",
        about="Half of the images are mirrored; a box of at least half of the area, at an aspect ratio of 3/4 to 4/3, "
        "is cropped; brightness, contrast, saturation and hue are changed at random.",
        source="our choice, not searched",
        mirrors=True,
        change="raypaml.augmentation.policies:light",
        settings=(
            _CROP,
            Setting("jitter", 0.4, "factors of brightness, contrast and saturation: 1 - jitter to 1 + jitter", _SHARE),
            Setting("hue", 0.1, "greatest shift of the hue, as a share of the colour circle", _TURN),
        ),
    ),
    Augmentation(
        name="strong",
        about="Half of the images are mirrored; a box is cropped as in light; RandAugment with two of 14 operations at "
        "magnitude 9 of 30; a rectangle of a quarter of each side is covered.",
        source="our choice, not searched, after torchvision's training recipes",
        mirrors=True,
        change="raypaml.augmentation.policies:strong",
        settings=(
            _CROP,
            Setting("operations", 2.0, "number of operations of RandAugment for each image", _WHOLE),
            Setting("magnitude", 9.0, "magnitude of these operations, 0 to 30", _MAGNITUDE),
            Setting("cutout", 0.25, _CUTOUT, _SIDE),
        ),
    ),
):
    register_augmentation(record)
