"""timm's models by name, `timm:NAME` or `timm:NAME@SIZE`, built so that they take as many image sizes as they can.

NAME may have timm's tag of pretrained weights, as in `vit_base_patch16_224.dino`; images are then normalised by the
mean and standard deviation that these weights expect.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import sys
from collections.abc import Callable, Mapping
from types import ModuleType

from torch import Tensor, nn

from raypaml.cli import extra
from raypaml.model.pretrained import timm_model

TIMM = "timm:"
Converter = Callable[[dict[str, Tensor], nn.Module], Mapping[str, object]]
"""(weights of a file, model) -> weights as timm names them, and sometimes other things."""
_FLEXIBLE: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
"""Arguments by which a model takes images of any size, tried in this order; many models take any size without one."""


def timm_module(name: str) -> ModuleType:
    """The package `timm`. Raises ValueError where it is not installed."""
    try:
        import timm
    except ImportError:
        raise ValueError(f"backbone={name!r}: timm is not installed; {extra('timm')}") from None
    return timm  # type: ignore[no-any-return]


def split_name(name: str) -> tuple[str, int | None]:
    """Split `timm:NAME@SIZE` into timm's name and the side of the images in pixels, None without `@SIZE`.

    Raises:
        ValueError: the size is not a number of pixels.
    """
    own, at, size = name.removeprefix(TIMM).partition("@")
    if at and not re.fullmatch(r"[1-9]\d{0,4}", size):
        raise ValueError(f"backbone={name!r}: {size!r} is no size of images; write the pixels of a side, such as @448")
    return own, int(size) if at else None


def create(name: str, pretrained: str) -> nn.Module:
    """Build the model with its classifier, for images of the size in its name, or without one of any size.

    Args:
        name: `timm:NAME` or `timm:NAME@SIZE`.
        pretrained: "" or a name in `pretrained.IMAGENET`, whose weights are downloaded.

    Raises:
        ValueError: the model has no argument for an image size.
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
    raise ValueError(f"backbone={name!r}: it is not built for one size of images; leave @{size} out")


def takes_size(name: str, whole: nn.Module) -> bool:
    """Whether `timm:NAME@SIZE` can build the model for another image size."""
    return name.startswith(TIMM) and "img_size" in inspect.signature(type(whole).__init__).parameters


def as_timm_names(whole: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a published file under timm's names and in the shapes of its model, by timm's own conversion.

    That conversion knows the files of the models' authors (DINOv2, DINOv3, CLIP, ...), and resamples position
    embeddings, tables of relative positions and patch embeddings. Weights that it cannot convert stay as they are.
    """
    convert: Converter | None = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return weights
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the names that it tries
            converted = convert(dict(weights), whole)
    except Exception:  # each is written for certain files, and fails on others in any way; loading says what differs
        return weights
    return {name: value for name, value in converted.items() if isinstance(value, Tensor)}
