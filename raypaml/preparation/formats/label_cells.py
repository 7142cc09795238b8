"""Reads the labels in the cells of a table: lists as programs write them, or names between separators.

The separator is never guessed. It is given; or the names of a class list decide it; or the cells themselves show it,
because their parts also occur alone or in varied combinations. Cells that can be read in two ways are refused, and the
message shows both.
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
"""Characters that separate names, in three tiers. Those of a later tier also occur within names, so they separate only
where no character of an earlier tier occurs. The escaped ones are the wide forms of `;`, `,`, `|`, `/` and blank, the
comma of lists in Chinese and Japanese, and the no-break blank."""
_WHOLE = "none"
"""The separator that means that each cell is one name."""
IN_LISTS = "labels in lists"
"""Says that cells were read as lists of quoted names."""
_TOKEN = re.compile(r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")\s*(,?)""", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
_CLOSING = {"[": "]", "{": "}", "(": ")"}
_FREE, _ALONE, _VARIETY = 0.8, 0.2, 1.5
"""What the names in cells with several names must show: the share that is free (no other name is in all their cells),
the share that also occurs alone in a cell, and the number of different cells per name."""
_SELDOM_IN_NAMES, _FREE_ENOUGH = (";", "|", "\t", "\n"), 0.5
"""Characters that are hardly ever part of a name, and the share of free names that suffices for them."""

Split = dict[str, tuple[str, ...]]
"""The names in each cell."""


def label_lists(
    columns: Mapping[str, pa.Array], separator: str = "", class_ids: Sequence[str] = (), *, is_closed: bool = True
) -> tuple[dict[str, pa.Array], str, frozenset[str]]:
    """Splits the cells of columns into names.

    Lists are read as lists, whatever the other cells hold; the names in them also show how the other cells are read.

    Args:
        columns: columns of text, or of lists, which are not changed.
        separator: what separates names; `none` where a cell is one name; empty where class list or cells must show it.
        class_ids: names of classes that are known.
        is_closed: whether these are all classes, so that other parts of cells do not count as evidence.

    Returns:
        The names in each cell; a phrase that says how cells were read; and the names that occur in no list.

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
    lists = {}
    for name, column in texts.items():
        coded = pc.fill_null(column, "").dictionary_encode()
        split = pa.array([names[text.strip()] for text in coded.dictionary.to_pylist()], pa.list_(pa.string()))
        lists[name] = split.take(coded.indices)
    if not {"0", "1"}.issubset(class_ids):
        _refuse_vectors({**columns, **lists})
    return {**columns, **lists}, about if cells else "", from_text


def _texts_of(column: pa.Array) -> set[str]:
    return {text.strip() for text in pc.unique(column).to_pylist() if text} - {""}


def _check_columns(columns: Mapping[str, pa.Array], names: Split, class_ids: Sequence[str], is_closed: bool) -> None:
    """Raises ValueError where one column has another separator than the cells of all columns together show."""
    for name, column in columns.items():
        texts = sorted(cell for cell in _texts_of(column) if listed_names(cell, is_refused=False) is None)
        if any(len(names[cell]) > 1 for cell in texts):
            continue
        others = sorted({one for cell in names.keys() - set(texts) for one in names[cell]})
        alone, about = _shown_reading(texts, class_ids or others, is_closed=is_closed and bool(class_ids))
        if any(len(alone[cell]) > 1 for cell in texts):
            raise ValueError(
                f"the column {name} has another separator than the other column: {about}; give --separator TEXT for "
                "both, or --separator none"
            )


def _refuse_vectors(lists: Mapping[str, pa.Array]) -> None:
    """Raises ValueError where lists of one length hold nothing but 0 and 1, a label for each class and no names."""
    for name, column in lists.items():
        lengths = set(pc.unique(pc.list_value_length(column)).to_pylist()) - {None, 0}
        if len(lengths) == 1 and min(lengths) > 1 and set(_distinct(column)) <= {"0", "1"}:
            raise ValueError(
                f"the column {name} holds vectors of {min(lengths)} numbers 0 and 1 and no names of classes; "
                "write one column a class, or the names; if 0 and 1 are names of classes, list them in --classes FILE"
            )


def _distinct(lists: pa.Array) -> list[str]:
    return [name.strip() for name in pc.unique(lists.flatten()).to_pylist() if name]


def _names_of(
    cells: Sequence[str], separator: str, class_ids: Sequence[str], quoted: set[str], is_closed: bool
) -> tuple[Split, str, frozenset[str]]:
    in_lists = {cell: listed_names(cell, is_refused=not separator) for cell in cells}
    listed = {cell: names for cell, names in in_lists.items() if names is not None}
    texts, quoted = [cell for cell in cells if cell not in listed], quoted.union(*listed.values())
    if separator:
        cut, about = _cut(texts, separator), f"labels {_between(separator)}, as --separator says"
    else:
        cut, about = _shown_reading(texts, class_ids or sorted(quoted), is_closed=is_closed and bool(class_ids))
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


def _shown_reading(cells: Sequence[str], class_ids: Sequence[str], *, is_closed: bool = True) -> tuple[Split, str]:
    """Returns the only reading that a class list or the cells show, and a phrase that describes it."""
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
    """Says whether any cell that can be read in several ways holds only names of classes if it is read in this way."""
    return any(
        class_ids.issuperset(names) and any(other[cell] != names for other in ways.values())
        for cell, names in way.items()
        if names
    )


def _is_evident_of_new(way: Split, sign: str, known: set[str]) -> bool:
    """Says whether unknown names are surely names, where known names show what a character separates.

    If `;` or `,` separates names, no name contains it. But a blank or `/` between known names says nothing about
    `polar bear`: its parts must also occur alone, or in varied combinations.
    """
    if sign in SEPARATORS[0] or sign == _WHOLE:
        return True
    new = {cell: names for cell, names in way.items() if len(set(names)) > 1 and not known.issuperset(names)}
    alone = {cell: names for cell, names in way.items() if len(set(names)) == 1}
    return _is_evident({**new, **alone, **{name: (name,) for name in known}}, sign)


def _is_evident(way: Split, sign: str) -> bool:
    """Says whether the parts of cells with several parts are surely names.

    They are if each of them also occurs alone in a cell. They are too if nearly all of them occur in varied
    combinations, some of them alone, in many more different cells than there are names: parts of names, such as those
    of `polar bear`, occur together only. Less evidence suffices for a character that is hardly ever part of a name.
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
    if sign in _SELDOM_IN_NAMES and not any("/" in name for name in names):  # a name with / may be a list
        return free >= _FREE_ENOUGH * len(names)
    varied = len({cell for cell in way.values() if names & set(cell)}) >= _VARIETY * len(names)
    return varied and free >= _FREE * len(names) and len(alone) >= _ALONE * len(names)


