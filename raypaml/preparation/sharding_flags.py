"""The flags that all kinds of sharding share, and the preparing, verifying and repairing that they ask for."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, cast

from raypaml.bounds import check_bounds
from raypaml.cli import Parser, say
from raypaml.data.colours import HIDDEN, WHITE
from raypaml.data.shards import SPLITS
from raypaml.files import made
from raypaml.mapper import OpenMapper
from raypaml.names import check_new_folders
from raypaml.preparation.hierarchy import Parents, expand, read_hierarchy
from raypaml.preparation.image_form import QUALITY, ImageForm
from raypaml.preparation.pipeline import describe_preparation, prepare_data
from raypaml.preparation.preparation_settings import Preparation
from raypaml.preparation.record import read_record
from raypaml.preparation.repair import repair, verify
from raypaml.preparation.requests import Classes, Parameters, SplitLabels
from raypaml.writable import try_folder

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
BOUNDS = {"concurrency": (1, 1024), "shard_samples": (1, 10**7), "limit": (0, 10**12), "seed": (0, 2**63 - 1)}
"""The least and the largest value of settings."""
_Request = TypeVar("_Request", bound="ShardingRequest")


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


@dataclass(frozen=True, kw_only=True)
class ShardingRequest:
    """What every kind of sharding is asked for; the fields are the flags of `add_sharding_flags`, and --images.

    Raises:
        ValueError: a value is out of range, or a folder that would be made has an unfit name.
    """

    out: Path
    """Folder of the data set."""
    images: str | None
    """Folder or address of the images; None where the labels say it, or nothing is fetched."""
    split: str | None
    """The only split that is prepared; None for all three."""
    resize: str
    """Size of the images, as `ImageForm.parse` reads it."""
    quality: int
    """Quality of encoded JPEGs, 1..95."""
    background: str | None
    """Colour under transparent pixels; None for that of the data set that is continued, or white."""
    shard_samples: int
    """Images requested per shard."""
    shard_bytes: str
    """Size by which shards are cut, as `number_of_bytes` reads it; "" cuts them by the number of images."""
    hierarchy: Path | None
    """File with the class hierarchy by which a positive implies its ancestors."""
    limit: int
    """Number of random images of each split; 0 prepares all."""
    seed: int
    """Seed of the order of the images."""
    workers: int
    """Number of processes."""
    address: str
    """Ray cluster to join; "" starts a private one where there are several workers."""
    concurrency: int
    """Images that each worker fetches at once."""
    dry_run: bool
    """Whether only to say what would be written."""
    verify: bool
    """Whether to compare every shard of a prepared data set with its index."""
    repair: bool
    """Whether broken shards of a prepared data set are written again."""

    def __post_init__(self) -> None:
        check_new_folders("out", str(self.out))
        for name, (least, most) in BOUNDS.items():
            check_bounds(name, getattr(self, name), least, most)
        ImageForm.parse(self.resize, self.quality, self.background or WHITE)
        number_of_bytes(self.shard_bytes)

    @property
    def splits(self) -> list[str]:
        """The splits that are prepared, verified or repaired."""
        return [self.split] if self.split else list(SPLITS)


def number_of_bytes(text: str) -> int:
    """Reads a size such as `256MB`; an empty text is 0."""
    size = re.fullmatch(r"(\d+) *([KMG]B)?", text or "0", re.IGNORECASE)
    if not size:
        raise ValueError(f"shard_bytes={text!r}: give a size such as 256MB")
    return int(size[1]) * UNITS[(size[2] or "").upper()]


def preparation(
    request: ShardingRequest,
    *,
    source: str,
    settings: Parameters,
    classes: Classes,
    read_split: Callable[[str], SplitLabels],
    images: str,
    official: dict[str, dict[str, int]],
    before: Parameters,
) -> Preparation:
    """Returns the preparation that is asked for.

    Args:
        request: what every kind of sharding is asked for.
        source: the kind of files that the labels come from.
        settings: settings of the source that decide the result.
        classes: the classes of the data set.
        read_split: reads the labels of a split.
        images: folder or address of the images.
        official: published totals by split and name.
        before: parameters of the data set that is continued or grows; empty for a new one.
    """
    if request.hierarchy:
        parents = read_hierarchy(request.hierarchy)
        settings |= {"hierarchy": hashlib.sha256(request.hierarchy.read_bytes()).hexdigest()[:16]}
        read_split = partial(_expanded, read_split, classes.class_ids, parents)
    return Preparation(
        out=request.out,
        images=images,
        source=source,
        settings=settings,
        classes=classes,
        read_split=read_split,
        official=official,
        form=form_of(request, before),
        json=cast("Literal['flat', 'nested']", before.get("json", "flat")),
        seed=request.seed,
        shard_samples=request.shard_samples,
        shard_bytes=number_of_bytes(request.shard_bytes),
        limit=request.limit,
        workers=request.workers,
        address=request.address,
        concurrency=request.concurrency,
    )


def made_with(out: Path) -> Parameters:
    """Returns the parameters of the data set in `out`, which continues as it began; empty for a new folder."""
    record = read_record(out)
    return record["parameters"] if record else {}


def form_of(request: ShardingRequest, before: Parameters) -> ImageForm:
    """Returns the form of all images; what the request leaves open is as in the data set that is continued or grows."""
    form = ImageForm.parse(request.resize, request.quality, request.background or str(before.get("background", WHITE)))
    large_jpegs = before.get("large_jpegs", form.large_jpegs)
    return replace(form, large_jpegs=cast("Literal['reduced', 'whole']", large_jpegs))


def _expanded(
    read_split: Callable[[str], SplitLabels], class_ids: tuple[str, ...], parents: Parents, split: str
) -> SplitLabels:
    return expand(read_split(split), class_ids, parents)


def run_sharding(request: _Request, describe: Callable[[_Request], Preparation], open_mapper: OpenMapper) -> int:
    """Prepares, describes, verifies or repairs a data set; returns the exit code, which is 1 where faults are left.

    Args:
        request: what the kind of sharding is asked for.
        describe: returns the preparation of a request; it is not called to verify or repair.
        open_mapper: opens the processes that share the work.
    """
    if not (request.verify or request.repair):
        if request.dry_run:
            describe_preparation(describe(request), request.splits, say)
        else:
            with made(request.out):
                try_folder(request.out)
                prepare_data(describe(request), request.splits, open_mapper, say)
        return 0
    if request.repair and not request.images:
        raise ValueError("--repair: give --images, to fetch the images of broken shards again")
    faults = verify(request.out, request.splits, request.workers, request.address, open_mapper, say)
    if faults and request.repair:
        faults = repair(request.out, str(request.images), faults, request.concurrency, say)
    return 1 if faults else 0
