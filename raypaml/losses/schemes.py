"""Every scheme by its name, the settings given for one, and the lists of all that people read.

A new scheme that is a formula of each entry takes three things: the formula in `losses.formulas`, a record in
`losses.formula_records`, and the formula written down again in `tests/test_schemes.py`. Flags, `--help`, the checks of
a configuration, the table of `losses/README.md` and the list of the tests are read from the records.
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
    """Add a scheme, so that `--scheme` takes its name, and help, checks and tables know it.

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
    """The record of this name; ValueError suggests the nearest name where there is none."""
    if name not in SCHEMES:
        known = known_names(name, SCHEMES)
        raise ValueError(f"scheme={name!r}: no such scheme{known}; one of your own: --import MODULE")
    return SCHEMES[name]


def read_settings(scheme: str, text: str) -> dict[str, float]:
    """Read `name=value,...`, the settings given for a scheme; those not given are left out.

    Raises:
        ValueError: a setting that the scheme has not, or a value outside the setting's bounds; the message names it.
    """
    record = scheme_of(scheme)
    given = read_numbers(text, record.settings, "scheme_settings", f"scheme {scheme}")
    record.check_together(given)
    return given


def settings_it_has(scheme: str, text: str) -> str:
    """Those parts of `name=value,...`, given for several schemes, that are settings of this one."""
    has = scheme_of(scheme).defaults
    return ",".join(part for part in text.split(",") if part.partition("=")[0].strip() in has)


def passed_over(schemes: Sequence[str], pseudo_labels: str, settings: str) -> Iterator[str]:
    """What is given for several schemes at once and not used by all of them, in sentences.

    Raises:
        ValueError: a setting that none of them has.
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
    """Every setting of a scheme: those given as `name=value,...`, and for the others its defaults.

    Raises:
        ValueError: as `read_settings`.
    """
    record = scheme_of(scheme)
    usual = record.defaults if defaults == "published" else record.earlier_defaults
    return usual | read_settings(scheme, text)


def join_settings(scheme: str, *texts: str) -> str:
    """Settings of a scheme as one text; later texts override earlier ones, setting by setting.

    Where all that later texts give is there already, the first text is returned as it was written, so that a stored
    configuration stays what it is.

    Raises:
        ValueError: as `read_settings`.
    """
    every = [read_settings(scheme, text) for text in texts]
    joined = {name: value for one in every for name, value in one.items()}
    unchanged = [text for text, one in zip(texts, every, strict=True) if one == joined]
    ordered = {name: joined[name] for name in scheme_of(scheme).defaults if name in joined}
    return unchanged[0] if unchanged else settings_text(ordered)


def settings_text(values: Mapping[str, float]) -> str:
    """Settings as `--scheme-settings` takes them."""
    return ",".join(f"{name}={float(value)!r}".removesuffix(".0") for name, value in values.items())


def help_text() -> str:
    """Every scheme with its sentence and its settings, for `--help`."""
    texts = {}
    for name, scheme in SCHEMES.items():
        settings = settings_text(scheme.defaults).replace(",", ", ")
        texts[name] = scheme.about + (f" [{settings}]" if settings else "")
    return "Schemes, [with their settings for --scheme-settings]:\n" + indented_list(texts)


def markdown_table() -> str:
    """The table of all schemes in `losses/README.md`; a test holds the two equal."""
    rows = [["scheme", "what it is", "source", "settings"]]
    for name, scheme in SCHEMES.items():
        settings = f"`{settings_text(scheme.defaults)}`" if scheme.settings else ""
        rows.append([f"`{name}`", scheme.about, scheme.source, settings])
    return rows_as_markdown(rows)


def published_table() -> str:
    """The table of the values published for a data set, also in `losses/README.md`."""
    rows = [["scheme", "data sets", "values", "applied by its recipe", "source"]]
    for name, scheme in SCHEMES.items():
        for published in scheme.published:
            values = [f"{key} {_numbers_text(value)}" for key, value in published.values.items()]
            applied = "yes" if published.applied else "no"
            rows.append([f"`{name}`", ", ".join(published.data), ", ".join(values), applied, published.source])
    return rows_as_markdown(rows)


def _numbers_text(value: float | tuple[float, ...]) -> str:
    return " or ".join(f"{each:g}" for each in (value if isinstance(value, tuple) else (value,)))


def rows_as_markdown(rows: list[list[str]]) -> str:
    """The rows of a table, the titles first."""
    ruled = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in ruled)


for record in (*LARGE_LOSS_SCHEMES, *FORMULA_SCHEMES, *PSEUDO_LABEL_SCHEMES):
    register_scheme(record)
