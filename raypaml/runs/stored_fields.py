"""Reading JSON records with every field checked, because they may be damaged, or written by hand.

The types of fields are those of the record's dataclass or TypedDict.
"""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

_WORDS: dict[object, str] = {
    float: "a finite number",
    int: "a whole number, at least 0",
    str: "text",
    bool: "true or false",
}
_WORDS |= {dict: "an object", NoneType: "null"}
_LARGEST = 1 << 62  # whole number


@dataclass(frozen=True)
class Within:
    """Bounds of a number, in its type: `Annotated[float, Within(0, 1)]`."""

    low: float
    high: float


def read_object(path: Path, version: int) -> dict[str, Any]:
    """Read the JSON object in a file, without its `format`; ValueError, with the reason alone, for other content."""
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


def check_fields(content: Mapping[str, object], record: type, optional: tuple[str, ...] = ()) -> None:
    """Raise ValueError, with the reason alone, unless an object has the fields of a record, each of its type.

    Args:
        content: the object.
        record: the dataclass or TypedDict. Floats must be finite, and ints at least 0.
        optional: the names of fields that may be missing.
    """
    kinds = get_type_hints(record, include_extras=True)
    if missing := [name for name in kinds if name not in content and name not in optional]:
        raise ValueError(f"{missing[0]} is missing")
    for name, value in content.items():
        if name not in kinds:
            raise ValueError(f"{reprlib.repr(name)} is no field of it")
        if not _fits(value, kinds[name]):
            raise ValueError(f"{name}={_shown(value, kinds[name])}: must be {_words(kinds[name])}")


def check_length(name: str, value: object, num_classes: int) -> None:
    """Raise ValueError where a value is a list but does not have an item for each class."""
    if isinstance(value, list) and len(value) != num_classes:
        raise ValueError(f"{name}: {len(value):,} values for {num_classes:,} classes")


def _fits(value: object, kind: object) -> bool:
    """Whether a value of JSON is of a type."""
    base, parts = get_origin(kind) or kind, get_args(kind)
    if base is Annotated:
        within: Within = parts[1]
        return _fits(value, parts[0]) and isinstance(value, int | float) and within.low <= value <= within.high
    if base in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if base is Literal:
        return value in parts
    if base is list:
        return isinstance(value, list) and all(_fits(one, parts[0]) for one in value)
    if base is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if base is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST
    return type(value) is (dict if is_typeddict(base) else base)


def _words(kind: object) -> str:
    """What a value of a type must be, for a message."""
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


def _shown(value: object, kind: object) -> str:
    """The value for a message, shortened where it is long; of a list its first wrong item, where one is wrong."""
    if isinstance(value, list):
        wrong = [place for place, one in enumerate(value) if not _fits([one], kind)]
        return f"[... {reprlib.repr(value[wrong[0]])} at {wrong[0]} ...]" if wrong else reprlib.repr(value)
    return reprlib.repr(value)
