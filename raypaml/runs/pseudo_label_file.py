"""Reading and checking a file of pseudo labels, Parquet or CSV with the columns key, class and score.

Nothing is guessed: scores must lie between 0 and 1, and two scores of one entry must be equal. Rows that do not concern
the training split are left out, counted, and shown by examples. An entry without a row has no score, which is not the
same as a score of 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypaml.bounded import Unpacked, arrow_fault, check_rows
from raypaml.data.data_folder import DataFolder
from raypaml.data.label_forms import LabelForm
from raypaml.data.tars import key_and_suffix
from raypaml.labels import IntArray, Vocabulary, each_once
from raypaml.preparation.findings import Findings, some_of
from raypaml.preparation.formats.table_file import DELIMITERS, columns_shown, is_no_text, matching
from raypaml.spreadsheets import from_cells

_TEXT = pa.dictionary(pa.int32(), pa.string())
_MEMBER = re.compile(r"(?:.*/)?([^/]+\.tar)/(.+)", re.DOTALL)
"""The name that `raypaml predict` gives to an image in a shard."""
_NO_NUMBER = re.compile(r"Row #(\d+): CSV conversion error to double: invalid value '(.*)'", re.DOTALL)
"""Arrow's message about a cell that is no number; its rows include the header."""
_NO_TEXT = -2
_NAMED = 3
"""Most examples in a message."""
_HOW = 'losses/README.md, "Pseudo labels", says how to make one'


@dataclass(frozen=True)
class PseudoLabels:
    """The scores that a file gives entries of the training split."""

    cells: IntArray
    """[E] entries as numbers row x K + class, ascending."""
    scores: NDArray[np.float32]
    """[E] scores of these entries, 0..1."""
    about: str
    """What was read and what was skipped, for the user."""


def read_pseudo_labels(path: Path, name: str, data: DataFolder) -> PseudoLabels:
    """Read the scores of a file, for the training split of a data set.

    Args:
        path: the file on this machine, or a local copy of it.
        name: the file as it was given, for messages; a name that ends with .parquet is Parquet, any other CSV.
        data: the data set.

    Raises:
        ValueError: the file cannot be used; the message names the file, the row, the limit and the remedy.
    """
    try:
        table = _parquet(path, name) if name.partition("?")[0].lower().endswith(".parquet") else _csv(path, name)
        scores = np.asarray(table["score"].cast(pa.float64()).combine_chunks().fill_null(-1.0))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"pseudo_labels={name}: cannot be read: {arrow_fault(error)}; {_HOW}") from None
    given = np.asarray(pc.is_valid(table["score"].combine_chunks()))
    _check_scores(scores, given, name)
    skipped = Findings()
    rows, classes = _rows(table, data, skipped), _classes(table, data.vocabulary, name, skipped)
    skipped.add("rows without a score", int((~given).sum()))
    skipped.add(
        "rows with a score but without key or class", int((given & (np.minimum(rows, classes) == _NO_TEXT)).sum())
    )
    kept = given & (rows >= 0) & (classes >= 0)
    if not kept.any():
        index = data.splits["train"]
        examples = index.keys(np.arange(min(_NAMED, len(index))))
        raise ValueError(
            f"pseudo_labels={name}: none of its {len(kept):,} rows is about the training split of "
            f"{data.path}{_skipped_text(skipped)}; its keys are such as {some_of(examples)}"
        )
    cells = rows[kept] * len(data.vocabulary) + classes[kept]
    cells, values = _once(cells, scores[kept], name, data, skipped)
    return PseudoLabels(cells, values.astype(np.float32), _about(cells, data, skipped))


# --- The file ---------------------------------------------------------------------------------------------------------


def _parquet(path: Path, name: str) -> pa.Table:
    metadata = pq.read_metadata(path)
    check_rows(metadata.num_rows, path.stat().st_size, f"pseudo_labels={name}")
    names = metadata.schema.to_arrow_schema().names
    columns = _columns(names, name)
    table, read = pq.read_table(path, columns=list(columns.values())), {}
    for role, column in columns.items():
        kind = table.schema.field(column).type
        text = role != "score"
        kind = kind.value_type if text and pa.types.is_dictionary(kind) else kind
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        if (text and (is_no_text(kind) or pa.types.is_floating(kind))) or not (text or number):
            wanted = "text or whole numbers" if text else "numbers from 0 to 1"
            raise ValueError(f"pseudo_labels={name}: column {column} holds {str(kind)[:60]}; expected {wanted}")
        read[role] = table[column]
        if text:  # the same codes in all chunks
            coded = pa.types.is_dictionary(table[column].type)
            codes = table[column] if coded else table[column].cast(pa.string()).dictionary_encode()
            read[role] = codes.cast(_TEXT).unify_dictionaries()
    return pa.table(read)


