"""timm's models by name, `timm:NAME` or `timm:NAME@SIZE`, made so that they take as many image sizes as they can.

NAME may carry timm's tag of pretrained weights, as in `vit_base_patch16_224.dino`: the mean and the deviation of its
pixels are then those that these weights expect.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import sys
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from raypaml.cli import extra
from raypaml.model.pretrained import timm_model

TIMM = "timm:"
_FLEXIBLE: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
"""How a model is asked to take images of any size, the first that it knows; many of them need not be asked."""


def timm_module(name: str) -> ModuleType:
    """The package; ValueError where it is not installed."""
    try:
        import timm
    except ImportError:
        raise ValueError(f"backbone={name!r}: timm is not installed; {extra('timm')}") from None
    return timm  # type: ignore[no-any-return]


def split_name(name: str) -> tuple[str, int | None]:
    """Split `timm:NAME@SIZE` into timm's own name and the side of the images that it is made for, in pixels, if named.

    Raises:
        ValueError: the size is no number of pixels.
    """
    own, at, size = name.removeprefix(TIMM).partition("@")
    if at and not re.fullmatch(r"[1-9]\d{0,4}", size):
        raise ValueError(f"backbone={name!r}: {size!r} is no size of images; write the pixels of a side, such as @448")
    return own, int(size) if at else None


def create(name: str, pretrained: str) -> nn.Module:
    """Make the model of this name, classifier included, for images of any size or of the size named.

    Args:
        name: as users give it.
        pretrained: "" or a name of `pretrained.IMAGENET`, whose weights are downloaded.

    Raises:
        ValueError: it cannot be made for a size.
    """
    timm, (own, size) = timm_module(name), split_name(name)
    own = timm_model(timm, own, pretrained) if pretrained else own
    sized = {"img_size": size} if size else {}
    for flexible in _FLEXIBLE:
        try:
            made: nn.Module = timm.create_model(own, pretrained=bool(pretrained), **flexible, **sized)
            return made
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
    raise ValueError(f"backbone={name!r}: it is not made for one size of images; leave @{size} out")


def takes_size(name: str, whole: nn.Module) -> bool:
    """Whether `timm:NAME@SIZE` makes a model for another size."""
    return name.startswith(TIMM) and "img_size" in inspect.signature(type(whole).__init__).parameters


def as_timm_names(whole: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a published file under timm's names and in its model's shapes, by timm's own conversion.

    It knows the files of the models' authors (DINOv2, DINOv3, CLIP, ...), and resamples position embeddings, tables of
    relative positions and patches of another size. Weights that it cannot convert are returned as they are.
    """
    convert: Any = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return weights
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # of names that it tries
            converted = dict(convert(dict(weights), whole))
    except Exception:  # it was written for one file, and stumbles over others in any way; what differs is said later
        return weights
    return {name: value for name, value in converted.items() if isinstance(value, Tensor)}
