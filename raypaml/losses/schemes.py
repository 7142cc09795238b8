"""The registry of schemes, the parsing of their settings, and the tables of schemes in `--help` and `losses/README.md`.

A new scheme that is a formula of each entry takes three things: the formula in `losses.formulas`, a record in
`losses.formula_records`, and the formula written a second time in `tests/test_schemes.py`. Flags, `--help`, the checks
of a configuration, the tables of `losses/README.md` and the parameters of the tests are made from the records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from raypaml.cli import indented_list, known_names
from raypaml.losses.formula_records import FORMULA_SCHEMES
from raypaml.losses.large_loss_records import LARGE_LOSS_SCHEMES
from raypaml.losses.pseudo_label_records import PSEUDO_LABEL_SCHEMES
from raypaml.losses.scheme import Scheme, read_numbers

SCHEMES: dict[str, Scheme] = {}
"""The records by name, in the order in which they are listed."""


def register_scheme(scheme: Scheme) -> None:
    """Add a scheme: `--scheme` then takes its name, and help, checks and tables contain it.

    Raises:
        ValueError: the name is taken.
    """
    if scheme.name in SCHEMES:
        raise ValueError(f"scheme {scheme.name}: there is one of this name already; choose another")
    SCHEMES[scheme.name] = scheme


def scheme_names() -> tuple[str, ...]:
    """The names of all schemes registered so far."""
    return tuple(SCHEMES)


def scheme_of(name: str) -> Scheme:
    """The record of a scheme. Raises ValueError, which suggests the nearest name, where there is none."""
    if name not in SCHEMES:
        known = known_names(name, SCHEMES)
        raise ValueError(f"scheme={name!r}: no such scheme{known}; one of your own: --import MODULE")
    return SCHEMES[name]


def read_settings(scheme: str, text: str) -> dict[str, float]:
    """Read settings given for a scheme as `name=value,...`; those that the text does not name are not in the result.

    Raises:
        ValueError: the scheme has no such setting, or a value is outside the setting's bounds.
    """
    record = scheme_of(scheme)
    given = read_numbers(text, record.settings, "scheme_settings", f"scheme {scheme}")
    record.check_together(given)
    return given


def settings_it_has(scheme: str, text: str) -> str:
    """The parts of `name=value,...`, given for several schemes, that are settings of this one."""
    has = scheme_of(scheme).defaults
    return ",".join(part for part in text.split(",") if part.partition("=")[0].strip() in has)


def passed_over(schemes: Sequence[str], pseudo_labels: str, settings: str) -> Iterator[str]:
    """Say, for each setting given for several schemes, which of them do not use it.

    Raises:
        ValueError: none of them has such a setting.
    """
    without = [name for name in schemes if not scheme_of(name).takes_pseudo_labels]
    if pseudo_labels and without:
        yield f"pseudo_labels={pseudo_labels}: not used by {', '.join(without)}"
    for part in filter(None, (part.strip() for part in settings.split(","))):
        without = [name for name in schemes if not settings_it_has(name, part)]
        if len(without) == len(schemes):
            raise ValueError(f"scheme_settings: {part}: none of {', '.join(schemes)} has such a setting; leave it out")
        if without:
            yield f"scheme_settings {part}: not used by {', '.join(without)}, which have no such setting"


def all_settings(scheme: str, text: str, defaults: Literal["published", "earlier"]) -> dict[str, float]:
    """The value of every setting of a scheme: those given as `name=value,...`, and the defaults of the others.

    Args:
        scheme: its name.
        text: the settings that are given.
        defaults: whether the others have the published defaults or those of runs that began before they existed.

    Raises:
        ValueError: as `read_settings`.
    """
    record = scheme_of(scheme)
    usual = record.defaults if defaults == "published" else record.earlier_defaults
    return usual | read_settings(scheme, text)


def join_settings(scheme: str, *texts: str) -> str:
    """Join settings of a scheme into one text; later texts override earlier ones, setting by setting.

    If one of the texts already gives all of these values, it is returned as it was written, so that a stored
    configuration stays unchanged.

    Raises:
        ValueError: as `read_settings`.
    """
    every = [read_settings(scheme, text) for text in texts]
    joined = {name: value for one in every for name, value in one.items()}
    unchanged = [text for text, one in zip(texts, every, strict=True) if one == joined]
    ordered = {name: joined[name] for name in scheme_of(scheme).defaults if name in joined}
    return unchanged[0] if unchanged else settings_text(ordered)


def settings_text(values: Mapping[str, float]) -> str:
    """Settings in the form that `--scheme-settings` takes."""
    return ",".join(f"{name}={float(value)!r}".removesuffix(".0") for name, value in values.items())


def help_text() -> str:
    """The list of schemes for `--help`, each with its sentence and its settings."""
    texts = {}
    for name, scheme in SCHEMES.items():
        settings = settings_text(scheme.defaults).replace(",", ", ")
        texts[name] = scheme.about + (f" [{settings}]" if settings else "")
    return "Schemes, [with their settings for --scheme-settings]:\n" + indented_list(texts)


def markdown_table() -> str:
    """The table of all schemes in `losses/README.md`; a test compares the two."""
    rows = [["scheme", "what it is", "source", "settings"]]
    for name, scheme in SCHEMES.items():
        settings = f"`{settings_text(scheme.defaults)}`" if scheme.settings else ""
        rows.append([f"`{name}`", scheme.about, scheme.source, settings])
    return rows_as_markdown(rows)


def published_table() -> str:
    """The table of published values in `losses/README.md`."""
    rows = [["scheme", "data sets", "values", "applied by its recipe", "source"]]
    for name, scheme in SCHEMES.items():
        for published in scheme.published:
            lists = {key: value if isinstance(value, tuple) else (value,) for key, value in published.values.items()}
            values = [f"{key} {' or '.join(f'{value:g}' for value in each)}" for key, each in lists.items()]
            applied = "yes" if published.applied else "no"
            rows.append([f"`{name}`", ", ".join(published.data), ", ".join(values), applied, published.source])
    return rows_as_markdown(rows)


def rows_as_markdown(rows: list[list[str]]) -> str:
    """A table in Markdown; its first row holds the titles of the columns."""
    ruled = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in ruled)


for record in (*LARGE_LOSS_SCHEMES, *FORMULA_SCHEMES, *PSEUDO_LABEL_SCHEMES):
    register_scheme(record)
