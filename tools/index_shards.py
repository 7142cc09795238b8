"""Write vocabulary and indexes beside WebDataset tars of raypaml's own form, by one scan of each.

    python tools/index_shards.py DIR

DIR holds `train-*.tar`, `validation-*.tar` and `test-*.tar` with `KEY.jpg` and `KEY.json` (`{"positive": [class ids],
"negative": [class ids]}`). The classes, and their order, are those of DIR/vocabulary.csv if it is there, otherwise
every class id that a training sample names, sorted.
"""

from __future__ import annotations

from pathlib import Path

from raypaml.data.folder import open_folder
from raypaml.data.shards import SPLITS, index_dataset
from raypaml.flags import Parser, run_command
from raypaml.labels import Vocabulary

PROG = "python tools/index_shards.py"


def main() -> None:
    """Index one folder and check the result."""
    parser = Parser(prog=PROG, description="Write vocabulary and indexes beside WebDataset tars, by one scan of each.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="holds train-*.tar, validation-*.tar, test-*.tar")
    folder: Path = parser.parse().folder
    shards = {split: sorted(folder.glob(f"{split}-*.tar")) for split in SPLITS}
    missing = [split for split, paths in shards.items() if not paths]
    if missing:
        raise ValueError(f"{folder}: no {', '.join(f'{split}-*.tar' for split in missing)}; every split needs a shard")
    before = Vocabulary.read(folder / "vocabulary.csv") if (folder / "vocabulary.csv").is_file() else None
    index_dataset(folder, shards, *((before.class_ids, before.names) if before else ()))
    data = open_folder(folder)
    for split, index in data.splits.items():
        print(f"{split}: {len(index):,} samples in {len(index.shards)} shards")
    print(f"{len(data.vocabulary):,} classes, digest {data.vocabulary.digest[:12]}")


if __name__ == "__main__":
    run_command(main, PROG)
