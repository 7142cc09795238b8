"""Vocabulary and indexes for WebDataset tars that are there already, raypaml's own or those of others.

A sample is KEY.jpg (or .jpeg; where there is none, .png, .webp, ...) and its labels, KEY.json, KEY.cls or KEY.txt.
Names may lead through folders; they become part of the key, joined by `__`. All images should have one size. As
WebDataset does, folders, hidden members, `__index__` and names without an extension are passed over, and counted.
Refused, by name: other members that are not files, names that lead out of the tar, pickled members, damaged or
compressed tars, samples without exactly one image and one file of labels.
"""

from __future__ import annotations

from pathlib import Path

from raypaml.cli import Parser
from raypaml.data.data_folder import VOCABULARY, DataFolder, open_folder
from raypaml.data.hidden_files import PassedOver
from raypaml.data.shards import SPLITS, index_dataset
from raypaml.data.storage import Location
from raypaml.preparation.formats.common import class_list

FORMS = "json (raypaml's own), json:positive=FIELD[,negative=FIELD] (a.b leads inside), cls or txt [json]"
FORMS += "; output.json:positive=FIELD where they are KEY.output.json"


def add_index_flags(parser: Parser) -> None:
    """Add the folder of the tars, the form of their labels, and which tars are of which split."""
    add = parser.add_argument
    add("folder", metavar="DIR", help="holds the tars; vocabulary and indexes are written into it")
    add("--labels", default="json", metavar="FORM", help=FORMS)
    add("--image-ext", default="", metavar="EXT", help="of images: input.jpg for KEY.input.jpg [jpg, else any image]")
    add("--dotted-keys", action="store_true", help="keys end before a suffix said, else at the last dot [the first]")
    add("--classes", type=Path, metavar="FILE", help="a class id a line, or a vocabulary.csv")
    for split in SPLITS:
        add(f"--{split}", default=f"{split}-*.tar", metavar="GLOB", help=f"[{split}-*.tar]")


def index_folder(
    folder: str,
    globs: dict[str, str],
    labels: str,
    classes: Path | None,
    *,
    image_suffix: str = "",
    dotted_keys: bool = False,
) -> tuple[DataFolder, PassedOver]:
    """Write vocabulary and indexes by one scan of each tar; open the result, with the members that were passed over.

    Args:
        folder: holds the tars.
        globs: which files are shards, by split.
        labels: form of the labels, see FORMS.
        classes: file of class ids in their order, or a vocabulary.csv; None for that of the folder, or else every
            class that a training sample names, sorted.
        image_suffix: of the member that is the image; empty: the JPEG, or where there is none, the one image.
        dotted_keys: keys have dots: they end before the suffix of image or labels, or else at the last dot of a name,
            not at the first.

    Raises:
        ValueError: a split without shards, or something that is refused, by its name.
    """
    if not Location(folder).is_local:
        raise ValueError(f"{folder}: give a folder of this machine; copy the shards first")
    where = Path(folder)
    shards = {split: sorted(where.glob(globs[split])) for split in SPLITS}
    missing = [split for split, paths in shards.items() if not paths]
    if missing:
        raise ValueError(f"{where}: no {', '.join(globs[split] for split in missing)}; every split needs a shard")
    passed_over = PassedOver(list)
    index_dataset(
        where,
        shards,
        *_classes(where, classes),
        labels=labels,
        image_suffix=image_suffix.removeprefix("."),
        dotted_keys=dotted_keys,
        passed_over=passed_over,
    )
    return open_folder(where), passed_over


def _classes(folder: Path, given: Path | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids and names of the classes, if they are known before."""
    path = given or folder / VOCABULARY
    return ((), ()) if given is None and not path.is_file() else class_list(path)
