"""Reads a user's table: its encoding, delimiter and quoting, and the columns that names mean.

Nothing is guessed: UTF-8 and byte order marks are recognised, and any other encoding must be named by a flag. The
delimiter is the one with which the first line has the needed columns. Broken quoting is refused with its line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from raypaml.bounded import TABLE_BYTES, arrow_fault, check_rows, csv_fault, read_bytes
from raypaml.cli import did_you_mean
from raypaml.files import check_readable
from raypaml.stored_json import parse_json, refused_as

if TYPE_CHECKING:
    from _csv import Reader

DELIMITERS = (",", ";", "\t")
"""The delimiters that are tried where none is given."""
UNSEEN = {
    " ": ("a blank", "blank"),
    "\t": ("a tab", "tab"),
    "\n": ("a line break", "newline"),
    "\u00a0": ("a no-break blank", "nbsp"),
    "\u3000": ("a wide blank", "wide-blank"),
}
"""Invisible characters: their names in messages, and the words for them in flags."""
SIGNS = {word: sign for sign, (_, word) in UNSEEN.items()}
SIGNS |= {"\\t": "\t", "\\n": "\n", "space": " ", "comma": ",", "semicolon": ";"}
"""Words that a flag accepts for characters that are hard to type."""
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32"}
_MARKS |= {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_SEP_LINE = re.compile(r"sep=(.)\r?\n")
"""Matches Excel's own first line, which names the delimiter."""
_WORKBOOK = "a workbook of Excel or the like; save its sheet as `CSV UTF-8` and give that"
_NO_TEXT = {
    b"PK\x03\x04": _WORKBOOK,
    b"\xd0\xcf\x11\xe0": _WORKBOOK,
    b"PAR1": "a Parquet table under another name; call it *.parquet",
}
"""The first bytes of files that are no text: what they are, and the remedy."""
_EMPTY = "empty; expected a first row with the names of the columns"
_SHOWN, _LONG = 20, 40
"""The most names of columns that a message lists, and the most characters of each."""
_HEADER = 1 << 20
"""Characters within which the first row of a table must end."""


@dataclass(frozen=True)
class Dialect:
    """How a text table is written."""

    delimiter: str = ""
    """The delimiter; empty takes the one of DELIMITERS with which the first line has the needed columns."""
    encoding: str = ""
    """The encoding; empty takes that of the byte order mark, and UTF-8 where there is none."""


def load_table(
    path: Path, needed: Sequence[str], dialect: Dialect | None = None, *, rows: Sequence[dict[str, object]] = ()
) -> pa.Table:
    """Reads a CSV as text, or Parquet with its types; blanks around names of columns are removed.

    Args:
        path: `.parquet`, `.json` with a list of rows, or text with a first row of names.
        needed: columns that must exist; upper and lower case do not matter.
        dialect: how the text is written.
        rows: the rows of a JSON that was read already.

    Raises:
        ValueError: the table cannot be read; the message names the file, the line where there is one, and the remedy.
    """
    try:
        suffix = path.suffix.lower()
        if suffix == ".json":
            rows = rows or json_rows(read_json(path))
            names = dict.fromkeys(name for row in rows for name in row)
            table = pa.table({name: pa.array([_as_text(row.get(name)) for row in rows], pa.string()) for name in names})
        elif suffix == ".parquet":
            check_rows(pq.read_metadata(path).num_rows, path.stat().st_size, str(path))
            table = pq.read_table(path)
        else:
            table = _read_text(path, needed, dialect or Dialect())
    except (pa.ArrowException, OSError, csv.Error) as error:
        check_readable(path)
        raise ValueError(f"{path}: cannot be read: {arrow_fault(error)}") from None
    table = table.rename_columns([name.strip() for name in table.column_names])
    missing = [name for name in needed if not matching(name, table.column_names)]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}; it has {columns_shown(table.column_names)}")
    return table


def read_json(path: Path) -> object:
    """Returns the content of a JSON file; raises ValueError where it is none."""
    content = read_bytes(path, TABLE_BYTES)
    with refused_as(path, "a table in JSON"):
        return parse_json(content)


def json_rows(content: object) -> list[dict[str, object]]:
    """Returns the rows of a JSON that is a table, such as Label Studio's JSON_MIN; none where it is something else."""
    rows = content if isinstance(content, list) and all(isinstance(row, dict) for row in content) else []
    return [] if any("annotations" in row or "data" in row for row in rows) else rows


