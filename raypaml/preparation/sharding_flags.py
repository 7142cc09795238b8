"""What all kinds of sharding share: their flags, and preparing, describing, verifying or repairing as these say."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from raypaml.cli import Parser, say
from raypaml.data.colours import HIDDEN, WHITE
from raypaml.data.shards import SPLITS
from raypaml.mapper import OpenMapper
from raypaml.preparation.asked import Preparation
from raypaml.preparation.hierarchy import Parents, expand, read_hierarchy
from raypaml.preparation.image_form import QUALITY, ImageForm
from raypaml.preparation.pipeline import describe_preparation, prepare_data
from raypaml.preparation.record import read_record
from raypaml.preparation.repair import repair, verify
from raypaml.preparation.requests import Classes, SplitLabels

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_sharding_flags(parser: Parser) -> None:
    """The flags of every sharding tool."""
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", required=True, help="the data set; with a cluster, seen by all nodes")
    add("--split", choices=SPLITS, help="[all three]")
    add("--resize", default="448", metavar="448|short|none", help="squash to 448 x 448; short[:PIXELS]; none [448]")
    add("--quality", type=int, default=QUALITY, metavar="N", help=f"of JPEG, where encoded [{QUALITY}]")
    about = f"colour under transparent pixels; {HIDDEN}: what is hidden there [{WHITE}; a begun data set: its own]"
    add("--background", metavar="COLOUR", help=about)
    add("--shard-samples", type=int, default=2000, metavar="N", help="images asked for per shard [2000]")
    add("--shard-bytes", default="", metavar="N[MB|GB]", help="size of a shard, about, instead")
    add("--hierarchy", type=Path, metavar="FILE", help="a positive implies its ancestors: Open Images' JSON, or CSV")
    add("--limit", type=int, default=0, metavar="N", help="a sample of N images of each split [0: all]")
    add("--seed", type=int, default=0, help="of the order of the images [0]")
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes [one per core]")
    add("--address", default="", help="Ray cluster to join (also RAY_ADDRESS) [a private one]")
    add("--concurrency", type=int, default=32, metavar="N", help="images fetched at once by each worker [32]")
    add("--dry-run", action="store_true", help="say what would be done and how large it would be")
    add("--verify", action="store_true", help="read every shard again and compare it with the index")
    add("--repair", action="store_true", help="... and write those that are broken again, from --images")


def number_of_bytes(text: str) -> int:
    """From `256MB`."""
    found = re.fullmatch(r"(\d+) *([KMG]B)?", text or "0", re.IGNORECASE)
    if not found:
        raise ValueError(f"shard_bytes={text!r}: give a size such as 256MB")
    return int(found[1]) * UNITS[(found[2] or "").upper()]


def preparation(
    flags: Any,
    *,
    source: str,
    settings: dict[str, Any],
    classes: Classes,
    read_split: Callable[[str], SplitLabels],
    images: str,
    official: dict[str, dict[str, int]],
    before: Mapping[str, Any],
) -> Preparation:
    """What the shared flags ask for, of this source; `before`: what a data set that goes on or grows was made with."""
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
        json=before.get("json", "flat"),
        seed=flags.seed,
        shard_samples=flags.shard_samples,
        shard_bytes=number_of_bytes(flags.shard_bytes),
        limit=flags.limit,
        workers=flags.workers,
        address=flags.address,
        concurrency=flags.concurrency,
    )


def made_with(out: Path) -> dict[str, Any]:
    """What the data set in a folder was begun with, for it goes on as it began; nothing for a new one."""
    record = read_record(out)
    return record["parameters"] if record else {}


def form_of(flags: Any, before: Mapping[str, Any]) -> ImageForm:
    """What every image becomes: where the flags say nothing, the same as before."""
    form = ImageForm.parse(flags.resize, flags.quality, flags.background or before.get("background", WHITE))
    return replace(form, large_jpegs=before.get("large_jpegs", form.large_jpegs))


def _expanded(
    read_split: Callable[[str], SplitLabels], class_ids: tuple[str, ...], parents: Parents, split: str
) -> SplitLabels:
    return expand(read_split(split), class_ids, parents)


def run_sharding(flags: Any, asked: Callable[[], Preparation], open_mapper: OpenMapper) -> int:
    """Prepare, describe, verify or repair; the exit code, 1 where faults are left.

    Args:
        flags: those of `add_sharding_flags`.
        asked: what to prepare; called only where the flags ask for that.
        open_mapper: gives the processes that share the work.
    """
    splits = [flags.split] if flags.split else list(SPLITS)
    if not (flags.verify or flags.repair):
        if flags.dry_run:
            describe_preparation(asked(), splits, say)
        else:
            prepare_data(asked(), splits, open_mapper, say)
        return 0
    if flags.repair and not flags.images:
        raise ValueError("--repair: give --images, to fetch the images of broken shards again")
    faults = verify(flags.out, splits, flags.workers, flags.address, open_mapper, say)
    if faults and flags.repair:
        faults = repair(flags.out, flags.images, faults, flags.concurrency, say)
    return 1 if faults else 0
