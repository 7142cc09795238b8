"""Every augmentation by its name: what it does, where it is from, and its numbers. Nothing here needs torch.

A new one takes a function (images, draws, **settings) -> images, as in `augmentation.policies`, and a record.
`--augment published` is no augmentation of its own: the record of a scheme names the one that its paper used.
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
    """What is done to the images of a training step."""

    name: str
    """The name that `--augment` takes."""
    about: str
    """What it does, in one sentence."""
    source: str = ""
    """The paper or code that it is from; empty where nobody published it."""
    mirrors: bool = False
    """Whether half of the images are mirrored first, as with `--flip`."""
    change: str = ""
    """The function that does the rest, as 'module:function', imported when it is first used; empty where there is none.

    It takes uint8 images [B, 3, H, W] on the device, `draws.Draws` and the settings by name, and returns such images.
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
        """All settings: those given as `name=value,...`, and the others' defaults.

        Raises:
            ValueError: a setting that it has not, or a value outside the setting's bounds.
        """
        defaults = {setting.name: setting.default for setting in self.settings}
        return defaults | read_numbers(text, self.settings, FLAG, f"augmentation {self.name}")


_SIDE = Bounds(least=0.0, most=1.0, from_least=True, wording="a share of each side, at least 0 and below 1")
_AREA = Bounds(least=0.0, most=1.0, also=(1.0,), wording="a share of the area, above 0 and at most 1")
_TURN = Bounds(least=0.0, most=0.5, from_least=True, also=(0.5,), wording="a share of the circle, 0 to 0.5")
_SHARE = Bounds(least=0.0, most=1.0, from_least=True, also=(1.0,), wording="0 to 1")
_WHOLE = Bounds(least=0.0, most=11.0, from_least=True, whole=True, wording="a whole number from 0 to 10")
_MAGNITUDE = Bounds(least=0.0, most=30.0, from_least=True, also=(30.0,), wording="0 to 30")
_CROP = Setting("crop", 0.5, "least area of the cropped box, of the image's", _AREA)
_CUTOUT = "side of the covered rectangle, of the image's; 0: none"

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
    """What `--augment` takes: all augmentations registered so far, and `published`."""
    return (*AUGMENTATIONS, AS_PUBLISHED)


def augmentation_of(name: str) -> Augmentation:
    """The record of this name; ValueError suggests the nearest name where there is none."""
    if name not in AUGMENTATIONS:
        known = known_names(name, AUGMENTATIONS)
        raise ValueError(f"augment={name!r}: no such augmentation{known}; one of your own: --import MODULE")
    return AUGMENTATIONS[name]


def augmentations_text() -> str:
    """Every augmentation with its sentence, source and settings, for `--help`."""
    texts = {}
    for name, each in AUGMENTATIONS.items():
        numbers = ", ".join(f"{setting.name}={setting.default:g}" for setting in each.settings)
        source, numbers = each.source and f" ({each.source})", numbers and f" [{numbers}]"
        texts[name] = f"{each.about}{source}{numbers}"
    return "Augmentations, [with their settings for --augment-settings]:\n" + indented_list(texts)


for record in (
    Augmentation(name="none", about="Only what --flip says."),
    Augmentation(
        name="mirror",
        about="Half of the images mirrored, as with --flip.",
        source="E. Cole et al., CVPR 2021, and all that build on their code: LL, BoostLU, EM, GR",
        mirrors=True,
    ),
    Augmentation(
        name="asl",
        about="A covered rectangle of half of each side in a random colour, then RandAugment as in the package "
        "randaugment: two of 15 operations, each left out in half of all cases, with one of nine magnitudes. No "
        "mirroring.",
        source="the code of ASL, CSL, Hill and SPLC",
        change="raypaml.augmentation.policies:asl_published",
        settings=(Setting("cutout", 0.5, _CUTOUT, _SIDE),),
    ),
    Augmentation(
        name="light",
        about="Half of the images mirrored, a cropped box of at least half of the area at an aspect of 3/4 to 4/3, and "
        "a jitter of brightness, contrast, saturation and hue.",
        source="our choice, not searched",
        mirrors=True,
        change="raypaml.augmentation.policies:light",
        settings=(
            _CROP,
            Setting("jitter", 0.4, "greatest difference from 1 of the factors of three colours' properties", _SHARE),
            Setting("hue", 0.1, "greatest turn of the hue", _TURN),
        ),
    ),
    Augmentation(
        name="strong",
        about="Half of the images mirrored, a cropped box as in light, RandAugment with two of 14 operations of "
        "magnitude 9 of 30, and a covered rectangle of a quarter of each side.",
        source="our choice, not searched, after torchvision's training recipes",
        mirrors=True,
        change="raypaml.augmentation.policies:strong",
        settings=(
            _CROP,
            Setting("operations", 2.0, "operations of RandAugment for each image", _WHOLE),
            Setting("magnitude", 9.0, "their magnitude, of 30", _MAGNITUDE),
            Setting("cutout", 0.25, _CUTOUT, _SIDE),
        ),
    ),
):
    register_augmentation(record)
