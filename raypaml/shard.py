"""`raypaml shard KIND ...`: images and labels to a data set of verified shards; what to do with shards that are there.

Interrupted, the same command goes on where it stopped, and ends with the same bytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from raypaml.cli import Parser, command, known_names, listed, run_command, say
from raypaml.cluster.tasks import mapper
from raypaml.preparation.compare import add_compare_flags, compare_folders, comparison_as_text, differs
from raypaml.preparation.formats.format_flags import FORMATS, add_format_flags, format_preparation
from raypaml.preparation.index_folder import add_index_flags, index_folder
from raypaml.preparation.openimages.openimages_flags import add_openimages_flags, openimages_preparation
from raypaml.preparation.sharding_flags import run_sharding
from raypaml.preparation.verify_folder import add_verify_flags, faults_of, indexes_of, summary_of


def _openimages(asked: Any) -> int:
    return run_sharding(asked, partial(openimages_preparation, asked), mapper)


def shard_format(asked: Any) -> int:
    """Prepare, describe, verify or repair a data set of one of the formats, as the flags say; the exit code."""
    return run_sharding(asked, partial(format_preparation, asked), mapper)


def _index(asked: Any) -> int:
    globs = {split: getattr(asked, split) for split in ("train", "validation", "test")}
    data, passed_over = index_folder(
        asked.folder,
        globs,
        asked.labels,
        asked.classes,
        image_suffix=asked.image_ext,
        dotted_keys=asked.dotted_keys,
    )
    for split, index in data.splits.items():
        print(f"{split}: {len(index):,} samples in {len(index.shards)} shards")
    print(f"{len(data.vocabulary):,} classes, digest {data.vocabulary.digest[:12]}")
    for reason, names in passed_over.items():
        print(f"members passed over, {reason}: {len(names):,}, such as {names[0]}")
    return 0


def _verify(asked: Any) -> int:
    indexes, faults = indexes_of(asked.folder, asked.split), 0
    with mapper(asked.workers, asked.address) as run:
        for fault in faults_of(asked.folder, indexes, run, decode=not asked.no_decode, say=say):
            print(fault, flush=True)
            faults += 1
    for line in summary_of(indexes, faults):
        say(line)
    return int(faults > 0)


def _compare(asked: Any) -> int:
    differences = compare_folders(asked.a, asked.b)
    print(comparison_as_text(differences))
    if asked.json:
        asked.json.write_text(json.dumps(differences, indent=1) + "\n")
    return int(any(differs(comparison) for comparison in differences.values()))


KINDS: dict[str, tuple[str, Callable[[Parser], None], Callable[[Any], int]]] = {
    "openimages": ("Open Images V3 (and V2, V4 to V7), from the official files", add_openimages_flags, _openimages),
    **{name: (about, partial(add_format_flags, kind=name), shard_format) for name, about in FORMATS.items()},
    "index": ("write vocabulary and indexes beside WebDataset tars", add_index_flags, _index),
    "verify": ("check shards against their indexes; exit code 1 where there are faults", add_verify_flags, _verify),
    "compare": ("say how two data sets differ; exit code 1 if they do", add_compare_flags, _compare),
}


def main(argv: Sequence[str] | None = None, prog: str = "") -> int:
    """Run one kind of sharding; `prog` is the command as it was typed, where it is another."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        about = "Turn images and labels into a data set of verified shards."
        print(listed(f"{command('shard')} KIND ...", about, {name: said for name, (said, _, _) in KINDS.items()}))
        print(f"\nEach says more: {command('shard table')} --help")
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
