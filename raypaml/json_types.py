"""Whether a value of JSON is of a type, and what is wrong with it where it is not.

The types are dataclasses, TypedDicts, and what their fields may be. A value is named by its dotted path, such as
`config.optim.epochs='3': must be a whole number, at least 0`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import reprlib
import sys
from collections.abc import Collection
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from raypaml.cli import did_you_mean

_WORDS: dict[object, str] = {
    float: "a finite number",
    int: "a whole number, at least 0",
    str: "text",
    bool: "true or false",
    dict: "an object",
    NoneType: "null",
}
_LARGEST = 1 << 62  # whole number
_DEEPEST = 32
"""Levels of a value of any type; what is read is written again, which does not go to any depth."""

_LONGEST = 80
"""Characters of a wrong value that a message shows."""


@dataclass(frozen=True)
class Within:
    """Bounds of a number, in its type: `Annotated[float, Within(0, 1)]`."""

    low: float
    high: float
    nan: bool = False
    """Whether NaN is allowed too, for a figure that nothing gave."""


Figure = Annotated[float, Within(-math.inf, math.inf, nan=True)]
"""A number, or NaN where there is nothing to compute it from."""


def check(value: object, kind: object, where: str = "") -> None:
    """Raise ValueError, with the reason alone, unless a value of JSON is of a type.

    Args:
        value: the value.
        kind: the type; floats must be finite, and ints at least 0.
        where: the dotted path of the value, for the message; empty for that of a whole file.
    """
    if flaw := _flaw(value, kind, where):
        raise ValueError(flaw)


def check_fields(content: object, record: type, lacking: Collection[str] = (), where: str = "") -> None:
    """Raise ValueError, with the reason alone, unless an object has the fields of a record, each of its type.

    Args:
        content: the object.
        record: the dataclass or TypedDict.
        lacking: the names of fields that may be missing, here and in objects below; those of a TypedDict say so
            themselves.
        where: the dotted path of the object, for the message.
    """
    if flaw := _flaw_of_fields(content, record, lacking, where):
        raise ValueError(flaw)


def check_length(name: str, value: object, num_classes: int) -> None:
    """Raise ValueError where a value is a list but does not have an item for each class."""
    if isinstance(value, list) and len(value) != num_classes:
        raise ValueError(f"{name}: {len(value):,} values for {num_classes:,} classes")


@functools.cache
def _fields_of(record: type) -> tuple[dict[str, object], frozenset[str]]:
    """The types of a record's fields, and the names of those that may be missing."""
    hints = get_type_hints(record, include_extras=True)
    marked = {name: get_args(kind)[0] for name, kind in hints.items() if get_origin(kind) is NotRequired}
    not_required = frozenset(getattr(record, "__optional_keys__", ()))  # of a TypedDict with total=False
    return hints | marked, not_required | frozenset(marked)


def _flaw_of_fields(content: object, record: type, lacking: Collection[str], where: str) -> str:
    if not isinstance(content, dict):
        return _wrong(content, record, where)
    kinds, not_required = _fields_of(record)
    for name in kinds:
        if name not in content and name not in lacking and name not in not_required:
            return f"{_below(where, name)} is missing"
    for name, value in content.items():
        if name not in kinds:
            return f"{_below(where, name)}: no such field{did_you_mean(name, kinds)}"
        if flaw := _flaw(value, kinds[name], _below(where, name), lacking):
            return flaw
    return ""


def _flaw(value: object, kind: object, where: str, lacking: Collection[str] = ()) -> str:
    """What is wrong with a value of JSON, for a message; empty where it is of the type."""
    base, parts = get_origin(kind) or kind, get_args(kind)
    if base in (Union, UnionType):
        return _flaw_of_union(value, kind, where, lacking)
    if isinstance(base, type) and (is_typeddict(base) or dataclasses.is_dataclass(base)):
        return _flaw_of_fields(value, base, lacking, where)
    if base in (list, tuple) and isinstance(value, list):
        return _flaw_of_list(value, kind, where, lacking)
    if base is dict and isinstance(value, dict):
        flaws = (_flaw(one, parts[1], _below(where, name), lacking) for name, one in value.items())
        return next(filter(None, flaws), "")
    return "" if _is_scalar(value, kind) else _wrong(value, kind, where)


