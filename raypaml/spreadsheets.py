"""Text cells of CSV files that people open in spreadsheets, which would compute a text that begins like a formula.

Such a text is written with an apostrophe before it, which tells a spreadsheet that it is text, and is read without it.
A text that begins with apostrophes and then like a formula gets one more, so that every text comes back as it was.
Numbers are written as they are. (OWASP, CSV injection.)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import pyarrow as pa

_FORMULA = re.compile("'*[=+@\t\r\n\uff1d\uff0b\uff0d\uff20-]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.I)

_Cell = TypeVar("_Cell")


def as_cell(value: _Cell) -> _Cell | str:
    """A value as it is written into a cell: a text that would be a formula with an apostrophe, anything else as is."""
    if not isinstance(value, str) or not _FORMULA.match(value) or _NUMBER.fullmatch(value):
        return value
    return f"'{value}"


def from_cell(text: str) -> str:
    """The text that `as_cell` wrote as this one, or that another program wrote."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def from_cells(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The texts of a column of cells, as `from_cell` gives each; null stays null.

    A dictionary-encoded column, all of whose chunks have the same dictionary, stays one.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        texts = [from_cells(pa.chunked_array([chunk.dictionary])).combine_chunks() for chunk in column.chunks[:1]]
        chunks = [pa.DictionaryArray.from_arrays(chunk.indices, *texts) for chunk in column.chunks]
        return pa.chunked_array(chunks, column.type)
    if not pc.any(pc.starts_with(column, "'")).as_py():
        return column
    return pa.chunked_array([[text and from_cell(text) for text in column.to_pylist()]], column.type)
