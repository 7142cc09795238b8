"""The flags of `raypaml shard table`, and the source that they ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from raypaml.cli import Parser
from raypaml.data.data_folder import VOCABULARY
from raypaml.labels import Vocabulary
from raypaml.preparation.formats.class_columns import Uncertain
from raypaml.preparation.formats.common import Source, class_list, classes_of
from raypaml.preparation.formats.label_cells import BLANK
from raypaml.preparation.formats.own_labels import COLUMN_ROLES, TableForm, read_table
from raypaml.preparation.formats.table_file import Dialect

_ROLES = {
    "image": "files of the images; of Label Studio's JSON: the field of data",
    "labels": "names of the positive classes; of an export: the question or field",
    "negatives": "names of classes that were looked for and not found",
    "split": "train, val, test, ...",
    "group": "near-duplicates and the like, which no cut divides",
}


def add_table_flags(parser: Parser) -> None:
    """Add how a table is written, and which of its columns are what."""
    add = parser.add_argument
    add(
        "--classes",
        type=Path,
        metavar="FILE",
        help="of a table: classes, one per line, or a vocabulary.csv [all, sorted]",
    )
    add("--separator", default="", metavar="TEXT", help="of a table: between labels, or none [what its cells show]")
    add("--complete", action="store_true", help="of a table: what is not listed is negative [it is unobserved]")
    add("--boxes", type=Path, metavar="FILE", help="of a table: CSV of image,class,xmin,ymin,xmax,ymax in pixels")
    add("--delimiter", default="", metavar="SIGN", help="of a table: between columns [comma, semicolon or tab]")
    add("--encoding", default="", metavar="NAME", help="of a table: such as cp1252 [UTF-8, or as its first bytes say]")
    for role, about in _ROLES.items():
        add(f"--{role}-column", default="", metavar="NAME", help=f"of a table: {about} [{role}]")
    add("--class-columns", default="", metavar="A,B|A..Z", help="of a table: columns of classes, with 1, 0, blank, -1")
    add("--uncertain", choices=get_args(Uncertain)[1:], default="", help="of a table: what -1 means [unobserved]")
    add("--path-prefix", default="", metavar="TEXT", help="of a table: cut from the front of images' names")


def table_source(flags: Any, *, is_of_before: bool = False) -> Source:
    """The labelled images of a table.

    Args:
        flags: those of `add_table_flags`, with `path` and `images`.
        is_of_before: its data set was begun when labels were between blanks unless a flag said otherwise, and no column
            was one of groups.
    """
    columns = {role: getattr(flags, f"{role}_column") for role in COLUMN_ROLES}
    before = flags.grow / VOCABULARY if flags.grow else None
    form = TableForm(
        separator=flags.separator or BLANK * is_of_before,
        complete=flags.complete,
        columns=columns | {"group": columns["group"] or "none" * is_of_before},
        class_columns=tuple(name.strip() for name in flags.class_columns.split(",") if name.strip()),
        uncertain=flags.uncertain,
        dialect=Dialect(flags.delimiter, flags.encoding),
        images=flags.images or "",
        prefix=flags.path_prefix,
        known=Vocabulary.read(before).class_ids if before and before.is_file() else (),
    )
    if not flags.classes:
        return read_table(flags.path, form, boxes=flags.boxes)
    class_ids, names = class_list(flags.classes)
    source = read_table(flags.path, form, boxes=flags.boxes, class_ids=class_ids)
    return replace(source, classes=classes_of(class_ids, names))
