"""ImageNet weights: the names that `--weights` takes, and the weights of torchvision and timm behind them."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

IMAGENET = {"imagenet": ("DEFAULT", ""), "imagenet-v1": ("IMAGENET1K_V1", "tv_in1k")}
IMAGENET |= {"imagenet-v2": ("IMAGENET1K_V2", "tv2_in1k")}
"""Names of weights to download, with torchvision's name and timm's tag of them. `imagenet` is each library's default;
the others are the weights of torchvision's first and second training recipe, which timm has too, under other tags."""


def torchvision_weights(name: str, asked: str) -> str:
    """Torchvision's name of the weights `asked` of its model `name`. Raises ValueError, naming others, without any."""
    import torchvision

    wanted, _ = IMAGENET[asked]
    there = [one.name for one in torchvision.models.get_model_weights(name)]
    if wanted not in (*there, "DEFAULT"):
        raise ValueError(f"weights={asked}: torchvision has no {wanted} for {name}, {_other(there)}")
    return wanted


def timm_model(timm: ModuleType, name: str, asked: str) -> str:
    """The name of timm's model `name` with the tag of the weights `asked`.

    Raises:
        ValueError: timm has no such weights, or the name already has the tag of other weights.
    """
    architecture, _, tag = name.partition(".")
    _, wanted = IMAGENET[asked]
    there = [one.partition(".")[2] for one in timm.list_pretrained(f"{architecture}.*")]
    if not wanted and there:
        return name
    if wanted not in there:
        raise ValueError(f"weights={asked}: timm has no {wanted or 'weights'} for {architecture}, {_other(there)}")
    if tag not in ("", wanted):
        raise ValueError(
            f"weights={asked}: these are timm:{architecture}.{wanted}, and backbone='timm:{name}' names others; "
            "give --weights imagenet, or leave the tag out"
        )
    return f"{architecture}.{wanted}"


def _other(there: Sequence[str]) -> str:
    """The end of a refusal: the weights that may be named instead."""
    if not there:
        return "or any other; give a file as --weights FILE"
    ours = {called: asked for asked, names in IMAGENET.items() for called in names}
    named = [f"{one} ({ours[one]})" if one in ours else one for one in there]
    return f"it has {', '.join(named)}; --weights imagenet takes its own choice, --weights FILE any"
