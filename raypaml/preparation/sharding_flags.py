"""The flags that all kinds of sharding share, and the preparing, verifying and repairing that they ask for."""

from __future__ import annotations

import hashlib
import os
import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, cast

from raypaml.cli import Parser, say
from raypaml.data.colours import HIDDEN, WHITE
from raypaml.data.shards import SPLITS
from raypaml.mapper import OpenMapper
from raypaml.preparation.hierarchy import Parents, expand, read_hierarchy
from raypaml.preparation.image_form import QUALITY, ImageForm
from raypaml.preparation.pipeline import describe_preparation, prepare_data
from raypaml.preparation.preparation_settings import Preparation
from raypaml.preparation.record import read_record
from raypaml.preparation.repair import repair, verify
from raypaml.preparation.requests import Classes, Parameters, SplitLabels

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_sharding_flags(parser: Parser) -> None:
    """Adds the flags of every kind of sharding."""
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        metavar="DIR",
        required=True,
        help="folder of the data set; on a cluster all nodes must reach it",
    )
    add("--split", choices=SPLITS, help="prepare this split alone [all three]")
    about = "size of images: N squashes to N x N pixels, short[:PIXELS] scales the shorter side, none keeps it [448]"
    add("--resize", default="448", metavar="448|short|none", help=about)
    add("--quality", type=int, default=QUALITY, metavar="N", help=f"quality of encoded JPEGs, 1 to 95 [{QUALITY}]")
    about = (
        f"colour under transparent pixels, or {HIDDEN} for the colours stored there [{WHITE}, or that of the data set "
    )
    add("--background", metavar="COLOUR", help=about + "that is continued]")
    add("--shard-samples", type=int, default=2000, metavar="N", help="images requested per shard [2000]")
    about = "cut shards by size, to about so many bytes each [by the number of images]"
    add("--shard-bytes", default="", metavar="N[MB|GB]", help=about)
    about = "class hierarchy, by which a positive implies its ancestors: Open Images' JSON, or CSV of child,parent"
    add("--hierarchy", type=Path, metavar="FILE", help=about)
    add("--limit", type=int, default=0, metavar="N", help="prepare N random images of each split; 0 prepares all [0]")
    add("--seed", type=int, default=0, metavar="N", help="seed of the order of the images [0]")
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help="number of processes [one per core]")
    add("--address", default="", help="Ray cluster to join (also RAY_ADDRESS) [a private one]")
    add("--concurrency", type=int, default=32, metavar="N", help="images that each worker fetches at once [32]")
    add("--dry-run", action="store_true", help="write nothing; say what would be written and how large it would be")
    add("--verify", action="store_true", help="read every shard of a prepared data set and compare it with the index")
    add("--repair", action="store_true", help="do as --verify does, and write broken shards again from --images")


def number_of_bytes(text: str) -> int:
    """Reads a size such as `256MB`; an empty text is 0."""
    size = re.fullmatch(r"(\d+) *([KMG]B)?", text or "0", re.IGNORECASE)
    if not size:
        raise ValueError(f"shard_bytes={text!r}: give a size such as 256MB")
    return int(size[1]) * UNITS[(size[2] or "").upper()]


def preparation(
    flags: Namespace,
    *,
    source: str,
    settings: Parameters,
    classes: Classes,
    read_split: Callable[[str], SplitLabels],
    images: str,
    official: dict[str, dict[str, int]],
    before: Parameters,
) -> Preparation:
    """Returns the preparation that the shared flags ask for.

    Args:
        flags: the flags of `add_sharding_flags`.
        source: the kind of files that the labels come from.
        settings: settings of the source that decide the result.
        classes: the classes of the data set.
        read_split: reads the labels of a split.
        images: folder or address of the images.
        official: published totals by split and name.
        before: parameters of the data set that is continued or grows; empty for a new one.
    """
    if flags.hierarchy:
        parents = read_hierarchy(flags.hierarchy)
        settings |= {"hierarchy": hashlib.sha256(flags.hierarchy.read_bytes()).hexdigest()[:16]}
        read_split = partial(_expanded, read_split, classes.class_ids, parents)
    return Preparation(
        out=flags.out,
        images=images,
        source=source,
        settings=settings,
        classes=classes,
        read_split=read_split,
        official=official,
        form=form_of(flags, before),
        json=cast("Literal['flat', 'nested']", before.get("json", "flat")),
        seed=flags.seed,
        shard_samples=flags.shard_samples,
        shard_bytes=number_of_bytes(flags.shard_bytes),
        limit=flags.limit,
        workers=flags.workers,
        address=flags.address,
        concurrency=flags.concurrency,
    )


def made_with(out: Path) -> Parameters:
    """Returns the parameters of the data set in `out`, which continues as it began; empty for a new folder."""
    record = read_record(out)
    return record["parameters"] if record else {}


def form_of(flags: Namespace, before: Parameters) -> ImageForm:
    """Returns the form of all images; what the flags leave open is as in the data set that is continued or grows."""
    form = ImageForm.parse(flags.resize, flags.quality, flags.background or str(before.get("background", WHITE)))
    large_jpegs = before.get("large_jpegs", form.large_jpegs)
    return replace(form, large_jpegs=cast("Literal['reduced', 'whole']", large_jpegs))


def _expanded(
    read_split: Callable[[str], SplitLabels], class_ids: tuple[str, ...], parents: Parents, split: str
) -> SplitLabels:
    return expand(read_split(split), class_ids, parents)


def run_sharding(flags: Namespace, describe: Callable[[Namespace], Preparation], open_mapper: OpenMapper) -> int:
    """Prepares, describes, verifies or repairs a data set; returns the exit code, which is 1 where faults are left.

    Args:
        flags: the flags of `add_sharding_flags` and of the kind of sharding.
        describe: returns the preparation that the flags ask for; it is not called to verify or repair.
        open_mapper: opens the processes that share the work.
    """
    splits = [flags.split] if flags.split else list(SPLITS)
    if not (flags.verify or flags.repair):
        if flags.dry_run:
            describe_preparation(describe(flags), splits, say)
        else:
            prepare_data(describe(flags), splits, open_mapper, say)
        return 0
    if flags.repair and not flags.images:
        raise ValueError("--repair: give --images, to fetch the images of broken shards again")
    faults = verify(flags.out, splits, flags.workers, flags.address, open_mapper, say)
    if faults and flags.repair:
        faults = repair(flags.out, flags.images, faults, flags.concurrency, say)
    return 1 if faults else 0
