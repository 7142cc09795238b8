"""Search spaces: which values a field may take, from YAML files in `tune/` or written on the command line."""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from raypaml.cli import known_names
from raypaml.config import EXECUTION_FIELDS, TrainConfig
from raypaml.fields import field_types
from raypaml.search.plain_yaml import read_yaml

SUGGESTED = "suggested"
"""The word for a range that is taken from the labels; see search.suggestion."""
_CORNERS = 4096
"""The most combinations of bounds that are checked before the start."""
_KEYS = {"name", "field", "distribution", "low", "high", "values", "unit"}

Value = float | int | str | bool


@dataclass(frozen=True, kw_only=True)
class Space:
    """The values that one field of a configuration may take."""

    name: str
    """The name by which `--search` asks for the space."""
    field: str
    """The field of a configuration that takes the values."""
    distribution: Literal["uniform", "log", "choice"]
    low: float = 0.0
    high: float = 0.0
    """The bounds of a range, both included; 0 for a choice."""
    values: tuple[Value, ...] = ()
    """The values of a choice."""
    unit: str = ""
    """The unit of the values, for figures."""
    whole: bool = False
    """Whether a range holds whole numbers only."""
    start: float | None = None
    """A value that is tried right after the starting point; None for none."""

    def at(self, u: float) -> Value:
        """The value below which a share u of the values lies, 0 <= u < 1; numbers have three significant digits."""
        if self.distribution == "choice":
            return self.values[int(u * len(self.values))]
        if self.distribution == "log":
            return self.rounded(self.low * (self.high / self.low) ** u)
        return self.rounded(self.low + u * (self.high - self.low))

    def quantile(self, value: Any) -> float:
        """The inverse of `at`, 0..1; a value outside counts as the nearest end, an unknown choice as the middle."""
        if self.values:
            return (self.values.index(value) + 0.5) / len(self.values) if value in self.values else 0.5
        value = min(max(value, self.low), self.high)
        if self.distribution == "log":
            return math.log(value / self.low) / math.log(self.high / self.low)
        return float((value - self.low) / (self.high - self.low))

    def rounded(self, value: float) -> Value:
        """The value to three significant digits, within the bounds: what is printed is what is used."""
        value = min(max(float(f"{value:.3g}"), self.low), self.high)
        return round(value) if self.whole else value

    def points(self, count: int) -> tuple[Value, ...]:
        """The values of a grid: all choices, or `count` even steps from bound to bound."""
        if self.distribution == "choice":
            return self.values
        steps = [step / max(count - 1, 1) for step in range(count)]
        return tuple(dict.fromkeys(self.at(step) for step in steps))

    def holds(self, value: Any) -> bool:
        """Whether a trial may have this value."""
        return value in self.values if self.values else bool(self.low <= value <= self.high)

    @property
    def bounds(self) -> tuple[Value, ...]:
        """The extremes, or all choices."""
        return self.values or (self.rounded(self.low), self.rounded(self.high))

    @property
    def text(self) -> str:
        """The space as `--search` takes it."""
        if self.values:
            return f"{self.name}={'|'.join(map(str, self.values))}"
        return f"{self.name}={'log:' if self.distribution == 'log' else ''}{self.low:g}:{self.high:g}"


# --- Reading --------------------------------------------------------------------------------------------------------


def read_spaces(paths: Iterable[Path], config: TrainConfig) -> dict[str, Space]:
    """The spaces in some YAML files, by name; a later one replaces an earlier one of the same name."""
    spaces: dict[str, Space] = {}
    for path in paths:
        content = read_yaml(path)
        for entry in content if isinstance(content, list) else [content]:
            space = _space(path, entry, config)
            spaces[space.name] = space
    return spaces


def _space(path: Path, entry: object, config: TrainConfig) -> Space:
    if not isinstance(entry, dict) or not {"name", "field", "distribution"} <= set(entry) <= _KEYS:
        raise ValueError(f"{path}: a space has the keys {', '.join(sorted(_KEYS))}, not {reprlib.repr(entry)}")
    try:
        return make_space(config, **{key: value for key, value in entry.items() if value is not None})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def make_space(
    config: TrainConfig,
    *,
    name: str,
    field: str,
    distribution: str,
    low: object = None,
    high: object = None,
    values: Sequence[object] = (),
    unit: str = "",
) -> Space:
    """Make a space whose values have the type of the field; ValueError where they cannot."""
    kind = _kind(config, field)
    if distribution == "choice":
        if not values:
            raise ValueError(f"{name}: a choice needs values")
        chosen = tuple(dict.fromkeys(_as(kind, value, name) for value in values))
        return Space(name=name, field=field, distribution="choice", values=chosen, unit=unit)
    if distribution not in ("uniform", "log"):
        raise ValueError(f"{name}: distribution {distribution!r}, known: uniform, log, choice")
    if kind not in (int, float):
        raise ValueError(f"{name}: {field} is not a number; give its values as A|B")
    least, most = (float(_as(float, bound, name)) for bound in (low, high))
    if not (math.isfinite(least) and math.isfinite(most) and least < most):
        raise ValueError(f"{name}: bounds {least:g}:{most:g}, the first must be below the second")
    if distribution == "log" and least <= 0:
        raise ValueError(f"{name}: bounds {least:g}:{most:g}, a logarithmic range must start above 0")
    kinds: Literal["uniform", "log"] = "log" if distribution == "log" else "uniform"
    return Space(name=name, field=field, distribution=kinds, low=least, high=most, unit=unit, whole=kind is int)


