"""What an exported file says of itself: classes, pictures, alpha, thresholds; and a safetensors file that says it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from raypaml.inference.classifier import Classifier

_INPUT = (
    "uint8 RGB [batch, 3, height, width], values 0..255: turned upright, laid on white where transparent, resized to "
    "this size with an antialiased bilinear filter, aspect not kept; mean and std are applied within the model"
)
_LENGTH_BYTES = 8


def export_facts(model: Classifier) -> dict[str, str]:
    """What every exported file says of itself, as JSON by name.

    `alpha` is contained in the logits; `thresholds` are logits, one a class; `mean` and `std` are of pixels 0..1 by
    channel, and the model itself applies them.
    """
    card = model.card
    names = ("class_ids", "names", "height", "width", "alpha", "alpha_origin", "thresholds", "backbone", "vocabulary")
    facts: dict[str, Any] = {name: getattr(card, name) for name in names}
    facts |= {name: _by_channel(getattr(model.model, name)) for name in ("mean", "std")}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in (facts | {"input": _INPUT}).items()}


def _by_channel(values: Tensor) -> list[float]:
    """Three values of pixels 0..1, of those of pixels 0..255; as they were written, without the noise of float32."""
    return [round(value / 255, 6) for value in values.flatten().tolist()]


def write_safetensors(weights: dict[str, Tensor], facts: Mapping[str, str], path: Path) -> None:
    """Weights with metadata: the same file every time, whereas safetensors itself writes metadata in a random order."""
    content = save(weights)
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    header = {"__metadata__": dict(facts)} | json.loads(content[_LENGTH_BYTES:start])
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # tensors begin at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        file.write(memoryview(content)[start:])
