"""The flags of `raypaml shard FORMAT`, for published data sets and the user's own, and the preparation they ask for."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast, get_args

from raypaml.bounds import between
from raypaml.cli import Parser, requested, say
from raypaml.preparation.assemble import Cut, Method, Unlabelled, assemble
from raypaml.preparation.formats.added_images import check_pictures, grown_source
from raypaml.preparation.formats.class_folders import read_folder
from raypaml.preparation.formats.coco import read_coco
from raypaml.preparation.formats.common import Source
from raypaml.preparation.formats.cub import read_cub
from raypaml.preparation.formats.folder_layouts import LAYOUTS, Layout
from raypaml.preparation.formats.nuswide import read_nuswide
from raypaml.preparation.formats.table_flags import TableRequest, add_table_flags, table_source
from raypaml.preparation.formats.voc import read_voc
from raypaml.preparation.growing import open_earlier
from raypaml.preparation.hiding import Hiding
from raypaml.preparation.label_overview import CHECKS, check_names, overview, positives_of
from raypaml.preparation.preparation_settings import Preparation
from raypaml.preparation.requests import Parameters
from raypaml.preparation.sharding_flags import (
    ShardingRequest,
    add_sharding_flags,
    form_of,
    made_with,
    preparation,
)

FOLDERS: dict[str, tuple[str, Callable[[Path], Source]]] = {
    "voc": ("PASCAL VOC 2007 or 2012, from the devkit as released", read_voc),
    "coco": ("MS COCO, from its instances_*.json, or an export in its format", read_coco),
    "nuswide": ("NUS-WIDE, from its official lists or the re-crawled arrays", read_nuswide),
    "cub": ("CUB-200-2011, its attributes as classes", read_cub),
}
"""Formats that are a folder: a description and a reader of each. A new format is a reader and a line here."""
PUBLISHED = tuple(FOLDERS)
"""Formats that papers use: they are cut into splits as published, and their class names are not checked."""
FORMATS = {
    "table": "your own labels: a CSV or Parquet table, or an export of Label Studio, CVAT or FiftyOne",
    "folder": "your own images in folders CLASS/IMAGE or SPLIT/CLASS/IMAGE",
    **{name: about for name, (about, _) in FOLDERS.items()},
}
"""A description of each format."""


def add_format_flags(parser: Parser, kind: str = "") -> None:
    """Adds where the files are, which labels are hidden, and how splits are cut.

    Args:
        parser: takes the flags.
        kind: the format, whose own flags are added too; empty adds those of every format.
    """
    add = parser.add_argument
    add("path", nargs="?", type=Path, help="the folder as it was released, or the table")
    about = "folder or address of the images [where the format keeps them; for a table, the folder of the table]"
    add("--images", metavar="DIR_OR_URL", help=about)
    about = "hide training labels: single-positive, keep:0.3, verified:1:4 or long-tailed:10 [none]"
    add("--hide", default="none", metavar="KIND", help=about)
    about = "seed of the draw that hides labels [1200, the published draw]"
    add("--hide-seed", type=between(int, 0, 2**32 - 1), default=1200, metavar="N", help=about)
    about = "share of the training images cut off as validation, where the source has no validation split [0.2]"
    add("--validation", type=between(float, 0, 1), default=0.2, metavar="X", help=about)
    about = "share of all images cut off as the test split, where the source has none [0.2]"
    add("--test", type=between(float, 0, 1), default=0.2, metavar="X", help=about)
    about = "prepared data set, of which --out becomes a version with more images"
    add("--grow", type=Path, metavar="DIR", help=about)
    about = "seed with which validation and test are cut off [1200, the published split]"
    add("--split-seed", type=between(int, 0, 2**32 - 1), default=1200, metavar="N", help=about)
    about = "how validation and test are cut off [stratified by class; random for published formats]"
    add("--split-method", choices=get_args(Method), help=about)
    about = f"accept labels that look wrong, by the name of the check: {', '.join(CHECKS)}"
    add("--allow", default="", metavar="CHECK,..", help=about)
    if kind in ("", "table"):
        add_table_flags(parser)
    if kind in ("", "folder"):
        add(
            "--layout",
            choices=tuple(LAYOUTS),
            default="",
            metavar="LAYOUT",
            help=f"what the folders name, from the outermost inwards: {', '.join(LAYOUTS)}; split is "
            "SPLIT/CLASS/IMAGE, and any is a folder without a meaning [what their names show]",
        )
    add_sharding_flags(parser)


@dataclass(frozen=True, kw_only=True)
class FormatRequest(ShardingRequest):
    """What `raypaml shard FORMAT` is asked for; the fields are its flags."""

    format: str | None
    """The format, a name of FORMATS; needed to prepare, like the path."""
    path: Path | None
    """The folder as it was released, or the table."""
    hide: str
    """Which training labels are hidden, as `Hiding.parse` reads it."""
    hide_seed: int
    """Seed of the draw that hides labels."""
    validation: float
    """Share of the training images cut off as validation, where the source has no validation split."""
    test: float
    """Share of all images cut off as the test split, where the source has none."""
    grow: Path | None
    """Prepared data set, of which `out` becomes a version with more images."""
    split_seed: int
    """Seed with which validation and test are cut off."""
    split_method: Method | None
    """How validation and test are cut off; None for the method of the format."""
    allow: str
    """Checks of labels that are left out, with commas between."""
    layout: Layout = ""
    """What the folders of the format `folder` name; "" for what their names show."""
    table: TableRequest = field(default_factory=TableRequest)
    """How the table of the format `table` is written."""


def format_request(flags: Namespace) -> FormatRequest:
    """Returns what the flags of `add_format_flags` ask for."""
    return replace(requested(FormatRequest, flags), table=requested(TableRequest, flags))


def _source_of(request: FormatRequest, *, is_old: bool) -> Source:
    """Reads the labelled images; `is_old` as in `table_source`."""
    if not request.format or not request.path:
        raise ValueError(f"give a format ({', '.join(FORMATS)}) and the path of its files; --help says more")
    if request.format == "table":
        return table_source(request.path, request.images or "", request.grow, request.table, is_old=is_old)
    if not request.path.is_dir() and not (request.format == "coco" and request.path.is_file()):
        raise ValueError(f"{request.path}: no such folder; give the one that holds the {request.format} files")
    if request.format == "folder":
        return read_folder(request.path, request.layout)
    _, read = FOLDERS[request.format]
    return read(request.path)


def _is_own(request: FormatRequest, source: Source) -> bool:
    """Says whether the data are the user's own, and no published data set."""
    return request.format not in PUBLISHED or source.is_export


