"""Reads tables with one column a class, such as CheXpert's: 1 positive, 0 negative, blank unobserved, -1 uncertain."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED
from raypaml.preparation.findings import Findings
from raypaml.preparation.formats.table_file import columns_shown, is_no_text, matching

Uncertain = Literal["", "unobserved", "negative", "positive"]
"""What uncertain labels become: U-Ignore, U-Zeros and U-Ones of CheXpert (J. Irvin et al., AAAI 2019). Empty means
unobserved; but where no label is 0, so that -1 may mean negative, the user is asked."""
_UNCERTAIN = UNOBSERVED - 1
VALUES = {
    **dict.fromkeys(("1", "1.0", "true"), POSITIVE),
    **dict.fromkeys(("0", "0.0", "false"), NEGATIVE),
    **dict.fromkeys(("", "nan"), UNOBSERVED),
    **dict.fromkeys(("-1", "-1.0", "u", "uncertain"), _UNCERTAIN),
}
"""The meaning of each value that a cell may hold; upper and lower case do not matter."""
_SELDOM_CLASSES = re.compile(
    r"label|class|class(?:e|id)|category|categorie|target|fold|kfold|split|subset|set|part|partition|id|index|idx|group"
    r"|difficult|verified|flag|positive|negative|gt|groundtruth|tag|name|count|holdout"
    r"|(?:is|in|for|use)?(?:training|train|validation|valid|val|dev|testing|test)(?:set|split|ing)?"
)
"""Matches names of columns, reduced to their letters, that may hold 1 and 0 without being a class."""
_SHOWN = "1, 0, blank, and -1 or 'uncertain'"


def class_columns(table: pa.Table, path: Path, asked: Sequence[str], others: Sequence[str]) -> list[str]:
    """Returns the columns that are classes.

    Args:
        table: the table.
        path: its file, for messages.
        asked: names, or ranges such as `Cardiomegaly..Edema` in the order of the table; empty takes all columns without
            another role, each of which must then hold labels.
        others: columns that have another role.

    Raises:
        ValueError: a column does not exist, or columns hold no labels.
    """
    names = [name for one in asked for name in _asked(table.column_names, path, one)]
    names = names or [name for name in table.column_names if name and name not in others]
    twice = [name for name, count in Counter(names).items() if count > 1 or table.column_names.count(name) > 1]
    if twice:
        raise ValueError(
            f"{path}: columns of classes that exist twice or are named twice: {columns_shown(twice)}; keep one"
        )
    if asked:
        return names
    strange = {name: value for name in names if (value := _strange(_texts(table[name]))) is not None}
    if strange or not names:
        such = "; ".join(f"{columns_shown([name])} holds {value[:40]!r}" for name, value in list(strange.items())[:3])
        raise ValueError(
            f"{path}: no column labels, and not all others are classes with {_SHOWN} ({such or 'there is none'}). "
            "Give --labels-column NAME for a column of names, or --class-columns A,B or A..Z for one column a class"
        )
    doubtful = [name for name in names if _is_seldom_class(name)]
    if doubtful:
        raise ValueError(
            f"{path}: columns with 1 or 0 whose names may be of no class: {columns_shown(doubtful)}. Name the columns "
            "that are classes by --class-columns A,B or A..Z (others are not read), or the column that holds names or "
            "numbers of classes by --labels-column NAME"
        )
    return names


def _is_seldom_class(name: str) -> bool:
    """Says whether a column of this name may hold 1 and 0 without being a class."""
    letters = "".join(filter(str.isalpha, name.casefold()))
    return any(_SELDOM_CLASSES.fullmatch(word) for word in (letters, letters.removesuffix("s")))


def _asked(names: Sequence[str], path: Path, one: str) -> list[str]:
    """Returns the columns that one name or range of --class-columns means."""
    ends = [matching(end, names) for end in one.split("..")]
    if len(ends) > 2 or any(len(end) != 1 for end in ends):
        raise ValueError(f"{path}: --class-columns {one}: no such column, or several; it has {columns_shown(names)}")
    first, last = names.index(ends[0][0]), names.index(ends[-1][0])
    if last < first:
        raise ValueError(f"{path}: --class-columns {one}: {ends[-1][0]} comes before {ends[0][0]}; give FIRST..LAST")
    return list(names[first : last + 1])


def _texts(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """Returns the cells as text; for a column that holds no text, its type alone, which is no label."""
    if is_no_text(column.type):
        return pa.array([str(column.type)]).dictionary_encode()
    texts = pc.fill_null(column.cast(pa.string()).combine_chunks(), "")
    return pc.utf8_lower(pc.utf8_trim_whitespace(texts)).dictionary_encode()


def _strange(coded: pa.DictionaryArray) -> str | None:
    """Returns the first value that is no label, None where all are labels."""
    return next((value for value in coded.dictionary.to_pylist() if value not in VALUES), None)


def read_class_columns(
    table: pa.Table, path: Path, names: Sequence[str], uncertain: Uncertain, complete: bool, findings: Findings
) -> NDArray[np.int8]:
    """Returns the labels of all rows, [rows, K] in {1 positive, 0 negative, -1 unobserved}.

    Args:
        table: the table.
        path: its file, for messages.
        names: the columns that are classes, from `class_columns`.
        uncertain: what uncertain labels become.
        complete: whether blanks are negative; otherwise they are unobserved.
        findings: takes the count of uncertain labels.

    Raises:
        ValueError: a cell holds something else, or -1 may mean negative.
    """
    if uncertain not in get_args(Uncertain):
        raise ValueError(f"--uncertain {uncertain}: give unobserved, negative or positive")
    labels = np.stack([_column(table, path, name) for name in names], axis=1)
    doubtful = labels == _UNCERTAIN
    if doubtful.any() and not uncertain and not (labels == NEGATIVE).any():
        raise ValueError(
            f"{path}: the columns of classes hold -1 and never 0; give --uncertain negative where -1 is that, or "
            "--uncertain unobserved"
        )
    labels[(labels == UNOBSERVED) & complete] = NEGATIVE
    meaning = {"negative": NEGATIVE, "positive": POSITIVE}.get(uncertain, UNOBSERVED)
    labels[doubtful] = meaning
    word = uncertain or "unobserved"
    rows = np.flatnonzero(doubtful.any(axis=1))[:3]
    findings.add(f"uncertain labels, taken as {word}", doubtful.sum(), [f"row {row + 1}" for row in rows])
    return labels


def _column(table: pa.Table, path: Path, name: str) -> NDArray[np.int8]:
    coded = _texts(table[name])
    strange = _strange(coded)
    if strange is not None:
        raise ValueError(f"{path}: column {name!r} holds {strange!r}; a column of a class holds {_SHOWN}")
    values = np.array([VALUES[value] for value in coded.dictionary.to_pylist()], np.int8)
    numbers: NDArray[np.int32] = coded.indices.to_numpy(zero_copy_only=False)
    return values[numbers]
