"""Weight files: read without executing anything, fitted to a network by the names in them, every stranger named."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from raypaml.files import START_BYTES, came_instead

Weights = dict[str, Tensor]

NESTED = (
    *("state_dict", "model_state_dict", "model", "net", "network", "module", "teacher"),
    *("state_dict_ema", "model_ema", "ema", "student", "params"),
)
"""Where training scripts put the state dict of the model; where a file has several, the first of these is taken."""
_NAMED = 4
"""Keys that a message names."""
_NARROW = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
"""Types of quantised networks: their values mean nothing without scales, which are kept elsewhere."""
_REMEDY = "save the model's state dict alone: torch.save(model.state_dict(), FILE)"


def read_weights(path: Path) -> tuple[Weights, str]:
    """Read tensors by name from a safetensors file or a PyTorch state dict; nothing is executed.

    Returns:
        The tensors, all dense and of plain numbers; and what there is to say of where in the file they lay.

    Raises:
        ValueError: in one line, why the file is not that.
    """
    if not path.is_file():
        raise ValueError(f"weights={path}: no such file")
    with path.open("rb") as file:
        start = file.read(START_BYTES)
    instead = came_instead(start)
    if instead:
        remedy = "unpack it" if instead.endswith("archive") else "copy or download the file itself"
        raise ValueError(f"weights={path}: holds no weights but {instead}; {remedy}")
    is_safetensors = path.suffix.lower() == ".safetensors" or start[8:9] == b"{"
    content, place = _state_dict(path, _load(path, is_safetensors))
    _check_tensors(path, content, place)
    return content, place


def _load(path: Path, is_safetensors: bool) -> Any:
    """The content of a weight file, safe to look at."""
    try:
        if is_safetensors:
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is refused below anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ValueError(f"weights={path}: not a readable weight file ({_unreadable(error)})") from None
    except Exception as error:  # UnpicklingError, and whatever a damaged pickle stream provokes
        raise ValueError(f"weights={path}: {_refusal(error)}") from None


def _unreadable(error: Exception) -> str:
    """The first sentence, for the rest is torch's advice; a KeyError's text is a byte that no pickle begins with."""
    if isinstance(error, KeyError):
        return "it does not begin as one"
    if "TorchScript" in str(error):
        return f"a TorchScript archive, which is a program; {_REMEDY}"
    return re.split(r"\. |\n", str(error).strip())[0][:200] or type(error).__name__


def _refusal(error: Exception) -> str:
    """Why a pickle is not read, without torch's advice how to run what is in it."""
    named = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
    if named:
        return f"refused, it holds more than tensors: {named[1]}, which is only made by running the file; {_REMEDY}"
    operand = re.search(r"Unsupported operand \d+", str(error))
    why = operand[0].lower() if operand else type(error).__name__
    return f"refused, it holds more than tensors, or is no weight file ({why}); {_REMEDY}"


def _state_dict(path: Path, content: Any) -> tuple[Any, str]:
    """The innermost dictionary that training scripts wrap, and what there is to say of its place."""
    names, others = list[str](), list[str]()
    outer = list[Any]()
    while isinstance(content, dict) and (there := [name for name in NESTED if _wraps(content.get(name))]):
        outer.append(content)
        content = content[there[0]]
        names.append(there[0])
        others += there[1:]
        if any(content is one for one in outer):
            raise ValueError(f"weights={path}: {'.'.join(names)} is what holds it, without an end; {_REMEDY}")
    beside = f", and not of {', '.join(others)}" if others else ""
    return content, f" of {'.'.join(names)}{beside}" if names else ""


def _wraps(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(inner, Tensor | dict) for inner in value.values())


def _check_tensors(path: Path, content: Any, place: str) -> None:
    """Raise ValueError, naming the first of them, unless these are tensors by name that a network can take."""
    if not isinstance(content, dict) or not content:
        raise ValueError(f"weights={path}: not a state dict of tensors but {_described(content)}{place}; {_REMEDY}")
    for name, value in content.items():
        if not isinstance(name, str):
            raise ValueError(f"weights={path}: not a state dict of tensors by name: {name!r} is a key; {_REMEDY}")
        if not isinstance(value, Tensor):
            raise ValueError(f"weights={path}: not a state dict of tensors: {name} is {_described(value)}; {_REMEDY}")
        fault = _fault(value)
        if fault:
            raise ValueError(f"weights={path}: {name} is {fault}")


def _described(value: Any) -> str:
    empty = isinstance(value, dict | list) and not value
    return f"an empty {type(value).__name__}" if empty else f"of the type {type(value).__name__}"


