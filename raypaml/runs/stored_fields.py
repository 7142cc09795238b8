"""JSON records that a model is used by, read with every field checked: they may be damaged, or written by hand."""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FieldKind:
    """What a field must be."""

    words: str
    fits: Callable[[Any], bool]


def is_number(value: Any, low: float = -sys.float_info.max, high: float = sys.float_info.max) -> bool:
    """Whether it is a finite number, no truth value, within these bounds; a whole number may have any size."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_whole(value: Any, low: int, high: int = 1 << 62) -> bool:
    """Whether it is a whole number within these bounds."""
    return isinstance(value, int) and is_number(value, low, high)


def number(low: float, high: float = sys.float_info.max) -> FieldKind:
    """A finite number of at least `low`, at most `high`."""
    most = "" if high == sys.float_info.max else f", at most {high:g}"
    return FieldKind(f"a finite number of at least {low:g}{most}", lambda value: is_number(value, low, high))


def whole_number(low: int, high: int = 1 << 62) -> FieldKind:
    """A whole number of at least `low`, at most `high`."""
    most = "" if high == 1 << 62 else f", at most {high:,}"
    return FieldKind(f"a whole number of at least {low}{most}", lambda value: is_whole(value, low, high))


def one_of(*values: str) -> FieldKind:
    """One of these texts."""
    return FieldKind(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values)


def list_of(one: FieldKind) -> FieldKind:
    """A list, each of whose values is of this kind."""
    fits = lambda value: isinstance(value, list) and all(map(one.fits, value))  # noqa: E731
    return FieldKind(f"a list, each {one.words}", fits)


def either(first: FieldKind, second: FieldKind) -> FieldKind:
    """Of one of two kinds."""
    return FieldKind(f"{first.words}, or {second.words}", lambda value: first.fits(value) or second.fits(value))


TEXT = FieldKind("text", lambda value: isinstance(value, str))
TRUTH = FieldKind("true or false", lambda value: isinstance(value, bool))
OBJECT = FieldKind("an object", lambda value: isinstance(value, dict))
NOTHING = FieldKind("null", lambda value: value is None)
FINITE = FieldKind("a finite number", is_number)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ValueError, with the reason alone, for anything else."""
    try:
        content = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def check_fields(content: dict[str, Any], kinds: Mapping[str, FieldKind], optional: tuple[str, ...] = ()) -> None:
    """Raise ValueError, with the reason alone, unless an object has these fields and no other, each of its kind."""
    if missing := [name for name in kinds if name not in content and name not in optional]:
        raise ValueError(f"{missing[0]} is missing")
    for name, value in content.items():
        if name not in kinds:
            raise ValueError(f"{reprlib.repr(name)} is no field of it")
        if not kinds[name].fits(value):
            raise ValueError(f"{name}={_shown(name, value, kinds)}: must be {kinds[name].words}")


def check_length(name: str, value: Any, num_classes: int) -> None:
    """Raise ValueError where a list does not have a value for each class; a single value is for all."""
    if isinstance(value, list) and len(value) != num_classes:
        raise ValueError(f"{name}: {len(value):,} values for {num_classes:,} classes")


def _shown(name: str, value: Any, kinds: Mapping[str, FieldKind]) -> str:
    """The value, cut where it is long; of a list with a wrong value the first such, where it can be named."""
    if isinstance(value, list):
        wrong = [place for place, one in enumerate(value) if not kinds[name].fits([one])]
        return f"[... {reprlib.repr(value[wrong[0]])} at {wrong[0]} ...]" if wrong else reprlib.repr(value)
    return reprlib.repr(value)
