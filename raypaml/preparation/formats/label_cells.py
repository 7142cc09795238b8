"""The labels in the cells of a table: lists as programs write them, or names between separators.

Which sign separates names is never guessed. A given one is taken; else the names of a class list decide; else the
cells themselves must show it, because the parts occur alone or in varied company. What can be read in two ways is
refused, and both are named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from raypaml.preparation.findings import some_of
from raypaml.preparation.formats.table_file import SIGNS, UNSEEN

BLANK = " "
SEPARATORS = (
    (";", "|", ",", "\t", "\n", "\uff1b", "\uff0c", "\u3001", "\uff5c"),
    ("/", "\uff0f"),
    (BLANK, "\u00a0", "\u3000"),
)
"""Signs that separate names, and signs that do only where none before them occurs, for they are parts of names too.
The escaped ones are the wide forms of `;`, `,`, `|`, `/` and blank, the comma of lists in Chinese and Japanese, and the
no-break blank."""
_WHOLE = "none"
"""As a separator: a cell is one name."""
IN_LISTS = "labels in lists"
"""How cells were read whose names are quoted."""
_TOKEN = re.compile(r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")\s*(,?)""", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
_CLOSING = {"[": "]", "{": "}", "(": ")"}
_FREE, _ALONE, _VARIETY = 0.8, 0.2, 1.5
"""Shares of the names in cells with several that must be free (no other name is in all of their cells), and that must
be alone in a cell; and how many different cells there must be for each name."""
_SELDOM_IN_NAMES, _FREE_ENOUGH = (";", "|", "\t", "\n"), 0.5
"""Signs that are hardly ever a part of a name, and how many names must be free for them."""

Split = dict[str, tuple[str, ...]]
"""Cell -> its names."""


def label_lists(
    columns: Mapping[str, pa.Array], separator: str = "", class_ids: Sequence[str] = (), *, is_closed: bool = True
) -> tuple[dict[str, pa.Array], str, frozenset[str]]:
    """The names in each cell; how cells were read, in words; and the names that stand in text only, in no list.

    Lists are read as such, whatever the other cells hold; names in them also show how the other cells are read.

    Args:
        columns: cells of text, or lists, which stay as they are.
        separator: between names; `none` where a cell is one name; empty: what class list or cells show.
        class_ids: names that are known.
        is_closed: there are no others, so that what the cells hold besides is of no weight.

    Raises:
        ValueError: the cells can be read in two ways, or hold a list that cannot be read.
    """
    texts = {name: column for name, column in columns.items() if not pa.types.is_list(column.type)}
    cells = sorted(set[str]().union(*map(_texts_of, texts.values())))
    quoted = {name for column in columns.values() if pa.types.is_list(column.type) for name in _distinct(column)}
    names, about, from_text = _names_of(cells, SIGNS.get(separator, separator), class_ids, quoted, is_closed)
    if not separator and len(texts) > 1:
        _check_columns(texts, names, class_ids, is_closed)
    names[""] = ()
    lists = {name: _replaced(columns[name], names) for name in texts}
    if not {"0", "1"}.issubset(class_ids):
        _refuse_vectors({**columns, **lists})
    return {**columns, **lists}, about if cells else "", from_text


def _texts_of(column: pa.Array) -> set[str]:
    return {text.strip() for text in pc.unique(column).to_pylist() if text} - {""}


def _check_columns(columns: Mapping[str, pa.Array], names: Split, class_ids: Sequence[str], is_closed: bool) -> None:
    """ValueError where the separator that the cells show separates nothing in one column, which has another sign."""
    for name, column in columns.items():
        texts = sorted(cell for cell in _texts_of(column) if listed_names(cell, is_refused=False) is None)
        if any(len(names[cell]) > 1 for cell in texts):
            continue
        others = sorted({one for cell in names.keys() - set(texts) for one in names[cell]})
        alone, about = _found(texts, class_ids or others, is_closed=is_closed and bool(class_ids))
        if any(len(alone[cell]) > 1 for cell in texts):
            raise ValueError(
                f"the column {name} is read otherwise than the other one, {about}; say --separator TEXT for both, or "
                "--separator none"
            )