def _split_method(request: FormatRequest, source: Source, begun: Parameters) -> Method:
    """Returns how splits are cut: as was asked for, or as an unfinished data set was begun, or as the format is cut."""
    if request.split_method:
        return request.split_method
    if begun:
        return cast("Method", begun.get("split_method", "random"))
    return "stratified" if _is_own(request, source) else "random"


def format_preparation(request: FormatRequest) -> Preparation:
    """Returns the preparation that is asked for, describes the labels to the user, and refuses misread ones.

    A data set whose record does not say how splits are cut was begun by an early version and continues as it began:
    splits are cut at random, labels of a table are separated by blanks and no column holds groups unless a flag says
    so, names of classes are not checked, and training images without an observed label are left out.
    """
    hiding = Hiding.parse(request.hide, request.hide_seed)
    begun = made_with(request.out)
    is_old = bool(begun) and "split_method" not in begun
    source = _source_of(request, is_old=is_old)
    method, says_splits = _split_method(request, source, begun), source.says_splits
    cut = Cut(request.validation, request.test, request.split_seed, method)
    images = request.images or str(source.images)
    earlier = open_earlier(request.grow, request.out) if request.grow else None
    before = begun or (earlier.parameters if earlier else {})
    if earlier:
        check_pictures(source, earlier, images, form_of(request, before))
        source, earlier = grown_source(source, earlier, {"test": cut.test, "validation": cut.validation}, say)
    if _is_own(request, source) and not is_old:
        positives = positives_of(source)
        if earlier:  # a class that is rare in what is added may be common in what is there
            positives += earlier.positives(len(positives))
        allowed = [name.strip() for name in request.allow.split(",") if name.strip()]
        check_names(source.classes.class_ids, positives, allowed, from_text=source.names_from_text)
    unlabelled: Unlabelled = "left out" if before and before.get("unlabelled") != "kept" else "kept"
    labels = assemble(source, hiding, cut, earlier.keys() if earlier else (), unlabelled=unlabelled)
    for line in overview(source, labels):
        say(line)
    settings: Parameters = {"hide": request.hide, "hide_seed": request.hide_seed, "split_seed": request.split_seed}
    if method != "random" or not is_old:
        settings |= {"split_method": method}
    if unlabelled == "kept":
        settings |= {"unlabelled": unlabelled}
    prepared = preparation(
        request,
        source=str(request.format),
        settings=settings,
        classes=source.classes,
        read_split=labels.__getitem__,
        images=images,
        official={},
        before=before,
    )
    return replace(prepared, earlier=earlier, says_splits=says_splits)
