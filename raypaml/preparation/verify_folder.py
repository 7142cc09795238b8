"""Checks the shards of any data folder against their indexes and names every fault by shard, key and byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from raypaml.cli import Parser
from raypaml.counting import Count, number_of
from raypaml.data.data_folder import open_folder
from raypaml.data.index import Index
from raypaml.data.shards import SPLITS
from raypaml.data.verify_shard import verify_shard
from raypaml.mapper import Mapper
from raypaml.preparation.same_pictures import same_picture_lines


def add_verify_flags(parser: Parser) -> None:
    """Adds the folder, the split, the number of processes, and whether images are decoded."""
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="folder of shards, indexes and vocabulary.csv")
    add("--split", choices=SPLITS, help="check this split alone [all]")
    add("--workers", type=int, default=1, metavar="N", help="Ray workers; 1 checks in this process, without Ray [1]")
    add("--address", default="", help="Ray cluster to join (also RAY_ADDRESS) [a private one]")
    add("--no-decode", action="store_true", help="do not decode images, the slowest part of the check")


def indexes_of(folder: Path, split: str | None) -> list[Index]:
    """Opens the indexes of a folder, of all splits or of one."""
    splits = open_folder(folder.absolute(), lenient=True).splits
    return [index for name, index in splits.items() if split in (None, name)]


def faults_of(
    folder: Path, indexes: list[Index], run: Mapper, *, decode: bool, say: Callable[[str], None] = lambda _: None
) -> Iterator[str]:
    """Yields every fault as it is found; `say` takes lines of progress.

    Every image is read where training would read it (size, CRC-32 and, with `decode`, decoding), and every tar as any
    reader of tars would (structure, keys, labels).
    """
    calls = [(folder.absolute(), index, shard, decode) for index in indexes for shard in range(len(index.shards))]
    for faults in Count("verifying", len(calls), say, unit="shards").each(run(verify_shard, calls)):
        yield from faults


def summary_of(indexes: list[Index], faults: int) -> Iterator[str]:
    """Yields lines about pictures that occur more than once, which are no faults, and the last line with the counts."""
    yield from same_picture_lines({index.where.stem: index for index in indexes})
    shards, samples = sum(len(index.shards) for index in indexes), sum(map(len, indexes))
    counted = number_of(faults, "fault") if faults else "no fault"
    yield f"{number_of(shards, 'shard')}, {number_of(samples, 'sample')}: {counted}"