def _fault(value: Tensor) -> str:
    """What makes a tensor one that no weight can be copied from; empty: nothing."""
    if value.is_meta:
        return "a meta tensor, which has a shape and no values; save the model after its weights were loaded"
    if value.layout != torch.strided:
        return f"sparse ({str(value.layout).removeprefix('torch.')}); save it dense: tensor.to_dense()"
    if value.is_complex():
        return f"complex ({str(value.dtype).removeprefix('torch.')}); weights are real numbers"
    if value.is_quantized or value.dtype in _NARROW:
        return f"quantised ({str(value.dtype).removeprefix('torch.')}); give the weights before they were quantised"
    return ""


def common_prefix(names: Collection[str], wanted: Collection[str]) -> str:
    """What stands before most of the wanted names in a file, such as `module.` or `backbone.`; often nothing."""
    counts = Counter(name[:start] for name in names for start in _starts(name) if name[start:] in wanted)
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")


def _starts(name: str) -> Iterator[int]:
    yield 0
    yield from (place + 1 for place, letter in enumerate(name) if letter == ".")


def load_weights(
    net: nn.Module,
    left_out: Collection[str],
    path: Path,
    convert: Callable[[Weights], Weights] = lambda weights: weights,
) -> str:
    """Load a file's weights into a network that lost its classifier; returns what there is to say of it.

    Args:
        net: takes the weights; all of its own must be there.
        left_out: names of the origin's weights that it does not have: those of the classifier.
        path: as `read_weights` takes, with any one prefix before the names.
        convert: gives other files' weights the names and shapes of this network where it can.

    Raises:
        ValueError: the file is of another architecture: weights missing, of another shape, or more within the same
            parts of the network. Weights outside these parts (another head, a second network) are named only.
    """
    found, place = read_weights(path)
    wanted = net.state_dict()
    prefix = common_prefix(found, wanted)
    given = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    mine = convert(given)
    faults = _faults(net, mine, left_out)
    if faults:
        known = f" (prefix {prefix!r})" if prefix else ""
        more_faults = f"; {len(faults)} in all" if len(faults) > 1 else ""
        raise ValueError(f"weights={path}{known}: another network: {'; '.join(faults[:_NAMED])}{more_faults}")
    net.load_state_dict({name: value for name, value in mine.items() if name in wanted}, strict=False)
    renamed = mine.keys() - given.keys()
    places = {name.removeprefix(prefix): name for name in found} if not renamed else {name: name for name in mine}
    strangers = [name for own, name in places.items() if own not in wanted and own not in left_out]
    used, without = sum(name in mine for name in wanted), sum(name in mine for name in left_out)
    said = f"weights={path}: {used} tensors{place}" + (f" by prefix {prefix!r}" if prefix else "")
    return said + _converted(given, mine) + _left_out(without, strangers)


def _faults(net: nn.Module, mine: Weights, left_out: Collection[str]) -> list[str]:
    """What makes these weights those of another network, each named."""
    wanted, parts = net.state_dict(), {name for name, _ in net.named_children()}
    more = [name for name in mine if name not in wanted and name not in left_out and name.split(".")[0] in parts]
    faults = [f"{name} missing" for name in wanted if name not in mine and not name.endswith("num_batches_tracked")]
    faults += [f"{name} unknown" for name in more]
    faults += [
        f"{name} is {list(mine[name].shape)}, expected {list(value.shape)}"
        for name, value in wanted.items()
        if name in mine and mine[name].shape != value.shape
    ]
    return faults + [
        f"{name} is {mine[name].dtype}, expected {value.dtype}"
        for name, value in wanted.items()
        if name in mine and value.is_floating_point() and not mine[name].is_floating_point()
    ]


def _converted(given: Weights, mine: Weights) -> str:
    """What a conversion did to the file's weights."""
    said = f", {len(mine)} converted from {len(given)} of other names" if mine.keys() - given.keys() else ""
    shapes = [(name, list(given[name].shape), list(mine[name].shape)) for name in given if name in mine]
    changed = [f"{name} from {before} to {now}" for name, before, now in shapes if before != now]
    more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    return said + (f", resampled {', '.join(changed[:_NAMED])}{more}" if changed else "")


def _left_out(classifier: int, strangers: list[str]) -> str:
    said = f", {classifier} of the classifier left out" if classifier else ""
    if strangers:
        more = f" and {len(strangers) - _NAMED} more" if len(strangers) > _NAMED else ""
        said += f"; {len(strangers)} belong to nothing here: {', '.join(strangers[:_NAMED])}{more}"
    return said