def _csv(path: Path, name: str) -> pa.Table:
    with Unpacked(path, f"pseudo_labels={name}") as file:
        header = file.read(1 << 16).decode("utf-8-sig", errors="replace").partition("\n")[0]
    headers = {sign: [part.strip().strip('"') for part in header.rstrip("\r").split(sign)] for sign in DELIMITERS}
    sign = max(DELIMITERS, key=lambda sign: len(headers[sign]))
    columns = _columns(headers[sign], name)

    def read(*, use_threads: bool) -> pa.Table:
        with Unpacked(path, f"pseudo_labels={name}") as file:
            return pacsv.read_csv(
                file,
                read_options=pacsv.ReadOptions(column_names=headers[sign], skip_rows=1, use_threads=use_threads),
                parse_options=pacsv.ParseOptions(delimiter=sign),
                convert_options=pacsv.ConvertOptions(
                    include_columns=list(columns.values()),
                    column_types={name: pa.float64() if role == "score" else _TEXT for role, name in columns.items()},
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )

    try:
        table = read(use_threads=True)
    except pa.ArrowInvalid:
        table = _read_again(lambda: read(use_threads=False), name)
    table = table.rename_columns(list(columns)).unify_dictionaries()
    for place, role in enumerate(columns):
        if role != "score":
            table = table.set_column(place, role, from_cells(table[role]))
    return table


def _read_again(read: Callable[[], pa.Table], name: str) -> pa.Table:
    """Read once more with a single thread, whose error message names the row."""
    try:
        return read()
    except pa.ArrowInvalid as error:
        if not (cell := _NO_NUMBER.search(str(error))):
            raise
        raise ValueError(
            f"pseudo_labels={name}: score {cell[2]!r} in row {int(cell[1]) - 1:,} is no number; give one from 0 to 1, "
            "or leave the field empty where there is no score"
        ) from None


def _columns(names: Sequence[str], name: str) -> dict[str, str]:
    """The file's columns by role: key (or image, as `raypaml predict` calls it), class and score."""
    roles = ["key" if matching("key", names) or not matching("image", names) else "image", "class", "score"]
    matches = {role: matching(role, names) for role in roles}
    if missing := [role for role, columns in matches.items() if not columns]:
        raise ValueError(f"pseudo_labels={name}: no column {', '.join(missing)}; it has {columns_shown(names)}. {_HOW}")
    if twice := [role for role, columns in matches.items() if len(columns) > 1]:
        raise ValueError(f"pseudo_labels={name}: several columns are called {twice[0]}; rename all but one of them")
    return {role: columns[0] for role, columns in matches.items()}


def _check_scores(scores: NDArray[np.float64], given: NDArray[np.bool_], name: str) -> None:
    wrong = np.flatnonzero(given & ~((scores >= 0) & (scores <= 1)))  # NaN is neither
    if len(wrong):
        shown = ", ".join(f"{float(scores[row])} in row {row + 1:,}" for row in wrong[:_NAMED])
        raise ValueError(
            f"pseudo_labels={name}: {len(wrong):,} scores are not within 0 and 1, such as {shown}. Make probabilities "
            "of logits or similarities first, and leave out the rows of entries that have no score"
        )


# --- What its rows are about ------------------------------------------------------------------------------------------


def _mapped(column: pa.ChunkedArray, place_of: Callable[[pa.Array], IntArray]) -> tuple[IntArray, pa.Array, IntArray]:
    """Look up the text of every row.

    Returns:
        The place of each row's text, -1 for unknown texts and _NO_TEXT for rows without one; the distinct texts; and
        the places of these.
    """
    codes = np.asarray(pa.chunked_array([chunk.indices for chunk in column.chunks], pa.int32()).fill_null(-1))
    texts = column.chunk(0).dictionary if column.num_chunks else pa.array([], pa.string())
    places = np.append(place_of(texts), _NO_TEXT)  # the last one for rows without a text
    return places[codes], texts, places[:-1]


def _rows(table: pa.Table, data: DataFolder, skipped: Findings) -> IntArray:
    """The row of the index that each row of the file is about; negative where the training split has none."""
    index, role = data.splits["train"], table.column_names[0]
    form = LabelForm.from_index(index.tar_form, data.vocabulary.class_ids)
    shards = set(index.shards)

    def key_of(image: str | None) -> str | None:
        member = _MEMBER.fullmatch(image or "")
        return key_and_suffix(member[2], form)[0] if member and member[1] in shards else None

    def place_of(texts: pa.Array) -> IntArray:
        keys = texts if role == "key" else pa.array([key_of(text) for text in texts.to_pylist()], pa.string())
        places = pc.index_in(keys, value_set=index.key_column, skip_nulls=True)
        return np.asarray(places.fill_null(-1)).astype(np.int64)

    rows, texts, places = _mapped(table[role], place_of)
    what = "keys" if role == "key" else "pictures (TAR/KEY.jpg)"
    _note(f"rows of {what} that are not in the training split", rows, texts, places, skipped)
    return rows


def _classes(table: pa.Table, vocabulary: Vocabulary, name: str, skipped: Findings) -> IntArray:
    """The class of each row, by its id or else its name; negative where the vocabulary has none."""
    columns = {class_name: k for k, class_name in enumerate(vocabulary.names)} | vocabulary.index_of
    twice = {each for each, count in Counter(vocabulary.names).items() if count > 1} - set(vocabulary.index_of)
    classes, texts, places = _mapped(
        table["class"], lambda texts: np.array([columns.get(text, -1) for text in texts.to_pylist()], np.int64)
    )
    if ambiguous := sorted(twice & set(texts.to_pylist())):
        raise ValueError(f"pseudo_labels={name}: several classes are called {some_of(ambiguous)}; give their ids")
    _note("rows of classes that are not in the vocabulary", classes, texts, places, skipped)
    return classes


def _note(what: str, of_rows: IntArray, texts: pa.Array, places: IntArray, skipped: Findings) -> None:
    unknown = np.flatnonzero(places < 0)[:_NAMED]
    skipped.add(what, int((of_rows == -1).sum()), [repr(text) for text in texts.take(pa.array(unknown)).to_pylist()])


def _once(
    cells: IntArray, scores: NDArray[np.float64], name: str, data: DataFolder, skipped: Findings
) -> tuple[IntArray, NDArray[np.float64]]:
    """Sort the entries and drop repeated ones; ValueError where an entry has two different scores."""
    order = np.argsort(cells, kind="stable")
    cells, scores = cells[order], scores[order]
    again = np.r_[False, cells[1:] == cells[:-1]]
    differ = np.flatnonzero(again & (scores != np.r_[0.0, scores[:-1]]))
    if len(differ):
        row, k = divmod(int(cells[differ[0]]), len(data.vocabulary))
        key = data.splits["train"].keys(np.array([row]))[0]
        two = f"{float(scores[differ[0] - 1])} and {float(scores[differ[0]])}"
        raise ValueError(
            f"pseudo_labels={name}: {len(differ):,} entries have two scores, such as key {key}, class "
            f"{data.vocabulary.class_ids[k]}: {two}; keep one of them"
        )
    skipped.add("rows that are there twice", int(again.sum()))
    return cells[~again], scores[~again]


# --- What is said of it -----------------------------------------------------------------------------------------------


def _about(cells: IntArray, data: DataFolder, skipped: Findings) -> str:
    index, num_classes = data.splits["train"], len(data.vocabulary)
    images, classes = len(each_once(cells // num_classes)), len(each_once(cells % num_classes))
    none = len(index) - images
    return (
        f"{len(cells):,} scores, of {images:,} of {len(index):,} training images and {classes:,} of {num_classes:,} "
        f"classes{f'; {none:,} images have none' if none else ''}{_skipped_text(skipped)}"
    )


def _skipped_text(skipped: Findings) -> str:
    parts = [
        f"{count:,} {what}" + (f" (such as {', '.join(skipped.examples[what])})" if skipped.examples.get(what) else "")
        for what, count in skipped.counts.items()
        if count
    ]
    return f"; skipped: {', '.join(parts)}" if parts else ""
