"""JSON records that a model is used by, read with every field checked: they may be damaged, or written by hand.

What a field must be is its type in the dataclass or TypedDict of the record.
"""

from __future__ import annotations

import json
import reprlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

_WORDS = {float: "a finite number", int: "a whole number, at least 0", str: "text", bool: "true or false"}
_WORDS |= {dict: "an object", NoneType: "null"}
_LARGEST = 1 << 62  # whole number


@dataclass(frozen=True)
class Within:
    """Bounds of a number, in its type: `Annotated[float, Within(0, 1)]`."""

    low: float
    high: float


def read_object(path: Path, version: int) -> dict[str, Any]:
    """The JSON object in a file, without its `format`; ValueError, with the reason alone, for any other content."""
    try:
        content = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    if "format" not in content:
        raise ValueError("format is missing")
    stored = content.pop("format")
    if not (_fits(stored, int) and stored == version):
        raise ValueError(f"format {reprlib.repr(stored)}, this version reads {version}")
    return content


def check_fields(content: dict[str, Any], record: type, optional: tuple[str, ...] = ()) -> None:
    """Raise ValueError, with the reason alone, unless an object has the fields of a record, each of its type.

    Args:
        content: the object.
        record: dataclass or TypedDict. A float must be finite, an int at least 0.
        optional: fields that may be missing.
    """
    kinds = get_type_hints(record, include_extras=True)
    if missing := [name for name in kinds if name not in content and name not in optional]:
        raise ValueError(f"{missing[0]} is missing")
    for name, value in content.items():
        if name not in kinds:
            raise ValueError(f"{reprlib.repr(name)} is no field of it")
        if not _fits(value, kinds[name]):
            raise ValueError(f"{name}={_shown(value, kinds[name])}: must be {_words(kinds[name])}")


def check_length(name: str, value: Any, num_classes: int) -> None:
    """Raise ValueError where a list does not have a value for each class; a single value is for all."""
    if isinstance(value, list) and len(value) != num_classes:
        raise ValueError(f"{name}: {len(value):,} values for {num_classes:,} classes")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value that JSON can hold is of a type."""
    base, parts = get_origin(kind) or kind, get_args(kind)
    if base is Annotated:
        return _fits(value, parts[0]) and parts[1].low <= value <= parts[1].high
    if base in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if base is Literal:
        return value in parts
    if base is list:
        return isinstance(value, list) and all(_fits(one, parts[0]) for one in value)
    if base is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if base is int:
        return type(value) is int and 0 <= value <= _LARGEST
    return type(value) is (dict if is_typeddict(base) else base)


def _words(kind: Any) -> str:
    """What a value of a type is, for a message."""
    base, parts = get_origin(kind) or kind, get_args(kind)
    if base is Annotated:
        return f"{_words(parts[0])}, from {parts[1].low:g} to {parts[1].high:g}"
    if base in (Union, UnionType):
        return ", or ".join(map(_words, parts))
    if base is Literal:
        return f"one of {', '.join(parts)}"
    if base is list:
        return f"a list, each {_words(parts[0])}"
    return _WORDS[dict if is_typeddict(base) else base]


def _shown(value: Any, kind: Any) -> str:
    """The value, cut where it is long; of a list with a wrong value the first such, where it can be named."""
    if isinstance(value, list):
        wrong = [place for place, one in enumerate(value) if not _fits([one], kind)]
        return f"[... {reprlib.repr(value[wrong[0]])} at {wrong[0]} ...]" if wrong else reprlib.repr(value)
    return reprlib.repr(value)
