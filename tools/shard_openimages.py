"""Open Images V3 from the official files to verified shards: labels joined, images fetched, everything accounted for.

python tools/shard_openimages.py --metadata DIR --images DIR_OR_URL --out DIR       # all three splits
python tools/shard_openimages.py ... --split validation --limit 1000 --dry-run       # what would be done
python tools/shard_openimages.py --out DIR --verify                                  # read all of it again

Interrupted, the same command goes on where it stopped, and ends with the same bytes.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any, get_args

from raypaml.data.shards import SPLITS
from raypaml.flags import Parser, run_command
from raypaml.preparation.images import QUALITY, ImageForm
from raypaml.preparation.label_join import ConflictRule
from raypaml.preparation.openimages import OFFICIAL_TOTALS, read_classes, read_split
from raypaml.prepare import Preparation, describe, prepare, say_on_stderr
from raypaml.verify import repair, verify

PROG = "python tools/shard_openimages.py"
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parser() -> Parser:
    flags = Parser(prog=PROG, description=__doc__.split("\n")[0])
    flags.add_argument(
        "--metadata", type=Path, metavar="DIR", help="the 2017_11 files, extracted or their tar.gz archives"
    )
    flags.add_argument(
        "--images",
        metavar="DIR_OR_URL",
        help="holds KEY.jpg, SPLIT/KEY.jpg or SPLIT*.tar.gz; s3://open-images-dataset/SPLIT",
    )
    flags.add_argument(
        "--out", type=Path, metavar="DIR", required=True, help="the data set; with a cluster, seen by all nodes"
    )
    flags.add_argument("--split", choices=SPLITS, help="[all three]")
    flags.add_argument(
        "--resize", default="448", metavar="448|short|none", help="squash to 448 x 448; short[:PIXELS]; none [448]"
    )
    flags.add_argument("--quality", type=int, default=QUALITY, metavar="N", help=f"of JPEG, where encoded [{QUALITY}]")
    flags.add_argument("--shard-samples", type=int, default=2000, metavar="N", help="images asked for per shard [2000]")
    flags.add_argument("--shard-bytes", default="", metavar="N[MB|GB]", help="size of a shard, about, instead")
    flags.add_argument("--classes", type=Path, metavar="FILE", help="class ids, one per line [the 5,000 trainable]")
    flags.add_argument(
        "--conflicts",
        choices=get_args(ConflictRule),
        default="source",
        help="a label verified both ways: the better source decides (where it too is divided, the label is dropped), "
        "or negative, positive, drop [source]",
    )
    flags.add_argument(
        "--machine-labels",
        type=float,
        metavar="P",
        help="add machine labels of this confidence to train, as positives [no]",
    )
    flags.add_argument("--limit", type=int, default=0, metavar="N", help="a sample of N images of each split [0: all]")
    flags.add_argument("--seed", type=int, default=0, help="of the order of the images [0]")
    flags.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes [one per core]")
    flags.add_argument("--address", default="", help="Ray cluster to join (also RAY_ADDRESS) [a private one]")
    flags.add_argument(
        "--concurrency", type=int, default=32, metavar="N", help="images fetched at once by each worker [32]"
    )
    flags.add_argument("--dry-run", action="store_true", help="say what would be done and how large it would be")
    flags.add_argument("--verify", action="store_true", help="read every shard again and compare it with the index")
    flags.add_argument("--repair", action="store_true", help="... and write those that are broken again, from --images")
    return flags


def number_of_bytes(text: str) -> int:
    """From `256MB`."""
    found = re.fullmatch(r"(\d+) *([KMG]B)?", text or "0", re.IGNORECASE)
    if not found:
        raise ValueError(f"shard_bytes={text!r}: give a size such as 256MB")
    return int(found[1]) * UNITS[(found[2] or "").upper()]


def asked_for(flags: Any) -> Preparation:
    """What the flags ask for."""
    missing = [name for name in ("metadata", "images") if not getattr(flags, name)]
    if missing:
        raise ValueError(f"give {' and '.join('--' + name for name in missing)}; --help says what they are")
    if not flags.metadata.is_dir():
        raise ValueError(f"metadata={flags.metadata}: no such folder; put the 2017_11 files or archives into one")
    if flags.machine_labels is not None and not 0 <= flags.machine_labels <= 1:
        raise ValueError(f"machine_labels={flags.machine_labels}: a confidence, 0..1")
    classes = read_classes(flags.metadata, flags.classes)
    return Preparation(
        out=flags.out,
        images=flags.images,
        source="openimages",
        settings={"conflicts": flags.conflicts, "machine_labels": flags.machine_labels},
        classes=classes,
        read_split=partial(labels_of, flags, classes),
        official=OFFICIAL_TOTALS,
        form=ImageForm.parse(flags.resize, flags.quality),
        seed=flags.seed,
        shard_samples=flags.shard_samples,
        shard_bytes=number_of_bytes(flags.shard_bytes),
        limit=flags.limit,
        workers=flags.workers,
        address=flags.address,
        concurrency=flags.concurrency,
    )


def labels_of(flags: Any, classes: Any, split: str) -> Any:
    """The labels of one split."""
    threshold = flags.machine_labels if split == "train" else None
    return read_split(flags.metadata, split, classes, conflicts=flags.conflicts, machine_threshold=threshold)


def main() -> int:
    """Prepare, describe, verify or repair."""
    flags = parser().parse()
    splits = [flags.split] if flags.split else list(SPLITS)
    if flags.repair or flags.verify:
        if flags.repair and not flags.images:
            raise ValueError("--repair: give --images, to fetch the images of broken shards again")
        faults = verify(flags.out, splits, flags.workers, flags.address, say_on_stderr)
        if faults and flags.repair:
            faults = repair(flags.out, flags.images, faults, flags.concurrency, say_on_stderr)
        return 1 if faults else 0
    (describe if flags.dry_run else prepare)(asked_for(flags), splits, say_on_stderr)
    return 0


if __name__ == "__main__":
    run_command(main, PROG)
