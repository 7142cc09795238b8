"""Reads the user's own labels: a table of images as CSV or Parquet, or the export of a labelling tool."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypaml.labels import NEGATIVE, POSITIVE, UNOBSERVED
from raypaml.preparation.findings import Findings
from raypaml.preparation.formats.class_columns import Uncertain, class_columns, read_class_columns
from raypaml.preparation.formats.common import Source, box_of
from raypaml.preparation.formats.exports import read_export
from raypaml.preparation.formats.image_names import check_prefix, relative_names
from raypaml.preparation.formats.label_cells import label_lists
from raypaml.preparation.formats.listed_images import ListedImages, NamedBoxes, source_of
from raypaml.preparation.formats.table_file import (
    Dialect,
    column_named,
    columns_shown,
    is_no_text,
    json_rows,
    load_table,
    read_json,
)
from raypaml.preparation.requests import NamedBox

BOX_COLUMNS = ("image", "class", "xmin", "ymin", "xmax", "ymax")
COLUMN_ROLES = ("image", "labels", "negatives", "split", "group")
"""The roles of columns, which are also their names unless a flag gives another name."""
EXPORTS = (".json", ".xml")
"""Endings of the files that labelling tools write."""


@dataclass(frozen=True)
class TableForm:
    """How a table holds its labels."""

    separator: str = ""
    """What separates the labels in a cell; `none` where a cell is one label; empty where classes or cells show it."""
    complete: bool = False
    """Whether classes that are not listed are negative; otherwise they are unobserved."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names of columns by role, for columns that are not called by their role; `none` where a role has no column."""
    class_columns: tuple[str, ...] = ()
    """Names or ranges `A..Z` of columns that are classes and hold 1, 0, blank or -1."""
    uncertain: Uncertain = ""
    """What -1 means in columns of classes."""
    dialect: Dialect = field(default_factory=Dialect)
    """How the text of a table is written."""
    images: str = ""
    """Folder or address of the images; empty is the folder of the table."""
    prefix: str = ""
    """Text that is cut from the front of names of images."""
    known: tuple[str, ...] = ()
    """Classes of the data set that grows: they help to show what separates labels; the table may hold others."""


def read_table(path: Path, form: TableForm, *, boxes: Path | None = None, class_ids: Sequence[str] = ()) -> Source:
    """Reads a table with a column `image`, and either `labels` or one column a class; or reads an export.

    `labels` and `negatives` hold names between separators, or lists. `split` and `group` are optional. Rows of the same
    image are merged, see `source_of`.

    Args:
        path: a CSV, Parquet, JSON with a list of rows, or the JSON or XML of a labelling tool.
        form: how the table holds its labels.
        boxes: a table with the columns image, class, xmin, ymin, xmax, ymax in pixels.
        class_ids: the classes, in order; by default all that occur, sorted.

    Raises:
        ValueError: the table is wrong; the message names file and column or row.
    """
    images = form.images or str(path.parent)
    suffix = path.suffix.lower()
    content = read_json(path) if suffix == ".json" else None
    rows = json_rows(content)
    if suffix in EXPORTS and not rows:
        _refuse(path, "is an export and no table of rows", form, ("separator", "dialect", "class_columns", "uncertain"))
        roles = [role for role in ("negatives", "split", "group") if form.columns.get(role)]
        if roles:
            raise ValueError(f"{path}: is an export and no table of rows; leave out --{roles[0]}-column")
        listed = read_export(path, content, images, {role: form.columns.get(role, "") for role in COLUMN_ROLES})
        listed.complete = form.complete
    else:
        listed = _read_rows(path, form, class_ids, rows)
    try:
        check_prefix(listed.files, form.prefix)
        listed.files = relative_names(listed.files, images, form.prefix)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if boxes:
        listed.boxes = _boxes(boxes, form)
    return source_of(listed, path, class_ids)


def _refuse(path: Path, what: str, form: TableForm, names: Sequence[str]) -> None:
    """Raises ValueError where the form sets a field that has no meaning for this file."""
    flags = {"dialect": "--delimiter and --encoding", "class_columns": "--class-columns"}
    given = [flags.get(name, f"--{name}") for name in names if getattr(form, name) != getattr(TableForm(), name)]
    if given:
        raise ValueError(f"{path}: {what}; leave out {', '.join(given)}")


