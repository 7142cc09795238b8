"""`raypaml shard KIND ...`: makes, indexes, verifies and compares data sets of shards; continues where it stopped."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from raypaml.cli import Parser, command, known_names, listed, requested, run_command, say, show
from raypaml.cluster.tasks import mapper
from raypaml.counting import number_of
from raypaml.outputs import output_files
from raypaml.preparation.compare import add_compare_flags, compare_folders, comparison_as_text, differs, save_comparison
from raypaml.preparation.formats.format_flags import FORMATS, add_format_flags, format_preparation, format_request
from raypaml.preparation.index_folder import IndexRequest, add_index_flags, index_folder
from raypaml.preparation.openimages.openimages_flags import (
    OpenImagesRequest,
    add_openimages_flags,
    openimages_preparation,
)
from raypaml.preparation.preparation_settings import Preparation
from raypaml.preparation.sharding_flags import ShardingRequest, run_sharding
from raypaml.preparation.verify_folder import add_verify_flags, faults_of, indexes_of, summary_of

Action = Callable[[Namespace], int]
"""What a kind of sharding does with its flags; returns the exit code."""
_Request = TypeVar("_Request", bound=ShardingRequest)


def prepared_by(request: Callable[[Namespace], _Request], describe: Callable[[_Request], Preparation]) -> Action:
    """Returns the action of a kind of sharding: `request` reads its flags, and `describe` says what is prepared."""
    return lambda flags: run_sharding(request(flags), describe, mapper)


def _index(flags: Namespace) -> int:
    data, passed_over = index_folder(requested(IndexRequest, flags))
    for split, index in data.splits.items():
        show(f"{split}: {number_of(len(index), 'sample')} in {number_of(len(index.shards), 'shard')}")
    show(f"{len(data.vocabulary):,} classes, digest {data.vocabulary.digest[:12]}")
    for reason, names in passed_over.items():
        show(f"members passed over, {reason}: {len(names):,}, such as {names[0]}")
    return 0


def _verify(flags: Namespace) -> int:
    indexes, faults = indexes_of(flags.folder, flags.split), 0
    with mapper(flags.workers, flags.address) as run:
        for fault in faults_of(flags.folder, indexes, run, decode=not flags.no_decode, say=say):
            show(fault)
            faults += 1
    for line in summary_of(indexes, faults):
        say(line)
    return int(faults > 0)


def _compare(flags: Namespace) -> int:
    with output_files(flags.json) as (file,):
        differences = compare_folders(flags.a, flags.b)
        show(comparison_as_text(differences))
        if file:
            save_comparison(differences, file)
    return int(any(differs(comparison) for comparison in differences.values()))


prepare_format = prepared_by(format_request, format_preparation)
prepare_openimages = prepared_by(partial(requested, OpenImagesRequest), openimages_preparation)
KINDS: dict[str, tuple[str, Callable[[Parser], None], Action]] = {
    "openimages": ("prepare Open Images V2 to V7", add_openimages_flags, prepare_openimages),
    **{
        name: (f"prepare {about}", partial(add_format_flags, kind=name), prepare_format)
        for name, about in FORMATS.items()
    },
    "index": ("write vocabulary and indexes beside WebDataset tars", add_index_flags, _index),
    "verify": ("check shards against their indexes; exit code 1 where there are faults", add_verify_flags, _verify),
    "compare": ("say how two data sets differ; exit code 1 if they do", add_compare_flags, _compare),
}


def main(argv: Sequence[str] | None = None, prog: str = "") -> int:
    """Runs one kind of sharding; `prog` is the command as it was typed, where that is not `raypaml shard`."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        about = "Prepare images and labels as a data set of shards; index, verify and compare shards."
        show(listed(f"{command('shard')} KIND ...", about, {name: said for name, (said, _, _) in KINDS.items()}))
        show(f"\nEach kind has its own help, such as {command('shard table')} --help.")
        return 0
    kind, *rest = argv
    if kind not in KINDS:
        raise ValueError(f"{kind}: no such kind{known_names(kind, KINDS)}")
    about, add_flags, act = KINDS[kind]
    parser = Parser(prog=prog or command(f"shard {kind}"), description=f"{about[0].upper()}{about[1:]}.")
    parser.set_defaults(format=kind)
    add_flags(parser)
    return act(parser.parse(rest))


if __name__ == "__main__":
    run_command(main, command("shard"))
