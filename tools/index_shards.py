"""Write vocabulary and indexes beside WebDataset tars, raypaml's own or those of others, by one scan of each.

    python tools/index_shards.py DIR
    python tools/index_shards.py DIR --labels json:positive=tags,negative=absent --classes ids.txt --train 'part-*.tar'

A sample is KEY.jpg (or .jpeg) and its labels, KEY.json, KEY.cls or KEY.txt: see --labels. Names may lead through
directories; they become part of the key, joined by `__`. All images should have one size. The classes, and their order,
are those of --classes, or of DIR/vocabulary.csv if it is there, or every class that a training sample names, sorted.
Refused, by name: members that are not files, keys outside [0-9A-Za-z_-], pickled members, damaged tars.
"""

from __future__ import annotations

from pathlib import Path

from raypaml.data.folder import open_folder
from raypaml.data.shards import SPLITS, index_dataset
from raypaml.data.storage import Location
from raypaml.flags import Parser, run_command
from raypaml.labels import Vocabulary

PROG = "python tools/index_shards.py"
FORMS = "json (raypaml's own), json:positive=FIELD[,negative=FIELD] (a.b leads inside), cls or txt [json]"


def main() -> None:
    """Index one folder and check the result."""
    parser = Parser(prog=PROG, description="Write vocabulary and indexes beside WebDataset tars, by one scan of each.")
    parser.add_argument("folder", metavar="DIR", help="holds the tars; vocabulary and indexes are written into it")
    parser.add_argument("--labels", default="json", metavar="FORM", help=FORMS)
    parser.add_argument("--classes", type=Path, metavar="FILE", help="a class id a line, or a vocabulary.csv")
    for split in SPLITS:
        parser.add_argument(f"--{split}", default=f"{split}-*.tar", metavar="GLOB", help=f"[{split}-*.tar]")
    asked = vars(parser.parse())
    if not Location(asked["folder"]).is_local:
        raise ValueError(f"{asked['folder']}: give a folder of this machine; copy the shards first")
    folder = Path(asked["folder"])
    shards = {split: sorted(folder.glob(asked[split])) for split in SPLITS}
    missing = [split for split, paths in shards.items() if not paths]
    if missing:
        raise ValueError(f"{folder}: no {', '.join(asked[split] for split in missing)}; every split needs a shard")
    index_dataset(folder, shards, *_classes(folder, asked["classes"]), labels=asked["labels"])
    data = open_folder(folder)
    for split, index in data.splits.items():
        print(f"{split}: {len(index):,} samples in {len(index.shards)} shards")
    print(f"{len(data.vocabulary):,} classes, digest {data.vocabulary.digest[:12]}")


def _classes(folder: Path, given: Path | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids and names of the classes, if they are known before."""
    if given is not None and given.suffix != ".csv":
        if not given.is_file():
            raise ValueError(f"{given}: no such class list")
        ids = tuple(line.strip() for line in given.read_text(encoding="utf-8-sig").splitlines() if line.strip())
        return ids, ids
    path = given or folder / "vocabulary.csv"
    if given is None and not path.is_file():
        return (), ()
    before = Vocabulary.read(path)
    return before.class_ids, before.names


if __name__ == "__main__":
    run_command(main, PROG)