def _refuse_vectors(lists: Mapping[str, pa.Array]) -> None:
    """ValueError where lists of one length hold nothing but 0 and 1, which say of each class whether it is there."""
    for name, column in lists.items():
        lengths = set(pc.unique(pc.list_value_length(column)).to_pylist()) - {None, 0}
        if len(lengths) == 1 and min(lengths) > 1 and set(_distinct(column)) <= {"0", "1"}:
            raise ValueError(
                f"the column {name} holds vectors of {min(lengths)} numbers 0 and 1, and says no names of classes; "
                "write one column a class, or the names; if 0 and 1 are names, say so with --classes FILE"
            )


def _distinct(lists: pa.Array) -> list[str]:
    return [name.strip() for name in pc.unique(lists.flatten()).to_pylist() if name]


def _replaced(column: pa.Array, names: Split) -> pa.Array:
    coded = pc.fill_null(column, "").dictionary_encode()
    lists = pa.array([names[text.strip()] for text in coded.dictionary.to_pylist()], pa.list_(pa.string()))
    return lists.take(coded.indices)


def _names_of(
    cells: Sequence[str], separator: str, class_ids: Sequence[str], quoted: set[str], is_closed: bool
) -> tuple[Split, str, frozenset[str]]:
    found = {cell: listed_names(cell, is_refused=not separator) for cell in cells}
    listed = {cell: names for cell, names in found.items() if names is not None}
    texts, quoted = [cell for cell in cells if cell not in listed], quoted.union(*listed.values())
    if separator:
        cut, about = _cut(texts, separator), f"labels {_between(separator)}, as --separator says"
    else:
        cut, about = _found(texts, class_ids or sorted(quoted), is_closed=is_closed and bool(class_ids))
    if listed:
        about = f"{IN_LISTS}, elsewhere {about}" if texts else IN_LISTS
    return {**listed, **cut}, about, frozenset[str]().union(*cut.values()) - quoted


def _cut(cells: Sequence[str], separator: str) -> Split:
    if separator == _WHOLE:
        return {cell: (cell,) for cell in cells}
    return {cell: tuple(name for part in cell.split(separator) if (name := part.strip())) for cell in cells}


def _between(separator: str) -> str:
    name, _ = UNSEEN.get(separator, (repr(separator), ""))
    return "one a cell" if separator == _WHOLE else f"separated by {name}"


def _found(cells: Sequence[str], class_ids: Sequence[str], *, is_closed: bool = True) -> tuple[Split, str]:
    """The one reading that a class list or the cells show."""
    tiers = [[sign for sign in tier if any(sign in cell for cell in cells)] for tier in SEPARATORS]
    candidates = next(filter(None, tiers), [])
    if not candidates:
        return _cut(cells, _WHOLE), "labels one a cell"
    ways = {sign: _cut(cells, sign) for sign in (*chain(*tiers), _WHOLE)}
    known = [sign for sign in ways if _is_known(ways[sign], ways, set(class_ids))]
    if len(known) == 1 and (is_closed or _is_evident_of_new(ways[known[0]], known[0], set(class_ids))):
        return ways[known[0]], f"labels {_between(known[0])}, as the classes show"
    shown = [sign for sign in ways if sign != _WHOLE and _is_evident(ways[sign], sign)]
    if known or len(candidates) > 1 or candidates[0] not in shown or _holds_blank_lists(ways[candidates[0]]):
        possible = (known if len(known) > 1 else []) or [sign for sign in ways if sign in (*candidates, *shown, _WHOLE)]
        raise ValueError(_two_ways({sign: ways[sign] for sign in possible}))
    return ways[candidates[0]], f"labels {_between(candidates[0])}, as the cells show"


def _is_known(way: Split, ways: Mapping[str, Split], class_ids: set[str]) -> bool:
    """Whether all names are classes in any cell that is read in several ways."""
    return any(
        class_ids.issuperset(names) and any(other[cell] != names for other in ways.values())
        for cell, names in way.items()
        if names
    )


def _is_evident_of_new(way: Split, sign: str, known: set[str]) -> bool:
    """Whether names that are not known can be nothing else than that, where known ones show what the sign does.

    Who writes `;` or `,` between names has none in them. A blank or `/` between known names says nothing about
    `polar bear`: its parts must be seen alone too, or in varied company.
    """
    if sign in SEPARATORS[0] or sign == _WHOLE:
        return True
    new = {cell: names for cell, names in way.items() if len(set(names)) > 1 and not known.issuperset(names)}
    alone = {cell: names for cell, names in way.items() if len(set(names)) == 1}
    return _is_evident({**new, **alone, **{name: (name,) for name in known}}, sign)