def _read_rows(
    path: Path, form: TableForm, class_ids: Sequence[str], rows: Sequence[dict[str, object]]
) -> ListedImages:
    if path.suffix.lower() in (".parquet", ".json"):
        _refuse(path, "is no text", form, ("dialect",))
    table = load_table(path, [form.columns.get("image") or "image"], form.dialect, rows=rows)
    columns = _columns(table, path, form)
    findings, from_text = Findings(), frozenset[str]()
    if form.class_columns or "labels" not in columns:
        _refuse(path, "has one column a class", form, ("separator",))
        taken = [name for role, name in columns.items() if role != "labels"]
        names = class_columns(table, path, form.class_columns, taken)
        labels = read_class_columns(table, path, names, form.uncertain, form.complete, findings)
        lists = {"labels": _lists(labels == POSITIVE, names), "negatives": _lists(labels == NEGATIVE, names)}
        about, complete = "one column a class", not (labels == UNOBSERVED).any()
    else:
        _refuse(path, "has a column of names", form, ("uncertain",))
        names, complete = [], form.complete
        cells: dict[str, pa.Array] = {
            role: _cells(table, path, columns[role]) for role in ("labels", "negatives") if role in columns
        }
        try:
            lists, about, from_text = label_lists(
                cells, form.separator, class_ids or form.known, is_closed=bool(class_ids)
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    read = {*names, *(name for role, name in columns.items() if not names or role not in ("labels", "negatives"))}
    unread = [name for name in table.column_names if name and name not in read]
    said = [about, f"columns not read: {columns_shown(unread)}" if unread else ""]
    said.append(f"images of one {columns['group']} stay together" if "group" in columns else "")
    return ListedImages(
        files=_texts(table, path, columns["image"]),
        labels=lists["labels"],
        negatives=lists.get("negatives"),
        splits=_texts(table, path, columns["split"]) if "split" in columns else None,
        groups=_texts(table, path, columns["group"]) if "group" in columns else None,
        complete=complete,
        names_from_text=from_text,
        about="; ".join(filter(None, said)),
        findings=findings,
    )


def _columns(table: pa.Table, path: Path, form: TableForm) -> dict[str, str]:
    """Returns the columns by role, for the roles that the table has."""
    columns: dict[str, str] = {}
    for role in COLUMN_ROLES:
        given = form.columns.get(role, "")
        name = column_named(table, path, given or role, f"--{role}-column", given=bool(given))
        if name in columns.values():
            raise ValueError(
                f"{path}: column {name} is named as {role} and in another role; give each role a column of its own"
            )
        columns |= {role: name} if name else {}
    return columns


def _cells(table: pa.Table, path: Path, name: str) -> pa.Array:
    """Returns a column of text, or of lists of text."""
    column = table[name].combine_chunks()
    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        return _text(column, path, name)
    _text(column.flatten(), path, name)
    return column.cast(pa.list_(pa.string()))


def _texts(table: pa.Table, path: Path, name: str) -> list[str]:
    return [text.strip() for text in _text(table[name], path, name).to_pylist()]


def _text(column: pa.ChunkedArray | pa.Array, path: Path, name: str) -> pa.ChunkedArray | pa.Array:
    """Returns a column as text, empty where a cell is null; raises ValueError unless it holds text or numbers."""
    values = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if is_no_text(values):
        raise ValueError(
            f"{path}: column {name} holds {str(values)[:60]}; expected text, numbers or, for labels, a list of names. "
            "Pictures inside tables are not read: write them as files, and their names into the table"
        )
    if pa.types.is_floating(values):  # pandas writes NaN for what is missing
        column = pc.if_else(pc.is_nan(column), None, column)
    return pc.fill_null(column.cast(pa.string()), "")


def _lists(chosen: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], names: Sequence[str]) -> pa.Array:
    """Returns the names of the chosen columns of each row."""
    _, columns = np.nonzero(chosen)
    offsets = np.r_[0, np.cumsum(chosen.sum(axis=1))].astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(names, pa.string()).take(pa.array(columns)))


def _boxes(path: Path, form: TableForm) -> NamedBoxes:
    """Reads a table of boxes."""
    table = load_table(path, BOX_COLUMNS, form.dialect)
    columns = {
        name: _texts(table, path, column_named(table, path, name, "", given=False) or name) for name in BOX_COLUMNS
    }
    files = relative_names(columns["image"], form.images or str(path.parent), form.prefix)
    boxes = defaultdict[str, list[NamedBox]](list)
    for row, (file, name, *corners) in enumerate(zip(files, *list(columns.values())[1:], strict=True), start=1):
        boxes[file].append({"class": name, **box_of(corners, f"{path}: row {row}")})
    return boxes
