"""`raypaml shard KIND ...`: turns images and labels into a data set of shards; indexes, verifies and compares shards.

After an interruption the same command continues where it stopped, and ends with the same bytes.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial

from raypaml.cli import Parser, command, known_names, listed, run_command, say
from raypaml.cluster.tasks import mapper
from raypaml.preparation.compare import add_compare_flags, compare_folders, comparison_as_text, differs
from raypaml.preparation.formats.format_flags import FORMATS, add_format_flags, format_preparation
from raypaml.preparation.index_folder import add_index_flags, index_folder
from raypaml.preparation.openimages.openimages_flags import add_openimages_flags, openimages_preparation
from raypaml.preparation.preparation_settings import Preparation
from raypaml.preparation.sharding_flags import run_sharding
from raypaml.preparation.verify_folder import add_verify_flags, faults_of, indexes_of, summary_of


def prepared_by(describe: Callable[[Namespace], Preparation]) -> Callable[[Namespace], int]:
    """Returns the action of a kind of sharding, from flags to the exit code; `describe` says what the flags ask for."""
    return lambda flags: run_sharding(flags, describe, mapper)


def _index(flags: Namespace) -> int:
    globs = {split: getattr(flags, split) for split in ("train", "validation", "test")}
    data, passed_over = index_folder(
        flags.folder,
        globs,
        flags.labels,
        flags.classes,
        image_suffix=flags.image_ext,
        dotted_keys=flags.dotted_keys,
    )
    for split, index in data.splits.items():
        print(f"{split}: {len(index):,} samples in {len(index.shards)} shards")
    print(f"{len(data.vocabulary):,} classes, digest {data.vocabulary.digest[:12]}")
    for reason, names in passed_over.items():
        print(f"members passed over, {reason}: {len(names):,}, such as {names[0]}")
    return 0


def _verify(flags: Namespace) -> int:
    indexes, faults = indexes_of(flags.folder, flags.split), 0
    with mapper(flags.workers, flags.address) as run:
        for fault in faults_of(flags.folder, indexes, run, decode=not flags.no_decode, say=say):
            print(fault, flush=True)
            faults += 1
    for line in summary_of(indexes, faults):
        say(line)
    return int(faults > 0)


def _compare(flags: Namespace) -> int:
    differences = compare_folders(flags.a, flags.b)
    print(comparison_as_text(differences))
    if flags.json:
        flags.json.write_text(json.dumps(differences, indent=1) + "\n")
    return int(any(differs(comparison) for comparison in differences.values()))


KINDS: dict[str, tuple[str, Callable[[Parser], None], Callable[[Namespace], int]]] = {
    "openimages": ("prepare Open Images V2 to V7", add_openimages_flags, prepared_by(openimages_preparation)),
    **{
        name: (f"prepare {about}", partial(add_format_flags, kind=name), prepared_by(format_preparation))
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
        print(listed(f"{command('shard')} KIND ...", about, {name: said for name, (said, _, _) in KINDS.items()}))
        print(f"\nEach kind has its own help, such as {command('shard table')} --help.")
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
