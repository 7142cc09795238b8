"""Data sets in known formats, and one's own: the flags of `raypaml shard FORMAT`, and what they ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from raypaml.cli import Parser, say
from raypaml.preparation.asked import Preparation
from raypaml.preparation.assemble import Cut, Method, Unlabelled, assemble
from raypaml.preparation.formats.added_images import check_pictures, grown_source
from raypaml.preparation.formats.class_folders import read_folder
from raypaml.preparation.formats.coco import read_coco
from raypaml.preparation.formats.common import Source
from raypaml.preparation.formats.cub import read_cub
from raypaml.preparation.formats.folder_layouts import LAYOUTS
from raypaml.preparation.formats.nuswide import read_nuswide
from raypaml.preparation.formats.table_flags import add_table_flags, table_source
from raypaml.preparation.formats.voc import read_voc
from raypaml.preparation.growing import Earlier, open_earlier
from raypaml.preparation.hiding import Hiding
from raypaml.preparation.label_overview import CHECKS, check_names, overview, positives_of
from raypaml.preparation.sharding_flags import add_sharding_flags, form_of, made_with, preparation

FOLDERS: dict[str, tuple[str, Callable[[Path], Source]]] = {
    "voc": ("PASCAL VOC 2007 or 2012, from the devkit as released", read_voc),
    "coco": ("MS COCO, from its instances_*.json, or an export in its form", read_coco),
    "nuswide": ("NUS-WIDE, from its official lists or the re-crawled arrays", read_nuswide),
    "cub": ("CUB-200-2011, its attributes as classes", read_cub),
}
"""Formats that are a folder: what each is, and its reader. A new one is a reader and a line here."""
PUBLISHED = tuple(FOLDERS)
"""Formats that papers use: they are cut into splits as published, and their labels are as they are."""
FORMATS = {
    "table": "your own labels: a CSV or Parquet table, or an export of Label Studio, CVAT or FiftyOne",
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
    add("--grow", type=Path, metavar="DIR", help="a prepared data set; --out becomes a version of it with more images")
    add("--split-seed", type=int, default=1200, metavar="N", help="of both [1200, the published split]")
    add("--split-method", choices=get_args(Method), help="of both [stratified by class; random for published formats]")
    add("--allow", default="", metavar="CHECK,..", help=f"use labels that look wrong: {', '.join(CHECKS)}")
    if kind in ("", "table"):
        add_table_flags(parser)
    if kind in ("", "folder"):
        add(
            "--layout",
            choices=tuple(LAYOUTS),
            default="",
            help="what folders name, from the outermost; split: SPLIT/CLASS/IMAGE; any: nothing [as they are named]",
        )
    add_sharding_flags(parser)


def _source_of(flags: Any, is_of_before: bool) -> Source:
    """The labelled images."""
    if not flags.format or not flags.path:
        raise ValueError(f"give a format ({', '.join(FORMATS)}) and where it is; --help says more")
    if flags.format == "table":
        return table_source(flags, is_of_before=is_of_before)
    if not flags.path.is_dir() and not (flags.format == "coco" and flags.path.is_file()):
        raise ValueError(f"{flags.path}: no such folder; give the one that holds the {flags.format} files")
    if flags.format == "folder":
        return read_folder(flags.path, flags.layout)
    _, read = FOLDERS[flags.format]
    return read(flags.path)


def _is_own(flags: Any, source: Source) -> bool:
    return flags.format not in PUBLISHED or source.is_export


def _split_method(flags: Any, source: Source, begun: Mapping[str, Any]) -> Method:
    """How splits are cut: as asked, else as the data set in the folder was begun, else as its format is cut."""
    if flags.split_method:
        return cast("Method", flags.split_method)
    if begun:
        return cast("Method", begun.get("split_method", "random"))
    return "stratified" if _is_own(flags, source) else "random"


def _check_classes(source: Source, earlier: Earlier | None, allow: str) -> None:
    """Refuse classes that look wrong, of a data set that grows together with those before."""
    images = positives_of(source)
    images += earlier.positives(len(images)) if earlier else 0
    allowed = [name.strip() for name in allow.split(",") if name.strip()]
    check_names(source.classes.class_ids, images, allowed, from_text=source.names_from_text)


def format_preparation(flags: Any) -> Preparation:
    """What the flags ask for; says what the labels look like, and refuses what looks wrong in one's own.

    What was begun before the way of cutting was recorded goes on as it began: cut at random, labels of a table between
    blanks and no column of groups unless a flag says so, names as they are, training images without a shown label left
    out.
    """
    begun = made_with(flags.out)
    is_of_before = bool(begun) and "split_method" not in begun
    source = _source_of(flags, is_of_before)
    method, says_splits = _split_method(flags, source, begun), source.says_splits
    hiding = Hiding.parse(flags.hide, flags.hide_seed)
    cut = Cut(flags.validation, flags.test, flags.split_seed, method)
    images = flags.images or str(source.images)
    earlier = open_earlier(flags.grow, flags.out) if flags.grow else None
    before = begun or (earlier.parameters if earlier else {})
    if earlier:
        check_pictures(source, earlier, images, form_of(flags, before))
        source, earlier = grown_source(source, earlier, {"test": cut.test, "validation": cut.validation}, say)
    if _is_own(flags, source) and not is_of_before:
        _check_classes(source, earlier, flags.allow)
    unlabelled: Unlabelled = "left out" if before and before.get("unlabelled") != "kept" else "kept"
    labels = assemble(source, hiding, cut, earlier.keys() if earlier else (), unlabelled=unlabelled)
    for line in overview(source, labels):
        say(line)
    settings = {"hide": flags.hide, "hide_seed": flags.hide_seed, "split_seed": flags.split_seed}
    if method != "random" or not is_of_before:
        settings |= {"split_method": method}
    if unlabelled == "kept":
        settings |= {"unlabelled": unlabelled}
    asked = preparation(
        flags,
        source=flags.format,
        settings=settings,
        classes=source.classes,
        read_split=labels.__getitem__,
        images=images,
        official={},
        before=before,
    )
    return replace(asked, earlier=earlier, says_splits=says_splits)
