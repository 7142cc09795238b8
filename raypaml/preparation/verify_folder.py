"""Shards of any data folder checked against their indexes, whoever wrote them: every fault by shard, key and byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from raypaml.cli import Parser
from raypaml.counting import Count
from raypaml.data.data_folder import open_folder
from raypaml.data.index import Index
from raypaml.data.shards import SPLITS
from raypaml.data.verify_shard import verify_shard
from raypaml.mapper import Mapper
from raypaml.preparation.same_pictures import said_of_same_pictures


def add_verify_flags(parser: Parser) -> None:
    """Add the folder, and what of it is checked by how many processes."""
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="holds shards, indexes and vocabulary.csv")
    add("--split", choices=SPLITS, help="only this one [all]")
    add("--workers", type=int, default=1, metavar="N", help="Ray workers; 1: this process alone [1]")
    add("--address", default="", help="Ray cluster to join (also RAY_ADDRESS) [a private one]")
    add("--no-decode", action="store_true", help="leave out decoding, the slowest part")


def indexes_of(folder: Path, split: str | None) -> list[Index]:
    """The indexes of a folder, of all splits or of one."""
    splits = open_folder(folder.absolute(), lenient=True).splits
    return [index for name, index in splits.items() if split in (None, name)]


def faults_of(
    folder: Path, indexes: list[Index], run: Mapper, *, decode: bool, say: Callable[[str], None] = lambda _: None
) -> Iterator[str]:
    """Every fault, as it is found; `say` is told how far it is.

    Every image is read where training would read it (size, CRC-32 and, with `decode`, decoding), and every tar as any
    reader of tars would (structure, keys, labels).
    """
    calls = [(folder.absolute(), index, shard, decode) for index in indexes for shard in range(len(index.shards))]
    for faults in Count("verifying", len(calls), say, unit="shards").each(run(verify_shard, calls)):
        yield from faults


def summary_of(indexes: list[Index], faults: int) -> Iterator[str]:
    """What else was seen, which is no fault: pictures that occur more than once; and the last line."""
    yield from said_of_same_pictures({index.where.stem: index for index in indexes})
    shards, samples = sum(len(index.shards) for index in indexes), sum(map(len, indexes))
    yield f"{shards:,} shards, {samples:,} samples: {f'{faults:,} faults' if faults else 'no fault'}"
