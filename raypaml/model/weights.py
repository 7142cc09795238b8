"""Weight files: read without executing anything, fitted to a network by the names in them, every stranger named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

Weights = dict[str, Tensor]

NESTED = ("state_dict", "model_state_dict", "model")
"""Where training scripts put the state dict of the model."""
_NAMED = 4
"""Keys that a message names."""


def read_weights(path: Path) -> Weights:
    """Read tensors by name from a safetensors file or a PyTorch state dict; nothing is executed."""
    if not path.is_file():
        raise ValueError(f"weights={path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ValueError(f"weights={path}: not a readable weight file ({_first_line(error)})") from None
    except Exception as error:  # UnpicklingError, and whatever a damaged pickle stream provokes
        raise ValueError(f"weights={path}: refused, it holds more than tensors ({_first_line(error)})") from None
    for name in NESTED:
        content = content.get(name, content) if isinstance(content, dict) else None
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"weights={path}: not a state dict of tensors")
    return dict(content)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def common_prefix(names: Collection[str], wanted: Collection[str]) -> str:
    """What stands before most of the wanted names in a file, such as `module.` or `backbone.`; often nothing."""
    counts = Counter(name[:start] for name in names for start in _starts(name) if name[start:] in wanted)
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")


def _starts(name: str) -> Iterator[int]:
    yield 0
    yield from (place + 1 for place, letter in enumerate(name) if letter == ".")


def load_weights(net: nn.Module, left_out: Collection[str], path: Path) -> str:
    """Load a file's weights into a network that lost its classifier; returns what there is to say of it.

    Args:
        net: takes the weights; all of its own must be there.
        left_out: names of the origin's weights that it does not have: those of the classifier.
        path: as `read_weights` takes, with any one prefix before the names.

    Raises:
        ValueError: the file is of another architecture: weights missing, of another shape, or more within the same
            parts of the network. Weights outside these parts (another head, a second network) are named only.
    """
    found, wanted = read_weights(path), net.state_dict()
    prefix = common_prefix(found, wanted)
    mine = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    parts = {name for name, _ in net.named_children()}
    more = [name for name in mine if name not in wanted and name not in left_out and name.split(".")[0] in parts]
    faults = [f"{name} missing" for name in wanted if name not in mine and not name.endswith("num_batches_tracked")]
    faults += [f"{name} unknown" for name in more]
    faults += [
        f"{name} is {list(mine[name].shape)}, expected {list(value.shape)}"
        for name, value in wanted.items()
        if name in mine and mine[name].shape != value.shape
    ]
    if faults:
        known = f" (prefix {prefix!r})" if prefix else ""
        more_faults = f"; {len(faults)} in all" if len(faults) > 1 else ""
        raise ValueError(f"weights={path}{known}: another network: {'; '.join(faults[:_NAMED])}{more_faults}")
    net.load_state_dict({name: value for name, value in mine.items() if name in wanted}, strict=False)
    strangers = [name for name in found if name.removeprefix(prefix) not in wanted]
    strangers = [name for name in strangers if name.removeprefix(prefix) not in left_out]
    return _loaded(
        path, prefix, sum(name in mine for name in wanted), sum(name in mine for name in left_out), strangers
    )


def _loaded(path: Path, prefix: str, used: int, left_out: int, strangers: list[str]) -> str:
    said = f"weights={path}: {used} tensors" + (f" by prefix {prefix!r}" if prefix else "")
    said += f", {left_out} of the classifier left out" if left_out else ""
    if strangers:
        more = f" and {len(strangers) - _NAMED} more" if len(strangers) > _NAMED else ""
        said += f"; {len(strangers)} belong to nothing here: {', '.join(strangers[:_NAMED])}{more}"
    return said