def _kind(config: TrainConfig, field: str) -> Any:
    kinds = {name: kind for _, group in config.groups() for name, kind in field_types(type(group)).items()}
    if field not in kinds:
        raise ValueError(f"field {field!r}: no such field{known_names(field, sorted(kinds))}")
    if field in (*EXECUTION_FIELDS, "seed"):
        raise ValueError(f"field {field!r}: not searched" + (", repeated with --seeds" if field == "seed" else ""))
    return kinds[field]


def _as(kind: Any, value: object, name: str) -> Value:
    """A value of a space converted to the type of its field, which may be a Literal."""
    try:
        if get_origin(kind) is Literal:
            choices: dict[str, Value] = {str(choice): choice for choice in get_args(kind)}
            return choices[str(value)]
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        return kind(value)  # type: ignore[no-any-return]
    except (KeyError, ValueError, TypeError):
        wanted = "|".join(map(str, get_args(kind))) or kind.__name__
        raise ValueError(f"{name}: value {value!r}, expected {wanted}") from None


# --- The command line -----------------------------------------------------------------------------------------------


def parse_search(text: str, config: TrainConfig, known: dict[str, Space], suggested: Space | None) -> list[Space]:
    """Read spaces from a text such as `alpha,delta_rel=log:0.005:0.5,scheme=an|ll_r`, in its order.

    Args:
        text: names of known spaces, or FIELD=LOW:HIGH, FIELD=log:LOW:HIGH, FIELD=A|B|C, delta_rel=suggested.
        config: the configuration whose fields are searched.
        known: the spaces from YAML files, by name.
        suggested: the space of delta_rel that the labels suggest; None where it was not computed.
    """
    spaces = []
    for part in (part.strip() for part in text.split(",")):
        name, given, spec = part.partition("=")
        if spec == SUGGESTED:
            if name != "delta_rel" or suggested is None:
                raise ValueError(f"{part}: only delta_rel is suggested by the data")
            spaces.append(suggested)
        elif given:
            spaces.append(_inline(name, spec, config, known))
        elif name in known:
            spaces.append(known[name])
        else:
            raise ValueError(
                f"search {name!r}: no such space{known_names(name, sorted(known))}; or {name or 'FIELD'}=LOW:HIGH"
            )
    fields = [space.field for space in spaces]
    if len(set(fields)) < len(fields):
        raise ValueError(f"search {text!r}: a field is given twice")
    return spaces


def _inline(name: str, spec: str, config: TrainConfig, known: dict[str, Space]) -> Space:
    field, unit = (known[name].field, known[name].unit) if name in known else (name, "")
    numbers = spec.removeprefix("log:").split(":")
    if len(numbers) == 1:
        return make_space(config, name=name, field=field, distribution="choice", values=spec.split("|"), unit=unit)
    if len(numbers) > 2:
        raise ValueError(f"{name}={spec}: expected LOW:HIGH, log:LOW:HIGH or A|B|C")
    kind = "log" if spec.startswith("log:") else "uniform"
    return make_space(config, name=name, field=field, distribution=kind, low=numbers[0], high=numbers[1], unit=unit)


def check_spaces(spaces: Sequence[Space], config_of: Callable[[dict[str, Value]], TrainConfig]) -> None:
    """Raise ValueError where a combination of bounds is no valid configuration, such as one that rejects everything.

    Args:
        spaces: the searched spaces.
        config_of: makes a configuration from the values of searched fields.
    """
    corners = itertools.product(*(space.bounds for space in spaces))
    for corner in itertools.islice(corners, _CORNERS):
        values = dict(zip((space.field for space in spaces), corner, strict=True))
        try:
            config_of(values).check()
        except ValueError as error:
            within = ", ".join(space.text for space in spaces)
            raise ValueError(f"search {within} allows {describe_values(values)}: {error}") from None


def describe_values(values: dict[str, Value]) -> str:
    """The values of searched fields as text, such as `alpha=5,delta_rel=0.25`."""
    shown = (f"{value:g}" if isinstance(value, float) else str(value) for value in values.values())
    return ",".join(f"{name}={value}" for name, value in zip(values, shown, strict=True))
