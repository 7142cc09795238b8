"""Weight files: read without executing anything, and loaded by name; weights that do not belong are reported."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from raypaml.files import START_BYTES, came_instead, check_readable

Weights = dict[str, Tensor]

NESTED = (
    *("state_dict", "model_state_dict", "model", "net", "network", "module", "teacher"),
    *("state_dict_ema", "model_ema", "ema", "student", "params"),
)
"""Keys under which training scripts save the model's state dict; where a file has several, the first is taken."""
_NAMED = 4
"""The most keys that a message names."""
_NARROW = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
"""Types of quantised weights, whose values mean nothing without scales that are stored elsewhere."""
_REMEDY = "save the model's state dict alone: torch.save(model.state_dict(), FILE)"


def read_weights(path: Path) -> tuple[Weights, str]:
    """Read tensors by name from a safetensors file or a PyTorch state dict, without executing anything in it.

    Returns:
        The tensors, all dense and not quantised; and words for a message that say under which keys of the file they
        were, empty where they were its top level.

    Raises:
        ValueError: the file is not one of these; the message says why, in one line.
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
    return _checked_tensors(path, content, place), place


def _load(path: Path, is_safetensors: bool) -> object:
    """The content of a weight file, read by loaders that execute nothing."""
    try:
        if is_safetensors:
            return load_file(path)
        if is_zipfile(path):
            _check_stored(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about files that are refused below anyway
            content: object = torch.load(path, map_location="cpu", weights_only=True)
            return content
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError, BadZipFile) as error:
        check_readable(path)
        raise ValueError(f"weights={path}: not a readable weight file ({_unreadable(error)})") from None
    except Exception as error:  # UnpicklingError, and whatever a damaged pickle stream provokes
        raise ValueError(f"weights={path}: {_refusal(error)}") from None


def _check_stored(path: Path) -> None:
    """Raise ValueError where a state dict is compressed: torch does not compress, and any size may come out of it."""
    with ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != ZIP_STORED or member.file_size > path.stat().st_size:
                raise ValueError(
                    f"{member.filename[:80]!r} is compressed or larger than the file, as torch writes none"
                )


def _unreadable(error: Exception) -> str:
    """The first sentence of an error, without torch's advice; a KeyError's text is only the byte that was read."""
    if isinstance(error, KeyError):
        return "it does not begin as one"
    if "TorchScript" in str(error):
        return f"a TorchScript archive, which is a program; {_REMEDY}"
    return re.split(r"\. |\n", str(error).strip())[0][:200] or type(error).__name__


def _refusal(error: Exception) -> str:
    """Why a pickle is not read, without torch's advice on how to execute it."""
    named = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
    if named:
        return f"refused, it holds more than tensors: {named[1]}, which is only made by running the file; {_REMEDY}"
    operand = re.search(r"Unsupported operand \d+", str(error))
    why = operand[0].lower() if operand else type(error).__name__
    return f"refused, it holds more than tensors, or is no weight file ({why}); {_REMEDY}"


def _state_dict(path: Path, content: object) -> tuple[object, str]:
    """The innermost dictionary within those that training scripts wrap around it, and words for where it was."""
    names, others = list[str](), list[str]()
    outer = list[object]()
    while isinstance(content, dict) and (there := [name for name in NESTED if _wraps(content.get(name))]):
        outer.append(content)
        content = content[there[0]]
        names.append(there[0])
        others += there[1:]
        if any(content is one for one in outer):
            raise ValueError(f"weights={path}: {'.'.join(names)} contains itself, without an end; {_REMEDY}")
    beside = f", and not of {', '.join(others)}" if others else ""
    return content, f" of {'.'.join(names)}{beside}" if names else ""


def _wraps(value: object) -> bool:
    """Whether a value is a dictionary of tensors or of further dictionaries."""
    return isinstance(value, dict) and any(isinstance(inner, Tensor | dict) for inner in value.values())


def _checked_tensors(path: Path, content: object, place: str) -> Weights:
    """The content as tensors by name. Raises ValueError, naming the first fault, where a network cannot take them."""
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
    return content


def _described(value: object) -> str:
    empty = isinstance(value, dict | list) and not value
    return f"an empty {type(value).__name__}" if empty else f"of the type {type(value).__name__}"


def _fault(value: Tensor) -> str:
    """Why a tensor cannot be a weight; empty if it can."""
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
    """The prefix, such as `module.` or `backbone.`, before most of the wanted names in a file; often empty."""
    parts = ((name, [0, *(dot.end() for dot in re.finditer(r"\.", name))]) for name in names)
    prefixes = (name[:start] for name, starts in parts for start in starts if name[start:] in wanted)
    counts = Counter(prefixes)
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")


def load_weights(
    net: nn.Module,
    left_out: Collection[str],
    path: Path,
    convert: Callable[[Weights], Weights] = lambda weights: weights,
) -> str:
    """Load a file's weights into a network that lost its classifier; returns a line about what was loaded.

    Args:
        net: takes the weights; the file must have all of its own.
        left_out: names of weights that the original model has and `net` does not: those of the classifier.
        path: a file that `read_weights` can read, with any one prefix before the names.
        convert: renames and resamples the weights of files in other formats where it can.

    Raises:
        ValueError: the file is of another architecture: it lacks weights, has them in another shape, or has more of
            them within the same parts of the network. Weights outside these parts (another head, a second network)
            are only reported.
    """
    in_file, place = read_weights(path)
    wanted = net.state_dict()
    prefix = common_prefix(in_file, wanted)
    given = {name.removeprefix(prefix): value for name, value in in_file.items() if name.startswith(prefix)}
    mine = convert(given)
    faults = _faults(net, mine, left_out)
    if faults:
        known = f" (prefix {prefix!r})" if prefix else ""
        more_faults = f"; {len(faults)} in all" if len(faults) > 1 else ""
        raise ValueError(f"weights={path}{known}: another network: {'; '.join(faults[:_NAMED])}{more_faults}")
    net.load_state_dict({name: value for name, value in mine.items() if name in wanted}, strict=False)
    renamed = mine.keys() - given.keys()
    file_names = {name: name for name in mine} if renamed else {name.removeprefix(prefix): name for name in in_file}
    unused = [file_name for name, file_name in file_names.items() if name not in wanted and name not in left_out]
    used, without = sum(name in mine for name in wanted), sum(name in mine for name in left_out)
    text = f"weights={path}: {used} tensors{place}" + (f" by prefix {prefix!r}" if prefix else "")
    return text + _converted(given, mine) + _left_out(without, unused)


def _faults(net: nn.Module, mine: Weights, left_out: Collection[str]) -> list[str]:
    """The differences, each with its weight's name, that show these weights to be another network's."""
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
    """The part of the line that says what a conversion did to the file's weights."""
    text = f", {len(mine)} converted from {len(given)} of other names" if mine.keys() - given.keys() else ""
    shapes = [(name, list(given[name].shape), list(mine[name].shape)) for name in given if name in mine]
    changed = [f"{name} from {before} to {now}" for name, before, now in shapes if before != now]
    more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    return text + (f", resampled {', '.join(changed[:_NAMED])}{more}" if changed else "")


def _left_out(classifier: int, unused: list[str]) -> str:
    """The part of the line that says which weights of the file were not used."""
    text = f", {classifier} of the classifier left out" if classifier else ""
    if unused:
        more = f" and {len(unused) - _NAMED} more" if len(unused) > _NAMED else ""
        text += f"; {len(unused)} belong to nothing here: {', '.join(unused[:_NAMED])}{more}"
    return text
