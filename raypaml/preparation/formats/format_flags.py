"""Data sets in known formats, and one's own: the flags of `raypaml shard FORMAT`, and what they ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from raypaml.cli import Parser
from raypaml.preparation.assemble import Cut, assemble
from raypaml.preparation.formats.class_folders import LAYOUTS, read_folder
from raypaml.preparation.formats.coco import read_coco
from raypaml.preparation.formats.common import Source, text_lines
from raypaml.preparation.formats.cub import read_cub
from raypaml.preparation.formats.nuswide import read_nuswide
from raypaml.preparation.formats.own_labels import TableForm, read_table
from raypaml.preparation.formats.voc import read_voc
from raypaml.preparation.hiding import Hiding
from raypaml.preparation.pipeline import Preparation
from raypaml.preparation.sharding_flags import add_sharding_flags, preparation

FOLDERS: dict[str, tuple[str, Callable[[Path], Source]]] = {
    "voc": ("PASCAL VOC 2007 or 2012, from the devkit as released", read_voc),
    "coco": ("MS COCO, from its instances_*.json", read_coco),
    "nuswide": ("NUS-WIDE, from its official lists or the re-crawled arrays", read_nuswide),
    "cub": ("CUB-200-2011, its attributes as classes", read_cub),
}
"""Formats that are a folder: what each is, and its reader. A new one is a reader and a line here."""
FORMATS = {
    "table": "your own labels: a CSV or Parquet table with a row an image",
    "folder": "your own images in folders CLASS/IMAGE or SPLIT/CLASS/IMAGE",
    **{name: about for name, (about, _) in FOLDERS.items()},
}
"""What each format is."""


def add_format_flags(parser: Parser, kind: str = "") -> None:
    """Add where the files are, which labels are hidden, how the splits are cut.

    Args:
        kind: the format, whose own flags are added too; empty: those of every format.
    """
    add = parser.add_argument
    add("path", nargs="?", type=Path, help="the folder as released, or the table")
    add("--images", metavar="DIR_OR_URL", help="folder of the images [where the format has them; a table: its folder]")
    add("--hide", default="none", metavar="KIND", help="single-positive, keep:0.3, verified:1:4, long-tailed:10 [none]")
    add("--hide-seed", type=int, default=1200, metavar="N", help="[1200, the published draw]")
    add("--validation", type=float, default=0.2, metavar="X", help="share of train cut off, if there is none [0.2]")
    add("--test", type=float, default=0.2, metavar="X", help="share of all images cut off, if there is no test [0.2]")
    add("--split-seed", type=int, default=1200, metavar="N", help="of both [1200, the published split]")
    if kind in ("", "table"):
        _add_table_flags(parser)
    if kind in ("", "folder"):
        add(
            "--layout",
            choices=LAYOUTS,
            default="",
            help="of a folder: CLASS/IMAGE or SPLIT/CLASS/IMAGE [as it is named]",
        )
    add_sharding_flags(parser)


def _add_table_flags(parser: Parser) -> None:
    add = parser.add_argument
    add("--classes", type=Path, metavar="FILE", help="of a table: classes, one per line [all that occur, sorted]")
    add("--separator", default=" ", metavar="TEXT", help="of a table: between the labels of an image [a space]")
    add("--complete", action="store_true", help="of a table: what is not listed is negative [it is unobserved]")
    add("--boxes", type=Path, metavar="FILE", help="of a table: CSV of image,class,xmin,ymin,xmax,ymax in pixels")


def _source_of(flags: Any) -> Source:
    """The labelled images."""
    if not flags.format or not flags.path:
        raise ValueError(f"give a format ({', '.join(FORMATS)}) and where it is; --help says more")
    if flags.format == "table":
        form = TableForm(flags.separator, flags.complete)
        class_ids = [line.strip() for line in text_lines(flags.classes) if line.strip()] if flags.classes else ()
        return read_table(flags.path, form, boxes=flags.boxes, class_ids=class_ids)
    if not flags.path.is_dir():
        raise ValueError(f"{flags.path}: no such folder; give the one that holds the {flags.format} files")
    if flags.format == "folder":
        return read_folder(flags.path, flags.layout)
    _, read = FOLDERS[flags.format]
    return read(flags.path)


def format_preparation(flags: Any) -> Preparation:
    """What the flags ask for."""
    source = _source_of(flags)
    hiding = Hiding.parse(flags.hide, flags.hide_seed)
    cut = Cut(flags.validation, flags.test, flags.split_seed)
    labels = assemble(source, hiding, cut)
    return preparation(
        flags,
        source=flags.format,
        settings={"hide": flags.hide, "hide_seed": flags.hide_seed, "split_seed": flags.split_seed},
        classes=source.classes,
        read_split=labels.__getitem__,
        images=flags.images or str(source.images),
        official={},
    )