def _is_evident(way: Split, sign: str) -> bool:
    """Whether cells with several names can be nothing else than that.

    They are if each of these names is also alone in a cell. They are too if nearly all of these names are seen in
    varied company, some of them alone, in many more different cells than there are names: parts of names, such as those
    of `polar bear`, are seen together only. Less of it is enough for a sign that is hardly ever a part of a name.
    """
    several = [set(names) for names in set(way.values()) if len(set(names)) > 1]
    names = set[str]().union(*several)
    alone = names & {cell[0] for cell in way.values() if len(set(cell)) == 1}
    if names == alone:
        return True
    company: dict[str, set[str]] = {name: {name} for name in alone}
    for cell in several:
        for name in cell:
            company[name] = company.get(name, cell) & cell
    free = sum(len(others) == 1 for others in company.values())
    if sign in _SELDOM_IN_NAMES and not any("/" in name for name in names):  # which would be a list of its own
        return free >= _FREE_ENOUGH * len(names)
    varied = len({cell for cell in way.values() if names & set(cell)}) >= _VARIETY * len(names)
    return varied and free >= _FREE * len(names) and len(alone) >= _ALONE * len(names)


def _holds_blank_lists(way: Split) -> bool:
    """Whether names that were cut out are themselves names between blanks."""
    parts = sorted({name for names in way.values() for name in names})
    return any(BLANK in part for part in parts) and _is_evident(_cut(parts, BLANK), BLANK)


def _two_ways(ways: Mapping[str, Split]) -> str:
    said = []
    for sign, way in ways.items():
        names = sorted({name for cell in way.values() for name in cell})
        said.append(f"{_between(sign)}, {len(names):,} classes ({some_of([repr(name) for name in names], 4)})")
    flags = " or ".join(f"--separator {_typed(sign)}" for sign in ways)
    return f"the labels can be read in {len(ways)} ways: {'; or '.join(said)}. Say {flags}, or give --classes FILE"


def _typed(sign: str) -> str:
    _, word = UNSEEN.get(sign, ("", f"'{sign}'"))
    return _WHOLE if sign == _WHOLE else word


def listed_names(cell: str, *, is_refused: bool = True) -> tuple[str, ...] | None:
    """The names in a list as JSON, Python, NumPy or Label Studio write it; None where a cell is no list.

    Args:
        cell: without blanks around it.
        is_refused: what begins like a list and is none; otherwise that is None too.

    Raises:
        ValueError: it begins like one and cannot be read.
    """
    if cell in ("set()", "()"):
        return ()
    if cell[:1] not in _CLOSING:
        return None
    names = _from_json(cell)
    names = names if names is not None else _from_python(cell)
    if names is None and is_refused and cell[0] != "(":
        raise ValueError(
            f"the cell {cell[:60]!r} begins like a list and cannot be read as one; quote its names as JSON or Python "
            "do, or say --separator where it is none"
        )
    return None if names is None else tuple(name for part in names if (name := part.strip()))


def _from_json(cell: str) -> list[str] | None:
    try:
        content = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    if isinstance(content, dict) and set(content) == {"choices"}:  # of Label Studio, where several were chosen
        content = content["choices"]
    if not isinstance(content, list) or not all(
        isinstance(name, str | int) and not isinstance(name, bool) for name in content
    ):
        return None
    return [str(name) for name in content]


def _from_python(cell: str) -> list[str] | None:
    """The names between brackets, each in quotes, with commas or, as NumPy prints them, blanks in between."""
    inner, place, names = cell[1:-1].strip(), 0, []
    if cell[-1] != _CLOSING[cell[0]]:
        return None
    commas = set[str]()
    while place < len(inner):
        token = _TOKEN.match(inner, place)
        if not token:
            return None
        place = token.end()
        commas |= {token[3]} if place < len(inner) else set()
        name = _unescaped(token[1] if token[1] is not None else token[2])
        if name is None:
            return None
        names.append(name)
    return names if len(commas) < 2 else None


def _unescaped(text: str) -> str | None:
    try:
        return _ESCAPE.sub(_character, text)
    except (KeyError, ValueError, OverflowError):
        return None


def _character(found: re.Match[str]) -> str:
    digits = found[1] or found[2] or found[3]
    return chr(int(digits, 16)) if digits else _ESCAPED[found[4]]