def _as_text(value: object) -> str:
    if value is None or value != value:  # NaN, which pandas writes for what is missing
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def is_no_text(kind: pa.DataType) -> bool:
    """Says whether a column of this type holds neither text nor numbers, but pictures for example."""
    return bool(pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def columns_shown(names: Sequence[str]) -> str:
    """Lists names of columns for a message: the first ones, each on one line, shortened, and with nothing invisible."""
    lines = (" ".join(name.split()) for name in names[:_SHOWN])
    lines = (line if line and line.isprintable() else repr(line) for line in lines)
    short = [line if len(line) <= _LONG else f"{line[:_LONG]}..." for line in lines]
    return ", ".join(short) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")


def matching(name: str, names: Sequence[str]) -> list[str]:
    """Returns the columns that a name means: the equal one, or else those that differ by case and blanks only."""
    equal = [other for other in names if other == name]
    return equal or [other for other in names if other.strip().casefold() == name.strip().casefold()]


def column_named(table: pa.Table, path: Path, name: str, flag: str, *, given: bool) -> str | None:
    """Returns the column of this name; None where the user did not name it and it does not exist.

    Raises:
        ValueError: the user named it and it does not exist, or several columns have this name.
    """
    if name == "none" and given:
        return None
    matches = matching(name, table.column_names)
    if len(matches) > 1:
        raise ValueError(f"{path}: {len(matches)} columns are called {name!r}; rename all but one of them")
    if not matches and given:
        hint = did_you_mean(name, table.column_names) or "."
        raise ValueError(f"{path}: {flag} {name}: no such column{hint} It has {columns_shown(table.column_names)}")
    return matches[0] if matches else None


def _read_text(path: Path, needed: Sequence[str], dialect: Dialect) -> pa.Table:
    text = _decoded(path, dialect.encoding)
    line = _SEP_LINE.match(text)
    text = text[line.end() :] if line else text
    delimiter = SIGNS.get(dialect.delimiter, dialect.delimiter) or (line[1] if line else _delimiter(path, text, needed))
    if len(delimiter) != 1:
        raise ValueError(f"--delimiter {delimiter!r}: give one sign, such as ';', or the word tab")
    names, *rows = _rows(path, text, delimiter)
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], names=names)


def _decoded(path: Path, encoding: str) -> str:
    content = read_bytes(path, TABLE_BYTES)
    kind = next((kind for start, kind in _NO_TEXT.items() if content.startswith(start)), "")
    if kind:
        raise ValueError(f"{path}: {kind}")
    if not content.strip():
        raise ValueError(f"{path}: {_EMPTY}")
    marked = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "")
    if not encoding and not marked and b"\0" in content[:4096]:
        raise ValueError(
            f"{path}: holds zero bytes, so it is no UTF-8 text; if it is UTF-16, give --encoding utf-16-le"
        )
    try:
        return content.decode(encoding or marked or "utf-8").removeprefix("\ufeff")
    except LookupError:
        raise ValueError(
            f"--encoding {encoding}: no such encoding; give one such as utf-8, utf-16, cp1252 or latin-1"
        ) from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        advice = (
            "give --encoding cp1252 if it was saved by a Windows program in a Western language, or else its encoding"
        )
        raise ValueError(f"{path}: line {line} is not {encoding or marked or 'UTF-8'}; {advice}") from None


csv.field_size_limit(1 << 24)  # cells may hold masks; by default Python refuses more than 131,072 characters


def _reader(text: str, delimiter: str) -> Reader:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)


def _delimiter(path: Path, text: str, needed: Sequence[str]) -> str:
    headers: dict[str, list[str]] = {sign: [] for sign in DELIMITERS}
    for sign in DELIMITERS:
        with suppress(csv.Error):
            headers[sign] = [name.strip() for name in next(filter(any, _reader(text[:_HEADER], sign)), [])]
    fits = [sign for sign, names in headers.items() if all(matching(name, names) for name in needed)]
    if not fits:
        names = max(headers.values(), key=len)
        missing = ", ".join(name for name in needed if not matching(name, names))
        raise ValueError(
            f"{path}: no column {missing}; it has {columns_shown(names)}. Flags such as --image-column name the "
            "one that is meant; --delimiter names what separates columns, if not comma, semicolon or tab"
        )
    widest = max(fits, key=lambda sign: len(headers[sign]))
    if sum(len(headers[sign]) > 1 for sign in fits) > 1:
        raise ValueError(f"{path}: can be read with {' or '.join(map(repr, fits))} between columns; give --delimiter")
    return widest


def _rows(path: Path, text: str, delimiter: str) -> Iterator[list[str]]:
    """Yields the rows that are not blank, the names of the columns first; all must have the same number of cells."""
    reader = _reader(text, delimiter)
    width = 0
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                width = width or len(row)
                if len(row) != width:
                    advice = "a cell that holds the delimiter or a line break must be quoted"
                    raise ValueError(f"{path}: line {reader.line_num}: {len(row)} cells instead of {width}; {advice}")
                yield row
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {csv_fault(error)}") from None
    if not width:
        raise ValueError(f"{path}: {_EMPTY}")
