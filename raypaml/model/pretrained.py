"""ImageNet weights by the names that `--weights` takes: what torchvision and timm call them, and which there are."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

IMAGENET = {"imagenet": ("DEFAULT", ""), "imagenet-v1": ("IMAGENET1K_V1", "tv_in1k")}
IMAGENET |= {"imagenet-v2": ("IMAGENET1K_V2", "tv2_in1k")}
"""Names of weights to download, and what torchvision and timm call them: `imagenet` is each library's own choice, the
others are torchvision's of its first and of its later training, which timm has under tags of its own."""


def torchvision_weights(name: str, asked: str) -> str:
    """What torchvision calls the weights `asked` of its model `name`; ValueError, naming those it has, without any."""
    import torchvision

    wanted, _ = IMAGENET[asked]
    there = [one.name for one in torchvision.models.get_model_weights(name)]
    if wanted not in (*there, "DEFAULT"):
        raise ValueError(f"weights={asked}: torchvision has no {wanted} for {name}, {_other(there)}")
    return wanted


def timm_model(timm: ModuleType, name: str, asked: str) -> str:
    """The name, with a tag, of timm's model `name` with the weights `asked`.

    Raises:
        ValueError: there are no such weights, or the name has a tag of others; the message names those there are.
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
    """What may be asked for instead."""
    if not there:
        return "or any other; give a file as --weights FILE"
    ours = {called: asked for asked, names in IMAGENET.items() for called in names}
    named = [f"{one} ({ours[one]})" if one in ours else one for one in there]
    return f"it has {', '.join(named)}; --weights imagenet takes its own choice, --weights FILE any"
