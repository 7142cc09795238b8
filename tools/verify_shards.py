"""Check the shards of a data folder against their indexes, whoever wrote them: every fault by shard, key and byte.

    python tools/verify_shards.py DIR [--split train] [--workers 8] [--no-decode]

Every image is read where training would read it (size, CRC-32, decoding), and every tar as any reader of tars would
(structure, keys, labels). Exit code 0 without faults, 1 with, 2 where there is nothing to check. `raypaml.prepare`
has its own --verify, which can repair what it wrote.
"""

from __future__ import annotations

import sys
from pathlib import Path

from raypaml.data.folder import open_folder
from raypaml.data.shards import SPLITS
from raypaml.data.verify import verify_shard
from raypaml.flags import Parser, run_command
from raypaml.tasks import mapper

PROG = "python tools/verify_shards.py"


def main() -> None:
    """Verify one folder."""
    parser = Parser(prog=PROG, description="Check shards against their indexes; name every fault.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="holds shards, indexes and vocabulary.csv")
    parser.add_argument("--split", choices=SPLITS, help="only this one [all]")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="Ray workers; 1: this process alone [1]")
    parser.add_argument("--address", default="", help="Ray cluster to join (also RAY_ADDRESS) [a private one]")
    parser.add_argument("--no-decode", action="store_true", help="leave out decoding, the slowest part")
    asked = parser.parse()
    folder: Path = asked.folder.absolute()
    splits = open_folder(folder, lenient=True).splits
    indexes = [index for split, index in splits.items() if asked.split in (None, split)]
    decode = not asked.no_decode
    calls = [(folder, index, shard, decode) for index in indexes for shard in range(len(index.shards))]
    faults = 0
    with mapper(asked.workers, asked.address) as run:
        for found in run(verify_shard, calls):
            faults += len(found)
            for fault in found:
                print(fault, flush=True)
    samples = sum(map(len, indexes))
    print(
        f"{len(calls):,} shards, {samples:,} samples: {f'{faults:,} faults' if faults else 'no fault'}", file=sys.stderr
    )
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main, PROG)