def _flaw_of_union(value: object, kind: object, where: str, lacking: Collection[str]) -> str:
    """Empty where a part fits; what is wrong inside where only one part is a container as the value is one."""
    flaws = [_flaw(value, part, where, lacking) for part in get_args(kind)]
    if not all(flaws):
        return ""
    inside = [flaw for flaw in flaws if not flaw.startswith(f"{where}=")]
    return inside[0] if len(inside) == 1 else _wrong(value, kind, where)


def _flaw_of_list(value: list[object], kind: object, where: str, lacking: Collection[str]) -> str:
    base, parts = get_origin(kind), get_args(kind)
    if base is tuple and parts[-1] is not Ellipsis:
        if len(value) != len(parts):
            return _wrong(value, kind, where)
    elif _is_plain(value, parts[0]):
        return ""
    else:
        parts = (parts[0],) * len(value)
    pairs = enumerate(zip(value, parts, strict=True))
    flaws = (_flaw(one, part, f"{where}[{place}]", lacking) for place, (one, part) in pairs)
    return next(filter(None, flaws), "")


def _is_plain(value: list[Any], kind: object) -> bool:
    """Whether a list holds only good values of a plain type: most lists do, and long ones are checked quickly here."""
    if kind not in (str, int, float) or set(map(type, value)) != {kind}:
        return False
    if kind is float:
        return all(map(math.isfinite, value))
    return kind is str or (min(value) >= 0 and max(value) <= _LARGEST)


def _is_scalar(value: object, kind: object) -> bool:
    """Whether a value of JSON is of a type that is neither an object nor a list."""
    base, parts = get_origin(kind) or kind, get_args(kind)
    if base in (object, Any):
        return not _is_deeper(value, _DEEPEST)
    if base is Annotated:
        within: Within = parts[1]
        if within.nan and isinstance(value, float) and math.isnan(value):
            return True
        return _is_scalar(value, parts[0]) and isinstance(value, int | float) and within.low <= value <= within.high
    if base is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if base is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if base is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST
    return type(value) is base


def _is_deeper(value: object, levels: int) -> bool:
    """Whether a value of JSON is nested deeper than so many levels."""
    inner = [value]
    for _ in range(levels):
        inner = [
            one
            for outer in inner
            if isinstance(outer, dict | list)
            for one in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(inner)


# --- Words ----------------------------------------------------------------------------------------------------------


def _wrong(value: object, kind: object, where: str) -> str:
    if not where:
        return f"no JSON {_words(kind).partition(' ')[2]}"
    shown = reprlib.repr(value)
    shown = shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."
    return f"{where}={shown}: must be {_words(kind)}"


def _below(where: str, name: str) -> str:
    """The dotted path of a field; a name that is none of ours is quoted where it is long or cannot be printed."""
    shown = name if name.isprintable() and len(name) <= 40 else reprlib.repr(name)
    return f"{where}.{shown}" if where else shown


def _words(kind: object) -> str:
    """What a value of a type must be, for a message."""
    base, parts = get_origin(kind) or kind, get_args(kind)
    if base is Annotated:
        within: Within = parts[1]
        bounded = f", from {within.low:g} to {within.high:g}" if within.low > -math.inf else ""
        return f"{_words(parts[0])}{bounded}" + (", or NaN" if within.nan else "")
    if base in (Union, UnionType):
        return ", or ".join(map(_words, parts))
    if base is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if base is tuple and parts[-1] is not Ellipsis:
        return f"a list of {len(parts)} values"
    if base in (list, tuple):
        return f"a list, each {_words(parts[0])}"
    if base in (object, Any):
        return f"nested at most {_DEEPEST} levels deep"
    return _WORDS.get(base, _WORDS[dict])
