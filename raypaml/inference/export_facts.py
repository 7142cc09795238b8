"""The metadata of exported files (classes, size of pictures, alpha, thresholds), and a safetensors file with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from raypaml.inference.classifier import Classifier

_INPUT = (
    "uint8 RGB [batch, 3, height, width], values 0..255: turned upright, laid on white where transparent, resized to "
    "this size with an antialiased bilinear filter, aspect not kept; mean and std are applied within the model"
)
_LENGTH_BYTES = 8


def export_facts(model: Classifier) -> dict[str, str]:
    """The metadata of every exported file, by name, each value as JSON.

    The logits are those at `alpha`; `thresholds` are logits, one for each class; `mean` and `std` are those of pixel
    values 0..1 by channel, and the model itself applies them.
    """
    card = model.card
    names = ("class_ids", "names", "height", "width", "alpha", "alpha_origin", "thresholds", "backbone", "vocabulary")
    facts: dict[str, object] = {name: getattr(card, name) for name in names}
    for name in ("mean", "std"):  # kept for pixels 0..255 in float32, whose noise is rounded off
        facts[name] = [round(value / 255, 6) for value in getattr(model.model, name).flatten().tolist()]
    return {name: json.dumps(value, ensure_ascii=False) for name, value in (facts | {"input": _INPUT}).items()}


def write_safetensors(weights: dict[str, Tensor], facts: Mapping[str, str], path: Path) -> None:
    """Write weights with metadata, to the same bytes every time: safetensors itself orders metadata at random."""
    content = save(weights)
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    header = {"__metadata__": dict(facts)} | json.loads(content[_LENGTH_BYTES:start])
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # tensors begin at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        file.write(memoryview(content)[start:])
