"""The flags of `raypaml shard table`, and the source that they describe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from raypaml.cli import Parser
from raypaml.labels import VOCABULARY, Vocabulary
from raypaml.preparation.formats.class_columns import Uncertain
from raypaml.preparation.formats.common import Source, class_list, classes_of
from raypaml.preparation.formats.label_cells import BLANK
from raypaml.preparation.formats.own_labels import COLUMN_ROLES, TableForm, read_table
from raypaml.preparation.formats.table_file import Dialect

_ROLES = {
    "image": "files of the images; in Label Studio's JSON, the field of data that names them",
    "labels": "names of the positive classes; in an export, the question or field",
    "negatives": "names of the classes that were looked for and not found",
    "split": "split of the image, such as train, val or test",
    "group": "group of the image, such as near-duplicates, which no cut divides",
}


def add_table_flags(parser: Parser) -> None:
    """Adds how a table is written, and the roles of its columns."""
    add = parser.add_argument
    about = "classes of a table, one a line, or a vocabulary.csv [all that occur, sorted]"
    add("--classes", type=Path, metavar="FILE", help=about)
    about = "what separates the labels in a table's cells; none if a cell is one label [what the cells show]"
    add("--separator", default="", metavar="TEXT", help=about)
    about = "classes that a table does not list for an image are negative [they are unobserved]"
    add("--complete", action="store_true", help=about)
    about = "boxes for the images of a table: a CSV of image,class,xmin,ymin,xmax,ymax in pixels"
    add("--boxes", type=Path, metavar="FILE", help=about)
    about = "what separates the columns of a table [comma, semicolon or tab]"
    add("--delimiter", default="", metavar="SIGN", help=about)
    about = "encoding of a table, such as cp1252 [UTF-8, or that of its byte order mark]"
    add("--encoding", default="", metavar="NAME", help=about)
    for role, about in _ROLES.items():
        add(f"--{role}-column", default="", metavar="NAME", help=f"column of a table with the {about} [{role}]")
    about = "columns of a table that are classes and hold 1, 0, blank or -1 [all, if there is no column of labels]"
    add("--class-columns", default="", metavar="A,B|A..Z", help=about)
    about = "what -1 means in columns that are classes [unobserved]"
    add("--uncertain", choices=get_args(Uncertain)[1:], default="", help=about)
    about = "text that is cut from the front of the image names in a table"
    add("--path-prefix", default="", metavar="TEXT", help=about)


@dataclass(frozen=True, kw_only=True)
class TableRequest:
    """How the user says that a table is written; the fields are the flags of `add_table_flags`."""

    classes: Path | None = None
    """File of the classes, or a vocabulary.csv; None for all that occur."""
    separator: str = ""
    """What separates the labels of a cell; `none` where a cell is one label, "" for what the cells show."""
    complete: bool = False
    """Whether classes that are not listed for an image are negative."""
    boxes: Path | None = None
    """Table of boxes in pixels."""
    delimiter: str = ""
    """What separates the columns; "" for what the table shows."""
    encoding: str = ""
    """Encoding of the text; "" for UTF-8, or that of the byte order mark."""
    image_column: str = ""
    """Name of the column of the images; "" for `image`, and the same for the other roles."""
    labels_column: str = ""
    negatives_column: str = ""
    split_column: str = ""
    group_column: str = ""
    class_columns: str = ""
    """Names or ranges A..Z of the columns that are classes, with commas between."""
    uncertain: Uncertain = ""
    """What -1 means in columns that are classes."""
    path_prefix: str = ""
    """Text that is cut from the front of the image names."""


def table_source(path: Path, images: str, grown: Path | None, table: TableRequest, *, is_old: bool = False) -> Source:
    """Reads the labelled images of a table.

    Args:
        path: the table, or the export of a labelling tool.
        images: folder or address of the images; "" for the folder of the table.
        grown: folder of the data set that grows by these images; None for a new data set.
        table: how the table is written.
        is_old: whether its data set was begun by an early version, in which blanks separated labels unless a flag said
            otherwise, and no column held groups.
    """
    columns = {role: getattr(table, f"{role}_column") for role in COLUMN_ROLES}
    before = grown / VOCABULARY if grown else None
    form = TableForm(
        separator=table.separator or BLANK * is_old,
        complete=table.complete,
        columns=columns | {"group": columns["group"] or "none" * is_old},
        class_columns=tuple(name.strip() for name in table.class_columns.split(",") if name.strip()),
        uncertain=table.uncertain,
        dialect=Dialect(table.delimiter, table.encoding),
        images=images,
        prefix=table.path_prefix,
        known=Vocabulary.read(before).class_ids if before and before.is_file() else (),
    )
    if not table.classes:
        return read_table(path, form, boxes=table.boxes)
    class_ids, names = class_list(table.classes)
    source = read_table(path, form, boxes=table.boxes, class_ids=class_ids)
    return replace(source, classes=classes_of(class_ids, names))