def _holds_blank_lists(way: Split) -> bool:
    """Says whether the parts are themselves several names between blanks."""
    parts = sorted({name for names in way.values() for name in names})
    return any(BLANK in part for part in parts) and _is_evident(_cut(parts, BLANK), BLANK)


def _two_ways(ways: Mapping[str, Split]) -> str:
    """Returns the message that refuses labels that can be read in several ways."""
    said = []
    for sign, way in ways.items():
        names = sorted({name for cell in way.values() for name in cell})
        said.append(f"{_between(sign)}, {len(names):,} classes ({some_of([repr(name) for name in names], 4)})")
    typed = {sign: word for sign, (_, word) in UNSEEN.items()} | {_WHOLE: _WHOLE}
    flags = " or ".join("--separator " + typed.get(sign, f"'{sign}'") for sign in ways)
    return f"the labels can be read in {len(ways)} ways: {'; or '.join(said)}. Give {flags}, or --classes FILE"


def listed_names(cell: str, *, is_refused: bool = True) -> tuple[str, ...] | None:
    """Returns the names in a list as JSON, Python, NumPy or Label Studio write it; None where a cell is no list.

    Args:
        cell: the text of the cell, without blanks around it.
        is_refused: whether a cell that begins like a list but cannot be read as one is refused; if not, it is no list.

    Raises:
        ValueError: the cell begins like a list and cannot be read.
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
            "do, or give --separator where it is no list"
        )
    return None if names is None else tuple(name for part in names if (name := part.strip()))


def _from_json(cell: str) -> list[str] | None:
    try:
        content = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    if isinstance(content, dict) and set(content) == {"choices"}:  # as Label Studio writes several choices
        content = content["choices"]
    if not isinstance(content, list) or not all(
        isinstance(name, str | int) and not isinstance(name, bool) for name in content
    ):
        return None
    return [str(name) for name in content]


def _from_python(cell: str) -> list[str] | None:
    """Returns the quoted names between brackets, with commas between them or, as NumPy prints them, blanks."""
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
    """Returns a text of Python's with its escapes replaced; None where one is not understood."""

    def character(escape: re.Match[str]) -> str:
        digits = escape[1] or escape[2] or escape[3]
        return chr(int(digits, 16)) if digits else _ESCAPED[escape[4]]

    try:
        return _ESCAPE.sub(character, text)
    except (KeyError, ValueError, OverflowError):
        return None
